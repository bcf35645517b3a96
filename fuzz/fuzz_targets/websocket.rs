#![no_main]
//! Runs the target `websocket`.

libfuzzer_sys::fuzz_target!(|data: &[u8]| loadtest_fuzz::websocket(data));
