#![no_main]
//! Runs the target `bounds`.

libfuzzer_sys::fuzz_target!(|data: &[u8]| loadtest_fuzz::bounds(data));
