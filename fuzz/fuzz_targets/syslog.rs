//! Fuzzes the example `syslog`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| socketserver_fuzz::example("syslog", data));
