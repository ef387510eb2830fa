//! What the examples share: the command line of those that listen (`--listen URL`, `--mode MODE`,
//! `--workers N`, `--drain SECONDS`, limits, `--stats SECONDS`, `--help`), and their messages to the
//! user.

#![allow(dead_code)] // each example uses only a part of this module

use std::fmt;
use std::io::{self, Write as _};
use std::process::exit;
use std::time::Duration;

use lexopt::prelude::*;
use socketserver::{Counters, Endpoint, Error, Limits, Mode, Server, Service};

use limits::LimitOptions;
use stats::Statistics;

mod limits;
mod stats;
pub(crate) mod text;

/// The modes of an example that runs in all of them.
const ALL_MODES: &[&str] = &["reactor", "offload", "inline", "threading", "pool", "forking"];

/// The name of an example, its help text, and the options that it takes.
pub(crate) struct About {
    pub(crate) name: &'static str,
    /// One sentence for `--help`.
    pub(crate) what: &'static str,
    /// The default of `--listen`: addresses with a space between them.
    pub(crate) listen: &'static str,
    /// The default of `--mode`.
    pub(crate) mode: &'static str,
    /// The modes that it can run in.
    pub(crate) modes: &'static [&'static str],
    /// It needs connections: datagram addresses are refused.
    pub(crate) streams_only: bool,
    /// It needs datagrams: addresses of connections are refused.
    pub(crate) datagrams_only: bool,
    /// The default of `--idle`, in seconds; 0 is no limit.
    pub(crate) idle: u64,
    /// Further flags, each with its line of help.
    pub(crate) flags: &'static [(&'static str, &'static str)],
    /// Further options with a value: its name, its default, its line of help.
    pub(crate) values: &'static [(&'static str, &'static str, &'static str)],
}

impl About {
    /// An example that listens on this address, in mode `reactor`, with no further options.
    pub(crate) const fn new(name: &'static str, what: &'static str, listen: &'static str) -> Self {
        About {
            name,
            what,
            listen,
            mode: "reactor",
            modes: ALL_MODES,
            streams_only: false,
            datagrams_only: false,
            idle: 0,
            flags: &[],
            values: &[],
        }
    }

    fn help(&self) -> String {
        let mut help = format!(
            "{}\n\nUsage: {} [OPTIONS]\n\n\
             \x20 --listen URL      {};\n\
             \x20                   may be repeated; port 0 picks a free port\n\
             \x20                   [default: {}]\n\
             \x20 --mode MODE       {} [default: {}]\n\
             \x20 --workers N       number of threads under offload and pool [default: 16]\n\
             \x20 --drain SECONDS   how long a stop waits for busy clients [default: 5]\n\
             \x20 --stats SECONDS   print the counters that have moved, so often, as a line of JSON\n\
             \x20                   on stderr; 0 is never [default: 0]\n",
            self.what,
            self.name,
            if self.streams_only {
                "tcp://HOST:PORT or unix://PATH"
            } else if self.datagrams_only {
                "udp://HOST:PORT or unixgram://PATH"
            } else {
                "tcp://HOST:PORT, udp://HOST:PORT, unix://PATH or unixgram://PATH"
            },
            self.listen,
            self.modes.join(", "),
            self.mode,
        );
        for (flag, line) in self.flags {
            help.push_str(&format!("  --{flag:<16}{line}\n"));
        }
        for (name, default, line) in self.values {
            help.push_str(&format!("  --{:<16}{line} [default: {default}]\n", format!("{name} X")));
        }
        help + "  --help            show this help\n"
            + &limits::HELP.replace("IDLE", &self.idle.to_string())
            + "RUST_LOG=debug shows more on stderr.\n"
    }
}

/// The options of a run, from its command line.
pub(crate) struct Options {
    pub(crate) listen: Vec<Endpoint>,
    pub(crate) mode: Mode,
    pub(crate) drain: Duration,
    spin: Duration,
    stats: Duration,
    limits: LimitOptions,
    flags: Vec<String>,
    values: Vec<(String, String)>,
}

impl Options {
    /// Reads the command line. An unusable argument ends the program with one line on stderr and
    /// exit code 2.
    pub(crate) fn parse(about: &About) -> Self {
        env_logger::init();
        // The soft limit is often 1,024 descriptors, which is too few for a thousand clients.
        if let Err(error) = socketserver::raise_descriptor_limit() {
            log::warn!("the limit on open files stays as it is: {error}");
        }
        Options::read(about).unwrap_or_else(|error| fail(error, 2))
    }

