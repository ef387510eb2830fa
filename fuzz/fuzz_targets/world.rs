//! Fuzzes random handlers and clients in a simulated world.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| socketserver_fuzz::world(data));
