//! The servers of the examples in a simulated world: valid conversations under faults, and malformed input.
//! The fuzz targets in `fuzz/` run the same.

#![allow(dead_code)] // each user of these modules, and of the examples in them, uses a part
#![allow(clippy::duplicate_mod)] // each example has the common modules

mod chat;
#[cfg(test)]
mod conversation;
#[cfg(test)]
mod datagrams;
#[cfg(test)]
mod deadlines;
mod dns;
mod examples;
mod http;
mod input;
mod resp;
#[cfg(test)]
mod small;
mod smtp;
mod syslog;
mod target;
#[cfg(test)]
mod valid;

/// One run of a server with the decisions of a fuzzer.
pub(crate) fn replay(server: &str, decisions: &[u8]) {
    match server {
        "resp" => target::replay::<resp::Resp>(decisions),
        "http" => target::replay::<http::Http>(decisions),
        "websocket" => target::replay::<chat::WebSocket>(decisions),
        "chat" => target::replay::<chat::Chat>(decisions),
        "dns" => target::replay::<dns::Dns>(decisions),
        "syslog" => target::replay::<syslog::Syslog>(decisions),
        "smtp" => target::replay::<smtp::Smtp>(decisions),
        other => panic!("no server {other:?}"),
    }
}
