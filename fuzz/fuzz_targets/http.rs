//! Fuzzes the example `http`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| socketserver_fuzz::example("http", data));
