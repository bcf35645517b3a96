#![no_main]
//! Runs the target `result`.

libfuzzer_sys::fuzz_target!(|data: &[u8]| loadtest_fuzz::result(data));
