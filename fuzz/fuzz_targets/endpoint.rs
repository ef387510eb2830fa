//! Fuzzes the addresses that a user writes.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| socketserver_fuzz::endpoint(data));
