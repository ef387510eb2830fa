//! Fuzzes the example `chat`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| socketserver_fuzz::example("chat", data));
