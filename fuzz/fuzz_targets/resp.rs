//! Fuzzes the example `resp`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| socketserver_fuzz::example("resp", data));
