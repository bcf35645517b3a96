#![no_main]
//! Runs the target `spec`.

libfuzzer_sys::fuzz_target!(|data: &[u8]| loadtest_fuzz::spec(data));
