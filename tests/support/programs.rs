//! Programs under test as processes, and clients of their listeners; nothing here waits longer than
//! the deadline.

#![allow(dead_code)] // each test file uses a part of it
#![allow(unreachable_pub)] // nothing outside the test file can use a module of it

use std::ffi::OsStr;
use std::fmt;
use std::fs;
use std::io::{self, BufRead as _, BufReader, ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::mpsc::{self, Receiver};
use std::sync::{Mutex, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use socket2::{Domain, SockAddr, Socket, Type};

/// The longest that a test waits for something that must happen.
pub const DEADLINE: Duration = Duration::from_secs(30);

/// How long a test watches for something that must not happen.
pub const A_WHILE: Duration = Duration::from_millis(150);

/// The path of the built example. The first call builds the examples if they are out of date.
pub fn example(name: &str) -> PathBuf {
    static EXAMPLES: OnceLock<PathBuf> = OnceLock::new();
    let examples = EXAMPLES.get_or_init(|| {
        // The test binary is target/PROFILE/deps/NAME.
        let test = std::env::current_exe().unwrap();
        let directory = test.parent().and_then(Path::parent).unwrap();
        let profile = directory.file_name().unwrap().to_str().unwrap();
        let profile = if profile == "debug" { "dev" } else { profile };
        let built = Command::new(env!("CARGO"))
            .args(["build", "--examples", "--quiet", "--profile", profile, "--target-dir"])
            .arg(directory.parent().unwrap())
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .status()
            .unwrap();
        assert!(built.success(), "the examples build");
        directory.join("examples")
    });
    examples.join(name)
}

/// The lines that a program writes to one of its pipes.
struct Lines {
    incoming: Mutex<Receiver<String>>,
    seen: Mutex<Vec<String>>,
}

impl Lines {
    fn of(pipe: impl std::io::Read + Send + 'static) -> Self {
        let (sender, incoming) = mpsc::channel();
        thread::spawn(move || {
            for line in BufReader::new(pipe).split(b'\n').map_while(Result::ok) {
                if sender.send(String::from_utf8_lossy(&line).into_owned()).is_err() {
                    return;
                }
            }
        });
        Lines { incoming: Mutex::new(incoming), seen: Mutex::default() }
    }

    /// The next line; `None` at the end of the pipe.
    fn next(&self) -> Option<String> {
        match self.incoming.lock().unwrap().recv_timeout(DEADLINE) {
            Ok(line) => {
                self.seen.lock().unwrap().push(line.clone());
                Some(line)
            }
            Err(mpsc::RecvTimeoutError::Disconnected) => None,
            Err(mpsc::RecvTimeoutError::Timeout) => {
                panic!("no line within the deadline after {:?}", self.seen.lock().unwrap())
            }
        }
    }

    /// All lines, from the first to the last.
    fn all(&self) -> Vec<String> {
        while self.next().is_some() {}
        self.seen.lock().unwrap().clone()
    }
}

/// A running program. Dropping it kills it.
pub struct Program {
    process: Child,
    stdout: Lines,
    stderr: Lines,
    urls: Vec<String>,
}

impl fmt::Debug for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Program").field("urls", &self.urls).finish_non_exhaustive()
    }
}

/// How a program ended.
#[derive(Debug)]
pub struct Ended {
    pub status: ExitStatus,
    pub stdout: Vec<String>,
    pub stderr: Vec<String>,
}

impl Ended {
    /// Checks that it exited with this code, with one line on stderr, which is returned, and
    /// nothing on stdout.
    #[track_caller]
    pub fn expect_failure(&self, code: i32) -> &str {
        assert_eq!(self.status.code(), Some(code), "{self:?}");
        assert_eq!(self.stdout, [""; 0], "{self:?}");
        assert_eq!(self.stderr.len(), 1, "{self:?}");
        &self.stderr[0]
    }

    /// Checks that it exited with code 0.
    #[track_caller]
    pub fn succeeds(&self) -> &Self {
        assert_eq!(self.status.code(), Some(0), "{self:?}");
        self
    }
}

/// Starts a program with pipes on its outputs and `/dev/null` as its input.
pub fn spawn(command: &mut Command) -> Program {
    spawn_reading(command, Stdio::null())
}

/// Starts a program with pipes on its outputs and this input.
pub fn spawn_reading(command: &mut Command, input: impl Into<Stdio>) -> Program {
    restore_sigint();
    let mut process = command
        .stdin(input)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let stdout = Lines::of(process.stdout.take().unwrap());
    let stderr = Lines::of(process.stderr.take().unwrap());
    Program { process, stdout, stderr, urls: Vec::new() }
}

/// Restores the default action of SIGINT: a shell starts its background jobs with SIGINT ignored,
/// which the programs would inherit.
#[allow(unsafe_code)] // the standard library handles no signals
fn restore_sigint() {
    // SAFETY: signal takes a number and a constant.
    unsafe { libc::signal(libc::SIGINT, libc::SIG_DFL) };
}

