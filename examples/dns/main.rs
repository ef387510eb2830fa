//! An authoritative name server for one zone: a master file (RFC 1035) answered over UDP and over
//! TCP by one event loop.
//!
//! A datagram is one query; a TCP connection carries queries with their length before them. Both
//! are answered by the same function from bytes to bytes, in `answer.rs`; the records are in
//! `zone.rs`. The server has EDNS (RFC 6891), wildcards (RFC 4592), delegations with glue, and one
//! small answer to queries of type ANY (RFC 8482). It has no DNSSEC and no zone transfers.
//!
//! The codec is the crate `domain`, because it reads and builds messages in place: for a query and
//! its answer it takes a third of the time of `hickory-proto`, which makes an owned value of each
//! name and record (`codecs` in `benches/originals`). The difference is about a tenth of the processor
//! time that a query takes altogether. `domain` reads master files too. `dns` in the same package
//! compares this server with nsd: its bar is 1.2 times the processor time of nsd per query.
//!
//! Try `dig @127.0.0.1 -p 5300 www.example.com`, with `+tcp` too.

#[path = "../common/mod.rs"]
mod common;

mod answer;
mod zone;

use std::sync::Arc;
use std::time::Duration;

use answer::{Transport, answer};
use common::{About, Options, fail, is_datagram};
use socketserver::{
    Context, Endian, Endpoint, Error, Handler, HandlerResult, LengthPrefixed, Limits, Mode, Server,
    Service, Width,
};
pub(crate) use zone::Zone;

/// The value of `--zone` that stands for the zone which is compiled in.
const EXAMPLE: &str = "(built in)";

/// The zone that is compiled in.
pub(crate) const EXAMPLE_ZONE: &[u8] = include_bytes!("example.zone");

/// The longest query over UDP that is received whole, in bytes: queries are short.
const MAX_QUERY: usize = 4096;

/// How long a TCP connection may be silent: RFC 7766, section 6.2.3.
const IDLE: Duration = Duration::from_secs(10);

struct NameServer {
    zone: Arc<Zone>,
    transport: Transport,
}

impl Handler for NameServer {
    fn on_open(&mut self, cx: &mut Context<'_>) -> HandlerResult {
        if self.transport == Transport::Tcp {
            cx.set_idle_timeout(IDLE)?;
        }
        Ok(())
    }

    fn on_message(&mut self, query: &[u8], cx: &mut Context<'_>) -> HandlerResult {
        match answer(&self.zone, query, self.transport) {
            Some(answer) => cx.send(&answer),
            None => {
                cx.close(); // what follows on a connection cannot be trusted
                Ok(())
            }
        }
    }
}

/// The zone that the user has chosen; a file that is not a zone ends the program.
fn chosen_zone(options: &Options) -> Zone {
    let origin = options.value("origin").unwrap_or(".");
    let name = options.value("zone").unwrap_or(EXAMPLE);
    let text = match name {
        EXAMPLE => EXAMPLE_ZONE.to_vec(),
        file => std::fs::read(file)
            .unwrap_or_else(|error| fail(format_args!("the zone {file:?}: {error}"), 2)),
    };
    Zone::parse(&text, origin)
        .unwrap_or_else(|error| fail(format_args!("the zone {name:?}: {error}"), 2))
}

/// The service at this address.
pub(crate) fn service(
    endpoint: &Endpoint,
    mode: Mode,
    limits: Limits,
    zone: &Arc<Zone>,
) -> Result<Service, Error> {
    let transport = if is_datagram(endpoint) { Transport::Udp } else { Transport::Tcp };
    let zone = Arc::clone(zone);
    Server::endpoint(endpoint)?
        .framing(LengthPrefixed::new(Width::Two, Endian::Big))
        .max_packet_size(MAX_QUERY)
        .mode(mode)
        .limits(limits)
        .service(move |_| NameServer { zone: Arc::clone(&zone), transport })
}

fn main() {
    let options = Options::parse(&About {
        values: &[
            ("zone", EXAMPLE, "the master file; without it, a small zone example.com"),
            ("origin", ".", "the name that relative names of the file are below"),
        ],
        ..About::new(
            "dns",
            "Answers the questions about one DNS zone.",
            "udp://127.0.0.1:5300 tcp://127.0.0.1:5300",
        )
    });
    let zone = Arc::new(chosen_zone(&options));
    options.run(|endpoint| service(endpoint, options.mode, options.limits(), &zone));
}
