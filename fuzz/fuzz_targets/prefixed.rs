//! Fuzzes messages with a length.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| socketserver_fuzz::prefixed(data));
