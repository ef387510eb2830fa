//! Fuzzes messages with a delimiter.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| socketserver_fuzz::delimited(data));