/// Runs an example to its end.
pub fn run(name: &str, arguments: &[impl AsRef<OsStr>]) -> Ended {
    spawn(Command::new(example(name)).args(arguments)).end()
}

/// Starts an example with these arguments and `--listen` for each of `urls`, and waits until it
/// listens at all of them.
pub fn serve(name: &str, urls: &[&str], arguments: &[&str]) -> Program {
    let mut command = Command::new(example(name));
    for url in urls {
        command.args(["--listen", url]);
    }
    let mut program = spawn(command.args(arguments));
    for url in urls {
        let line = program.stdout.next();
        let Some(url) = line.as_deref().and_then(|line| line.strip_prefix("listening on ")) else {
            panic!("{name} {arguments:?} at {url}: {line:?}, {:?}", program.stderr.all());
        };
        program.urls.push(url.to_owned());
    }
    program
}

/// Starts an example on TCP in this mode.
pub fn serve_tcp(name: &str, mode: &str) -> Program {
    serve(name, &["tcp://127.0.0.1:0"], &["--mode", mode])
}

impl Program {
    /// The addresses that it has printed.
    pub fn urls(&self) -> &[String] {
        &self.urls
    }

    /// The address of one listener more, which its other arguments have asked for.
    #[track_caller]
    pub fn next_url(&mut self) -> String {
        let line = self.stdout.next().unwrap_or_default();
        let url = line.strip_prefix("listening on ").expect("another listener").to_owned();
        self.urls.push(url.clone());
        url
    }

    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// Connects to the first of its listeners.
    pub fn connect(&self) -> Client {
        connect(&self.urls[0])
    }

    /// The next line on stdout after the lines with its addresses.
    pub fn next_line(&self) -> Option<String> {
        self.stdout.next()
    }

    /// The next line on stderr.
    pub fn next_error_line(&self) -> Option<String> {
        self.stderr.next()
    }

    /// Sends it a signal: TERM, INT.
    pub fn signal(&self, signal: &str) {
        // The shell's own `kill`: not every system has the program.
        let kill = format!("kill -{signal} {}", self.id());
        assert!(Command::new("sh").args(["-c", &kill]).status().unwrap().success());
    }

    /// Sends SIGTERM, and checks that it exits with code 0 and has printed nothing but its
    /// addresses on stdout.
    #[track_caller]
    pub fn stop(self) -> Ended {
        self.signal("TERM");
        self.stopped()
    }

    /// Waits until it has exited, and checks the same.
    #[track_caller]
    pub fn stopped(self) -> Ended {
        let expected: Vec<_> = self.urls.iter().map(|url| format!("listening on {url}")).collect();
        let ended = self.end();
        assert_eq!(ended.succeeds().stdout, expected);
        ended
    }

    /// Waits until it has exited.
    #[track_caller]
    pub fn end(mut self) -> Ended {
        let mut status = None;
        wait_until("the program exits", || {
            status = self.process.try_wait().unwrap();
            status.is_some()
        });
        Ended { status: status.unwrap(), stdout: self.stdout.all(), stderr: self.stderr.all() }
    }

    /// The number of its threads, on systems with `/proc`.
    pub fn threads(&self) -> Option<usize> {
        Some(fs::read_dir(format!("/proc/{}/task", self.id())).ok()?.count())
    }

    /// The processor time that it has used, on systems with `/proc`.
    pub fn cpu_time(&self) -> Option<Duration> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.id())).ok()?;
        // After the name, which may contain anything: the state, and 10 more fields before utime
        // and stime.
        let mut fields = stat.rsplit(')').next()?.split_whitespace().skip(11);
        let ticks: u64 =
            fields.next()?.parse::<u64>().ok()? + fields.next()?.parse::<u64>().ok()?;
        Some(Duration::from_millis(ticks * 10)) // USER_HZ is 100 wherever Linux runs
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The signal that ended a process, if one did.
pub fn signal_of(status: ExitStatus) -> Option<i32> {
    status.signal()
}

/// Polls a condition for which there is no event to wait for.
#[track_caller]
pub fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !holds() {
        assert!(Instant::now() < deadline, "not within the deadline: {what}");
        thread::sleep(Duration::from_millis(1));
    }
}

/// A client of a stream or a datagram socket.
#[derive(Debug)]
pub struct Client {
    pub socket: Socket,
    /// The path that a Unix datagram client is bound to.
    own: Option<PathBuf>,
}

