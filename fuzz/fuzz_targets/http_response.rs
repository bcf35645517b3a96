#![no_main]
//! Runs the target `http_response`.

libfuzzer_sys::fuzz_target!(|data: &[u8]| loadtest_fuzz::http_response(data));
