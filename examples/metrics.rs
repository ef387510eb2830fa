//! The counters of a server for Prometheus: an echo, and beside it in the same event loop a listener
//! that answers `GET /metrics` with all counters in the text format of Prometheus.
//!
//! Each answer ends its connection. Under `inline` a request for the counters waits until the client
//! that is being served has gone; under `forking` what the child processes count is not included.
//!
//! Try `curl http://127.0.0.1:9464/metrics`.

mod common;

use std::fmt::Write as _;
use std::time::Duration;

use common::{About, Options, fail, unless_failed};
use socketserver::{
    Context, Counter, CounterKind, Delimited, Endpoint, Error, Handler, HandlerResult, Limits,
    Server, Service, ShutdownHandle,
};

struct Echo;

impl Handler for Echo {
    fn on_message(&mut self, message: &[u8], cx: &mut Context<'_>) -> HandlerResult {
        cx.send(message)
    }
}

/// Answers one HTTP request.
struct Metrics(ShutdownHandle);

impl Handler for Metrics {
    /// The message is the head of a request: its lines up to the empty one.
    fn on_message(&mut self, head: &[u8], cx: &mut Context<'_>) -> HandlerResult {
        let mut words = head.split(|byte| b" \r".contains(byte));
        let (status, body) = match (words.next(), words.next()) {
            (Some(b"GET" | b"HEAD"), Some(b"/metrics")) => ("200 OK", self.metrics()),
            (Some(b"GET" | b"HEAD"), _) => ("404 Not Found", "see /metrics\n".to_owned()),
            _ => ("405 Method Not Allowed", "GET, please\n".to_owned()),
        };
        let answer = format!(
            "HTTP/1.1 {status}\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\n\
             Content-Length: {}\r\nConnection: close\r\n\r\n",
            body.len()
        );
        let body = if head.starts_with(b"HEAD ") { "" } else { &body };
        // The framing would add a delimiter to what `send` sends.
        cx.output().put(answer.as_bytes());
        cx.output().put(body.as_bytes());
        cx.close();
        Ok(())
    }
}

impl Metrics {
    /// All counters in the text format of Prometheus.
    fn metrics(&self) -> String {
        let mut text = String::new();
        for Counter { name, kind, value, help, .. } in self.0.counters().iter() {
            // A total has the type "counter" and a name that ends with "_total".
            let (kind, end) = match kind {
                CounterKind::Total => ("counter", "_total"),
                _ => ("gauge", ""),
            };
            let name = format!("socketserver_{name}{end}");
            let help = plain(help);
            let _ = write!(text, "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}\n");
        }
        text
    }
}

/// A line of documentation without its marks: "[`Sender`](crate::Sender)" is "Sender". The format would
/// also have line ends and backslashes escaped, of which there are none.
fn plain(documentation: &str) -> String {
    let mut parts = documentation.split("](");
    let mut text = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        text.push_str(part.split_once(')').map_or(part, |(_target, rest)| rest));
    }
    text.replace(['[', '`'], "")
}

/// The service of the counters. Its limits are tight: it has few clients, and they are quick.
fn metrics(endpoint: &Endpoint, server: ShutdownHandle) -> Result<Service, Error> {
    let limits = Limits::default()
        .max_connections(16)
        .message_deadline(Duration::from_secs(5))
        .first_message_deadline(Duration::from_secs(5));
    Server::endpoint(endpoint)?
        .framing(Delimited::new(*b"\r\n\r\n"))
        .limits(limits)
        .service(move |_| Metrics(server.clone()))
}

fn main() {
    let options = Options::parse(&About {
        values: &[("metrics", "tcp://127.0.0.1:9464", "URL where Prometheus finds the counters")],
        ..About::new(
            "metrics",
            "Sends every byte back unchanged, and shows Prometheus its counters.",
            "tcp://127.0.0.1:9999",
        )
    });
    let url = options.value("metrics").unwrap_or_default();
    let endpoint: Endpoint =
        url.parse().unwrap_or_else(|error| fail(format_args!("--metrics {url}: {error}"), 2));
    let mut server = unless_failed(options.server(|endpoint| {
        Server::endpoint(endpoint)?.mode(options.mode).limits(options.limits()).service(|_| Echo)
    }));
    let handle = server.shutdown_handle();
    unless_failed(metrics(&endpoint, handle).and_then(|service| server.add(service)));
    unless_failed(options.serve(server));
}
