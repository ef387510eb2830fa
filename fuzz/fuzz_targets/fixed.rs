//! Fuzzes messages of one size.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| socketserver_fuzz::fixed(data));