    fn read(about: &About) -> Result<Self, lexopt::Error> {
        let mut options = Options {
            listen: Vec::new(),
            mode: about.mode.parse().map_err(other)?,
            drain: Duration::from_secs(5),
            spin: Duration::ZERO,
            stats: Duration::ZERO,
            limits: LimitOptions::new(about.idle),
            flags: Vec::new(),
            values: about
                .values
                .iter()
                .map(|(name, default, _)| (name.to_string(), default.to_string()))
                .collect(),
        };
        let mut workers = 16;
        let mut parser = lexopt::Parser::from_env();
        while let Some(argument) = parser.next()? {
            match argument {
                Long("listen") => {
                    let endpoint = parser.value()?.parse()?;
                    if about.streams_only && is_datagram(&endpoint) {
                        let name = about.name;
                        return Err(format!(
                            "{name} needs connections, and {endpoint} has datagrams"
                        )
                        .into());
                    }
                    if about.datagrams_only && !is_datagram(&endpoint) {
                        let name = about.name;
                        return Err(format!(
                            "{name} needs datagrams, and {endpoint} has connections"
                        )
                        .into());
                    }
                    options.listen.push(endpoint);
                }
                Long("mode") => {
                    options.mode = parser.value()?.parse()?;
                    if !about.modes.contains(&options.mode.name()) {
                        let (name, mode) = (about.name, options.mode);
                        let modes = about.modes.join(", ");
                        return Err(format!("{name} cannot run under {mode}, only {modes}").into());
                    }
                }
                Long("workers") => {
                    workers = parser.value()?.parse()?;
                    if workers == 0 {
                        return Err("--workers must be at least 1".into());
                    }
                }
                Long("drain") => {
                    options.drain = parser.value()?.parse_with(seconds)?;
                }
                Long("stats") => {
                    options.stats = parser.value()?.parse_with(seconds)?;
                }
                Long(name) if LimitOptions::has(name) => {
                    let name = name.to_owned();
                    options.limits.read(&name, &mut parser)?;
                }
                Long("help") | Short('h') => help(&mut parser, &about.help())?,
                Long(name) if about.flags.iter().any(|(flag, _)| *flag == name) => {
                    options.flags.push(name.to_owned());
                }
                Long(name) if about.values.iter().any(|(value, ..)| *value == name) => {
                    let name = name.to_owned();
                    let value = parser.value()?.string()?;
                    options.values.push((name, value));
                }
                other => return Err(other.unexpected()),
            }
        }
        if options.listen.is_empty() {
            for address in about.listen.split(' ') {
                options.listen.push(address.parse().map_err(other)?);
            }
        }
        options.mode = options.mode.workers(workers);
        if let Some(micros) = options.value("spin") {
            options.spin = Duration::from_micros(micros.parse().map_err(other)?);
        }
        Ok(options)
    }

    /// Whether a flag was given.
    pub(crate) fn has(&self, flag: &str) -> bool {
        self.flags.iter().any(|given| given == flag)
    }

    /// The last value given for an option of this example, or else its default.
    pub(crate) fn value(&self, name: &str) -> Option<&str> {
        self.values.iter().rev().find(|(given, _)| given == name).map(|(_, value)| value.as_str())
    }

    /// The value of an option that is a time in seconds, more than 0; any other ends the program.
    pub(crate) fn seconds(&self, name: &str) -> Duration {
        let value = self.value(name).unwrap_or_default();
        match seconds(value) {
            Ok(Duration::ZERO) => fail(format_args!("--{name} wants more than 0 seconds"), 2),
            Ok(time) => time,
            Err(error) => fail(format_args!("--{name} {value:?}: {error}"), 2),
        }
    }

    /// The limits of each listener, for `Builder::limits`.
    pub(crate) fn limits(&self) -> Limits {
        self.limits.limits.clone()
    }

    /// Makes a server of one service per `--listen`, and runs it until it is stopped. Returns what
    /// the server has counted.
    pub(crate) fn run(&self, service: impl FnMut(&Endpoint) -> Result<Service, Error>) -> Counters {
        unless_failed(self.server(service).and_then(|server| {
            let handle = server.shutdown_handle();
            self.serve(server)?;
            Ok(handle.counters())
        }))
    }

