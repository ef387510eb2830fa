//! The examples themselves.

#[path = "../../examples/chat/main.rs"]
pub(crate) mod chat;
#[path = "../../examples/dns/main.rs"]
pub(crate) mod dns;
#[cfg(test)]
#[path = "../../examples/game/main.rs"]
pub(crate) mod game;
#[path = "../../examples/http/main.rs"]
pub(crate) mod http;
#[path = "../../examples/resp/main.rs"]
pub(crate) mod resp;
#[path = "../../examples/smtp/main.rs"]
pub(crate) mod smtp;
#[path = "../../examples/syslog/main.rs"]
pub(crate) mod syslog;

#[cfg(test)]
#[path = "../../examples/heartbeat.rs"]
pub(crate) mod heartbeat;
#[cfg(test)]
#[path = "../../examples/stream.rs"]
pub(crate) mod stream;