/// Connects to a URL in the form that a server prints.
#[track_caller]
pub fn connect(url: &str) -> Client {
    let (scheme, rest) = url.split_once("://").unwrap();
    let kind = if matches!(scheme, "udp" | "unixgram") { Type::DGRAM } else { Type::STREAM };
    let (domain, address) = match scheme {
        "tcp" | "udp" => {
            let address: SocketAddr = rest.parse().unwrap();
            (Domain::for_address(address), SockAddr::from(address))
        }
        _ => (Domain::UNIX, SockAddr::unix(rest).unwrap()),
    };
    let socket = Socket::new(domain, kind, None).unwrap();
    let own = (scheme == "unixgram").then(|| {
        let path = std::env::temp_dir().join(unique("client"));
        socket.bind(&SockAddr::unix(&path).unwrap()).unwrap();
        path
    });
    socket.connect_timeout(&address, DEADLINE).unwrap_or_else(|error| panic!("{url}: {error}"));
    socket.set_read_timeout(Some(DEADLINE)).unwrap();
    socket.set_write_timeout(Some(DEADLINE)).unwrap();
    if scheme == "tcp" {
        socket.set_tcp_nodelay(true).unwrap();
    }
    Client { socket, own }
}

impl Drop for Client {
    fn drop(&mut self) {
        if let Some(path) = &self.own {
            let _ = fs::remove_file(path);
        }
    }
}

impl Client {
    /// Reads once; a read that the continuation of a stopped process has interrupted is repeated.
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.socket.read(buffer) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                read => return read,
            }
        }
    }

    /// Sends bytes, or a datagram.
    #[track_caller]
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) -> &mut Self {
        let bytes = bytes.as_ref();
        if self.socket.r#type().unwrap() == Type::DGRAM {
            assert_eq!(self.socket.send(bytes).unwrap(), bytes.len());
        } else {
            self.socket.write_all(bytes).unwrap();
        }
        self
    }

    /// Shuts down its sending direction.
    pub fn half_close(&mut self) -> &mut Self {
        self.socket.shutdown(Shutdown::Write).unwrap();
        self
    }

    /// Reads exactly these bytes, or one datagram of them.
    #[track_caller]
    pub fn expect(&mut self, expected: impl AsRef<[u8]>) -> &mut Self {
        let expected = expected.as_ref();
        let read = if self.socket.r#type().unwrap() == Type::DGRAM {
            self.datagram()
        } else {
            let mut read = vec![0; expected.len()];
            let mut filled = 0;
            while filled < read.len() {
                match self.read(&mut read[filled..]) {
                    Ok(0) => break,
                    Ok(count) => filled += count,
                    Err(error) => panic!("{error} after {:?}", text(&read[..filled])),
                }
            }
            read.truncate(filled);
            read
        };
        assert!(read == expected, "received {:?}, expected {:?}", text(&read), text(expected));
        self
    }

    /// Reads one datagram.
    #[track_caller]
    pub fn datagram(&mut self) -> Vec<u8> {
        let mut buffer = vec![0; 256 * 1024];
        let count = self.read(&mut buffer).unwrap();
        buffer.truncate(count);
        buffer
    }

    /// Reads a line, with its end.
    #[track_caller]
    pub fn line(&mut self) -> String {
        let mut line = Vec::new();
        let mut byte = [0];
        while !line.ends_with(b"\n") && self.read(&mut byte).unwrap() > 0 {
            line.extend(byte);
        }
        text(&line)
    }

    /// The server has closed the connection, and has sent nothing more.
    #[track_caller]
    pub fn expect_end(&mut self) {
        assert_eq!(text(&self.rest()), "");
    }

    /// Reads until the server has closed the connection.
    #[track_caller]
    pub fn rest(&mut self) -> Vec<u8> {
        let mut rest = Vec::new();
        self.socket.read_to_end(&mut rest).unwrap();
        rest
    }

    /// Nothing arrives for [`A_WHILE`].
    #[track_caller]
    pub fn expect_silence(&mut self) -> &mut Self {
        self.socket.set_read_timeout(Some(A_WHILE)).unwrap();
        let mut buffer = [0; 1024];
        loop {
            match self.socket.read(&mut buffer) {
                Ok(count) => panic!("expected nothing, received {:?}", text(&buffer[..count])),
                // SIGSTOP and SIGCONT interrupt a read.
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => break assert_eq!(error.kind(), ErrorKind::WouldBlock),
            }
        }
        self.socket.set_read_timeout(Some(DEADLINE)).unwrap();
        self
    }
}

/// Bytes as text, for messages.
pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A name that no other test uses.
fn unique(what: &str) -> String {
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    format!("socketserver-{}-{}-{what}", std::process::id(), COUNT.fetch_add(1, Relaxed))
}

/// A directory for one test. Dropping it removes it.
#[derive(Debug)]
pub struct Directory(PathBuf);

impl Directory {
    pub fn new() -> Self {
        let path = std::env::temp_dir().join(unique("test"));
        fs::create_dir(&path).unwrap();
        Directory(path)
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// The URL of a socket in it.
    pub fn url(&self, scheme: &str) -> String {
        format!("{scheme}://{}", self.path(scheme).display())
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
