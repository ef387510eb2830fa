//! Fuzzes raw bytes.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| socketserver_fuzz::raw(data));