    /// Makes a server of one service per `--listen`. Its sockets are bound.
    pub(crate) fn server(
        &self,
        mut service: impl FnMut(&Endpoint) -> Result<Service, Error>,
    ) -> Result<Server, Error> {
        let mut server = Server::new()?;
        for endpoint in &self.listen {
            server.add(service(endpoint)?)?;
        }
        server.drain_timeout(self.drain).spin(self.spin);
        self.limits.apply(&mut server);
        Ok(server)
    }

    /// [`run`] with the options for the whole server.
    pub(crate) fn serve(&self, server: Server) -> Result<(), Error> {
        serve(server, self.stats)
    }
}

/// Prints the server's addresses, and serves until SIGINT, SIGTERM or a handler stops it.
pub(crate) fn run(server: Server) -> Result<(), Error> {
    serve(server, Duration::ZERO)
}

/// As [`run`]; prints the counters so often, and at the end. 0 is never.
fn serve(mut server: Server, stats: Duration) -> Result<(), Error> {
    server.stop_on_signals()?;
    let addresses = server.addresses();
    let statistics = match stats {
        Duration::ZERO => None,
        every => Some(Statistics::add(&mut server, every)?),
    };
    let mut stdout = io::stdout().lock();
    for address in addresses {
        // An error is ignored: nothing reads the output any more.
        let _ = writeln!(stdout, "listening on {address}");
    }
    let _ = stdout.flush();
    drop(stdout);
    let report = server.serve_forever()?;
    log::info!("stopped: {report:?}");
    if let Some(statistics) = statistics {
        statistics.print();
    }
    Ok(())
}

/// What a server gave; an error ends the program, with one line on stderr.
pub(crate) fn unless_failed<T>(result: Result<T, Error>) -> T {
    result.unwrap_or_else(|error| {
        let code = if error.is_usage() { 2 } else { 1 };
        fail(error, code)
    })
}

/// The command line of an example without options: `--help`, and nothing else.
pub(crate) fn no_options(name: &str, what: &str) {
    let mut parser = lexopt::Parser::from_env();
    match parser.next() {
        Ok(None) => {}
        Ok(Some(Long("help") | Short('h'))) => {
            let text = format!("{what}\n\nUsage: {name}\n\n  --help            show this help\n");
            if let Err(error) = help(&mut parser, &text) {
                fail(error, 2);
            }
        }
        Ok(Some(other)) => fail(other.unexpected(), 2),
        Err(error) => fail(error, 2),
    }
}

/// Prints the help and ends the program. `--help` takes no value.
pub(crate) fn help(parser: &mut lexopt::Parser, text: &str) -> Result<(), lexopt::Error> {
    if let Some(value) = parser.optional_value() {
        return Err(lexopt::Error::UnexpectedValue { option: "--help".to_owned(), value });
    }
    let mut stdout = io::stdout();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        // EPIPE is not an error: nothing reads the output any more.
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            fail(format_args!("the help cannot be written: {error}"), 1)
        }
        _ => exit(0),
    }
}

/// Prints an error in one line on stderr, and ends the program with `code`.
pub(crate) fn fail(error: impl fmt::Display, code: i32) -> ! {
    // `{:#}` prints the source of the error too.
    print_line(format_args!("error: {}", format!("{error:#}").replace('\n', " ")));
    exit(code)
}

/// Prints one line on stderr. Unlike `eprintln!` it does not panic when the write fails.
pub(crate) fn print_line(line: impl fmt::Display) {
    let _ = writeln!(io::stderr(), "{line}");
}

/// The text that a peer has sent, made safe for a terminal: without white space at its end, and
/// with each control character replaced by U+FFFD.
pub(crate) fn shown(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes.trim_ascii_end());
    text.chars().map(|c| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c }).collect()
}

/// The number that a line consists of, if it is one.
pub(crate) fn number(line: &[u8]) -> Option<u64> {
    std::str::from_utf8(line).ok()?.trim().parse().ok()
}

/// A time in seconds, with a fraction or without.
fn seconds(text: &str) -> Result<Duration, Box<dyn std::error::Error + Send + Sync>> {
    Ok(Duration::try_from_secs_f64(text.parse()?)?)
}

/// Whether the requests of this endpoint are datagrams.
pub(crate) fn is_datagram(endpoint: &Endpoint) -> bool {
    matches!(endpoint, Endpoint::Udp { .. } | Endpoint::UnixDatagram(_))
}

fn other(error: impl std::error::Error + Send + Sync + 'static) -> lexopt::Error {
    lexopt::Error::Custom(Box::new(error))
}
