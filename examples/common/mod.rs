//! The command line that all listening examples share: `--listen URL`, `--mode MODE`,
//! `--workers N`, `--drain SECONDS`, `--help`.

#![allow(dead_code)] // each example takes the options that make sense for it

use std::fmt;
use std::io::{self, Write as _};
use std::process::exit;
use std::time::Duration;

use lexopt::prelude::*;
use socketserver::{Endpoint, Error, Mode, Server};

/// What an example is, and what it takes.
pub(crate) struct About {
    pub(crate) name: &'static str,
    /// One sentence for `--help`.
    pub(crate) what: &'static str,
    /// Where it listens unless told otherwise.
    pub(crate) listen: &'static str,
    pub(crate) mode: &'static str,
    /// Further flags, each with its line of help.
    pub(crate) flags: &'static [(&'static str, &'static str)],
    /// Further options with a value: its name, its default, its line of help.
    pub(crate) values: &'static [(&'static str, &'static str, &'static str)],
}

impl About {
    /// An example on this address, in this mode, with no further options.
    pub(crate) const fn new(name: &'static str, what: &'static str, listen: &'static str) -> Self {
        About { name, what, listen, mode: "reactor", flags: &[], values: &[] }
    }

    fn help(&self) -> String {
        let mut help = format!(
            "{}\n\nUsage: {} [OPTIONS]\n\n\
             \x20 --listen URL      tcp://HOST:PORT, udp://HOST:PORT, unix://PATH or unixgram://PATH;\n\
             \x20                   may be given several times, port 0 picks one [default: {}]\n\
             \x20 --mode MODE       {} [default: {}]\n\
             \x20 --workers N       threads of offload and pool [default: 16]\n\
             \x20 --drain SECONDS   how long a stop waits for who is busy [default: 5]\n",
            self.what,
            self.name,
            self.listen,
            Mode::all().map(|mode| mode.name()).join(", "),
            self.mode,
        );
        for (flag, line) in self.flags {
            help.push_str(&format!("  --{flag:<16}{line}\n"));
        }
        for (name, default, line) in self.values {
            help.push_str(&format!("  --{:<16}{line} [default: {default}]\n", format!("{name} X")));
        }
        help + "  --help            show this\n\nRUST_LOG=debug shows more on stderr.\n"
    }
}

/// What the user asked for.
pub(crate) struct Options {
    pub(crate) listen: Vec<Endpoint>,
    pub(crate) mode: Mode,
    drain: Duration,
    flags: Vec<String>,
    values: Vec<(String, String)>,
}

impl Options {
    /// Reads the command line; what is unusable ends the program with one line and code 2.
    pub(crate) fn parse(about: &About) -> Self {
        env_logger::init();
        // With the soft limit, often 1,024, a thousand clients would already be too many.
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
            flags: Vec::new(),
            values: Vec::new(),
        };
        let mut workers = 16;
        let mut parser = lexopt::Parser::from_env();
        while let Some(argument) = parser.next()? {
            match argument {
                Long("listen") => options.listen.push(parser.value()?.parse()?),
                Long("mode") => options.mode = parser.value()?.parse()?,
                Long("workers") => {
                    workers = parser.value()?.parse()?;
                    if workers == 0 {
                        return Err("--workers wants at least 1".into());
                    }
                }
                Long("drain") => {
                    let seconds: f64 = parser.value()?.parse()?;
                    options.drain = Duration::try_from_secs_f64(seconds).map_err(other)?;
                }
                Long("help") | Short('h') => {
                    print!("{}", about.help());
                    exit(0);
                }
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
            options.listen.push(about.listen.parse().map_err(other)?);
        }
        options.mode = options.mode.workers(workers);
        Ok(options)
    }

    /// Whether a flag was given.
    pub(crate) fn has(&self, flag: &str) -> bool {
        self.flags.iter().any(|given| given == flag)
    }

    /// The last value given for an option.
    pub(crate) fn value(&self, name: &str) -> Option<&str> {
        self.values.iter().rev().find(|(given, _)| given == name).map(|(_, value)| value.as_str())
    }

    /// Makes a server of one service per `--listen`, and runs it until it is stopped.
    pub(crate) fn run(
        &self,
        mut service: impl FnMut(&Endpoint) -> Result<socketserver::Service, Error>,
    ) {
        let mut serve = || -> Result<(), Error> {
            let mut server = Server::new()?;
            for endpoint in &self.listen {
                server.add(service(endpoint)?)?;
            }
            server.drain(self.drain);
            run(server)
        };
        if let Err(error) = serve() {
            let code = if error.is_usage() { 2 } else { 1 };
            fail(error, code);
        }
    }
}

/// Announces the server's addresses and serves until SIGINT, SIGTERM or a handler stops it.
pub(crate) fn run(mut server: Server) -> Result<(), Error> {
    server.stop_on_signals()?;
    let mut stdout = io::stdout().lock();
    for address in server.addresses() {
        // A reader that has gone wants no more lines.
        let _ = writeln!(stdout, "listening on {address}");
    }
    let _ = stdout.flush();
    drop(stdout);
    let report = server.serve_forever()?;
    log::info!("stopped: {report:?}");
    Ok(())
}

/// One line on stderr, and the end.
pub(crate) fn fail(error: impl fmt::Display, code: i32) -> ! {
    let text = error.to_string().replace('\n', " ");
    eprintln!("error: {text}");
    exit(code)
}

fn other(error: impl std::error::Error + Send + Sync + 'static) -> lexopt::Error {
    lexopt::Error::Custom(Box::new(error))
}
