#![no_main]
//! Runs the target `exposition`.

libfuzzer_sys::fuzz_target!(|data: &[u8]| loadtest_fuzz::exposition(data));
