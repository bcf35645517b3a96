#![no_main]
//! Runs the target `event_stream`.

libfuzzer_sys::fuzz_target!(|data: &[u8]| loadtest_fuzz::event_stream(data));
