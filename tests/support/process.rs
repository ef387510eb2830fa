//! Servers that run in processes of their own, and clients of every transport whose reads and
//! writes have a deadline.

#![allow(dead_code)] // each test file uses a part of it
#![allow(unreachable_pub)] // nothing outside the test file can use a module of it

use std::fs;
use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

use socket2::{Domain, SockAddr, Socket, Type};
use socketserver::{Address, Endpoint};

/// The longest that a test waits for something that must happen.
pub const DEADLINE: Duration = Duration::from_secs(30);

/// Polls a condition for which there is no event to wait for.
pub fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !holds() {
        assert!(Instant::now() < deadline, "not within the deadline: {what}");
        thread::sleep(Duration::from_millis(1));
    }
}

/// A temporary directory whose path is short enough for Unix sockets. Dropping it removes it.
#[derive(Debug)]
pub struct Directory(PathBuf);

impl Directory {
    pub fn new() -> Self {
        static MADE: AtomicUsize = AtomicUsize::new(0);
        let number = MADE.fetch_add(1, SeqCst);
        let path = std::env::temp_dir().join(format!("sock-{}-{number}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Directory(path)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    pub fn join(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A server in a process of its own, which leads its own process group. Dropping it kills the
/// process and all its children.
#[derive(Debug)]
pub struct Process {
    child: Child,
    lines: Receiver<String>,
    /// The addresses that it has printed.
    pub urls: Vec<String>,
    errors: PathBuf,
    status: Option<ExitStatus>,
    pub directory: Directory,
}

impl Process {
    /// Starts this test binary again with `arguments`, and waits until it listens at `listeners`
    /// addresses. `{dir}` in an argument is replaced by the path of its directory.
    pub fn start(listeners: usize, arguments: &[&str]) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.arg("--serve");
        Self::start_command(command, listeners, arguments)
    }

    /// Starts a command, and waits until it listens.
    pub fn start_command(mut command: Command, listeners: usize, arguments: &[&str]) -> Self {
        let directory = Directory::new();
        let errors = directory.join("stderr");
        let shown = directory.path().to_str().unwrap();
        command
            .args(arguments.iter().map(|argument| argument.replace("{dir}", shown)))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(fs::File::create(&errors).unwrap())
            .process_group(0);
        let mut child = command.spawn().unwrap();
        let lines = lines_of(child.stdout.take().unwrap());
        let mut process =
            Process { child, lines, urls: Vec::new(), errors, status: None, directory };
        for _ in 0..listeners {
            let line = process.line();
            let url = line.strip_prefix("listening on ").expect("a line with its address");
            process.urls.push(url.to_owned());
        }
        process
    }

    /// The next line that it prints.
    pub fn line(&mut self) -> String {
        match self.lines.recv_timeout(DEADLINE) {
            Ok(line) => line,
            Err(error) => panic!("the server printed no line: {error}\n{}", self.errors()),
        }
    }

    /// All further lines that it prints before it exits.
    pub fn rest(&mut self) -> Vec<String> {
        let mut rest = Vec::new();
        let deadline = Instant::now() + DEADLINE;
        while let Ok(line) = self.lines.recv_timeout(deadline.duration_since(Instant::now())) {
            rest.push(line);
        }
        rest
    }

    /// What it has written to its standard error.
    pub fn errors(&self) -> String {
        fs::read_to_string(&self.errors).unwrap_or_default()
    }

    pub fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    pub fn url(&self) -> &str {
        &self.urls[0]
    }

    pub fn signal(&self, signal: i32) {
        send_signal(self.pid(), signal);
    }

    /// Sends a signal to it and all its children, as a terminal does.
    pub fn signal_group(&self, signal: i32) {
        send_signal(-self.pid(), signal);
    }

    pub fn terminate(&self) {
        self.signal(libc::SIGTERM);
    }

    /// Waits until it has exited.
    pub fn wait(&mut self) -> ExitStatus {
        if let Some(status) = self.status {
            return status;
        }
        let deadline = Instant::now() + DEADLINE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                self.status = Some(status);
                return status;
            }
            if Instant::now() >= deadline {
                panic!(
                    "the server does not exit; {}\n{}",
                    threads_and_children(self.pid()),
                    self.errors()
                );
            }
            thread::sleep(Duration::from_millis(1));
        }
    }

    pub fn has_exited(&mut self) -> bool {
        if self.status.is_none() {
            self.status = self.child.try_wait().unwrap();
        }
        self.status.is_some()
    }

    /// It exits with success, and none of its children is left.
    pub fn expect_success(&mut self) {
        let status = self.wait();
        assert!(status.success(), "{status}\n{}", self.errors());
        self.expect_no_descendant();
    }

    /// None of its children is left.
    pub fn expect_no_descendant(&self) {
        eventually("no process of its group is left", || !group_lives(self.pid()));
    }

    /// Its children, zombies included.
    pub fn children(&self) -> Vec<i32> {
        children_of(self.pid())
    }

    pub fn connect(&self) -> Stream {
        connect(self.url())
    }

    /// A client of its first listener, a datagram socket.
    pub fn datagrams(&self) -> Datagrams {
        Datagrams::new(self.url(), &self.directory)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("standard error of the server:\n{}", self.errors());
        }
        send_signal(-self.pid(), libc::SIGKILL);
        if self.status.is_none() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

fn lines_of(stdout: ChildStdout) -> Receiver<String> {
    let (send, lines) = mpsc::channel();
    thread::spawn(move || {
        for line in BufReader::new(stdout).lines() {
            let Ok(line) = line else { break };
            if send.send(line).is_err() {
                break;
            }
        }
    });
    lines
}

#[allow(unsafe_code)] // the standard library sends no signals
pub fn send_signal(pid: i32, signal: i32) {
    // SAFETY: kill takes two numbers.
    unsafe { libc::kill(pid, signal) };
}

/// Whether a process of this group runs. Zombies do not count: the process that adopts an orphan
/// reaps it.
fn group_lives(group: i32) -> bool {
    processes().any(|(_, state, _, of)| of == group && state != 'Z' && state != 'X')
}

/// All processes, read from `/proc`: pid, state, parent, group.
fn processes() -> impl Iterator<Item = (i32, char, i32, i32)> {
    fs::read_dir("/proc").unwrap().filter_map(|entry| {
        let pid = entry.ok()?.file_name().to_str()?.parse().ok()?;
        let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let mut fields = text.rsplit_once(')')?.1.split_whitespace();
        let state = fields.next()?.chars().next()?;
        Some((pid, state, fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
    })
}

/// The children of a process, zombies included.
pub fn children_of(parent: i32) -> Vec<i32> {
    processes().filter(|&(_, _, of, _)| of == parent).map(|(pid, ..)| pid).collect()
}

/// Whether a process runs and is not a zombie.
pub fn is_running(pid: i32) -> bool {
    processes().any(|(each, state, ..)| each == pid && state != 'Z' && state != 'X')
}

/// The threads of a process, each with the kernel function that it waits in, and its children.
fn threads_and_children(pid: i32) -> String {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let threads = tasks.map(|task| {
        let read = |name| fs::read_to_string(task.path().join(name)).unwrap_or_default();
        format!("{} waits in {}", read("comm").trim(), read("wchan"))
    });
    format!("{}; children {:?}", threads.collect::<Vec<_>>().join(", "), children_of(pid))
}

/// The open descriptors of a process, each with the target of its link in `/proc`.
pub fn descriptors_of(pid: i32) -> Vec<(i32, String)> {
    let entries = fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    let mut found: Vec<_> = entries
        .filter_map(|entry| {
            let entry = entry.ok()?;
            let number = entry.file_name().to_str()?.parse().ok()?;
            Some((number, fs::read_link(entry.path()).ok()?.to_string_lossy().into_owned()))
        })
        .collect();
    found.sort();
    found
}

/// How many threads a process has.
pub fn threads_of(pid: i32) -> usize {
    fs::read_dir(format!("/proc/{pid}/task")).map_or(0, Iterator::count)
}

fn address_of(url: &str) -> (Domain, SockAddr) {
    match url.parse().unwrap() {
        Endpoint::Tcp { host, port } | Endpoint::Udp { host, port } => {
            let address = std::net::SocketAddr::new(host.parse().unwrap(), port);
            (Domain::for_address(address), address.into())
        }
        Endpoint::Unix(path) | Endpoint::UnixDatagram(path) => {
            (Domain::UNIX, SockAddr::unix(path).unwrap())
        }
        _ => unreachable!(),
    }
}

/// A client of a TCP or Unix stream listener.
#[derive(Debug)]
pub struct Stream {
    pub socket: Socket,
}

/// Connects to a server's URL.
pub fn connect(url: &str) -> Stream {
    try_connect(url).unwrap()
}

pub fn try_connect(url: &str) -> io::Result<Stream> {
    let (domain, address) = address_of(url);
    let socket = Socket::new(domain, Type::STREAM, None)?;
    socket.set_read_timeout(Some(DEADLINE))?;
    socket.set_write_timeout(Some(DEADLINE))?;
    if domain != Domain::UNIX {
        socket.set_tcp_nodelay(true)?;
    }
    // With a full queue of a Unix listener, this call blocks.
    socket.connect(&address)?;
    Ok(Stream { socket })
}

impl Stream {
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) -> &mut Self {
        self.socket.write_all(bytes.as_ref()).unwrap();
        self
    }

    /// Shuts down its sending direction.
    pub fn end(&mut self) -> &mut Self {
        self.socket.shutdown(Shutdown::Write).unwrap();
        self
    }

    pub fn expect(&mut self, expected: impl AsRef<[u8]>) -> &mut Self {
        let expected = expected.as_ref();
        let mut reply = vec![0; expected.len()];
        if let Err(error) = self.socket.read_exact(&mut reply) {
            panic!("expected {}: {error}", shown(expected));
        }
        assert!(reply == expected, "received {}, expected {}", shown(&reply), shown(expected));
        self
    }

    /// Reads until the server has closed the connection without a reset.
    pub fn read_to_end(&mut self) -> Vec<u8> {
        let mut reply = Vec::new();
        self.socket.read_to_end(&mut reply).unwrap();
        reply
    }

    /// The server has closed the connection without a reset, and has sent nothing more.
    pub fn expect_end(&mut self) {
        let rest = self.read_to_end();
        assert!(rest.is_empty(), "expected the end of the stream, received {}", shown(&rest));
    }

    /// The server has closed the connection, with a reset or without.
    pub fn expect_gone(&mut self) {
        let mut rest = [0; 4096];
        loop {
            match self.socket.read(&mut rest) {
                Ok(0) => return,
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    panic!("the connection is still open")
                }
                Err(_) => return,
            }
        }
    }

    /// Sends `bytes` on a second thread, and expects them back.
    pub fn expect_echo(&mut self, bytes: &[u8]) -> &mut Self {
        let mut writer = self.socket.try_clone().unwrap();
        thread::scope(|scope| {
            scope.spawn(move || writer.write_all(bytes).unwrap());
            self.expect(bytes);
        });
        self
    }

    /// Closes the connection, with a reset if the transport has one.
    pub fn reset(self) {
        let _ = self.socket.set_linger(Some(Duration::ZERO));
    }
}

/// The length and the first 100 bytes, escaped, for a message.
pub fn shown(bytes: &[u8]) -> String {
    let end = if bytes.len() > 100 { "…" } else { "" };
    format!("{} bytes {}{end}", bytes.len(), bytes[..bytes.len().min(100)].escape_ascii())
}

/// A client on a UDP or Unix datagram socket that has an address to reply to.
#[derive(Debug)]
pub struct Datagrams {
    pub socket: Socket,
    server: SockAddr,
    /// The path that a Unix client is bound to.
    pub path: Option<PathBuf>,
}

impl Datagrams {
    pub fn new(url: &str, directory: &Directory) -> Self {
        static MADE: AtomicUsize = AtomicUsize::new(0);
        let mut client = Self::unbound(url);
        if client.server.is_unix() {
            let path = directory.join(&format!("client-{}", MADE.fetch_add(1, SeqCst)));
            client.socket.bind(&SockAddr::unix(&path).unwrap()).unwrap();
            client.path = Some(path);
        }
        client
    }

    /// A client without an address of its own; UDP binds one at the first send.
    pub fn unbound(url: &str) -> Self {
        let (domain, server) = address_of(url);
        let socket = Socket::new(domain, Type::DGRAM, None).unwrap();
        socket.set_read_timeout(Some(DEADLINE)).unwrap();
        socket.set_write_timeout(Some(DEADLINE)).unwrap();
        Datagrams { socket, server, path: None }
    }

    pub fn send(&self, bytes: impl AsRef<[u8]>) -> &Self {
        let bytes = bytes.as_ref();
        assert_eq!(self.socket.send_to(bytes, &self.server).unwrap(), bytes.len());
        self
    }

    pub fn receive(&self) -> Vec<u8> {
        let mut buffer = vec![0; 300_000];
        match (&self.socket).read(&mut buffer) {
            Ok(count) => buffer.truncate(count),
            Err(error) => panic!("no datagram: {error}"),
        }
        buffer
    }

    pub fn expect(&self, expected: impl AsRef<[u8]>) -> &Self {
        let reply = self.receive();
        let expected = expected.as_ref();
        assert!(reply == expected, "received {}, expected {}", shown(&reply), shown(expected));
        self
    }

    /// No datagram waits to be received.
    pub fn expect_nothing_else(&self) {
        self.socket.set_nonblocking(true).unwrap();
        let error = (&self.socket).read(&mut [0; 64]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::WouldBlock);
        self.socket.set_nonblocking(false).unwrap();
    }
}

/// A Unix socket at which a handler in any process waits until the test releases it: the handler
/// calls [`wait_at_gate`], the test calls [`Gate::expect_arrival`].
#[derive(Debug)]
pub struct Gate {
    listener: Socket,
}

/// A process that waits at a gate. Dropping this releases it.
#[derive(Debug)]
pub struct Arrival {
    stream: Socket,
    /// The process's own pid, as it reported it.
    pub pid: i32,
}

impl Gate {
    /// Binds a gate at a path.
    pub fn at(path: &Path) -> Self {
        let listener = Socket::new(Domain::UNIX, Type::STREAM, None).unwrap();
        listener.bind(&SockAddr::unix(path).unwrap()).unwrap();
        listener.listen(1024).unwrap();
        // This limits accept, too.
        listener.set_read_timeout(Some(DEADLINE)).unwrap();
        Gate { listener }
    }

    pub fn expect_arrival(&self) -> Arrival {
        let (mut stream, _) = self.listener.accept().expect("an arrival within the deadline");
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        let mut pid = [0; 4];
        stream.read_exact(&mut pid).unwrap();
        Arrival { stream, pid: i32::from_ne_bytes(pid) }
    }

    /// No process waits at the gate.
    pub fn expect_no_arrival(&self) {
        self.listener.set_nonblocking(true).unwrap();
        assert_eq!(self.listener.accept().unwrap_err().kind(), ErrorKind::WouldBlock);
        self.listener.set_nonblocking(false).unwrap();
    }
}

impl Arrival {
    /// Lets the process continue.
    pub fn release(self) {}

    /// The process has exited.
    pub fn expect_gone(mut self) {
        match self.stream.read(&mut [0]) {
            Ok(0) => {}
            Err(error) if error.kind() != ErrorKind::WouldBlock => {}
            other => panic!("process {} still runs: {other:?}", self.pid),
        }
    }
}

/// Waits, for at most a minute, until the test releases this process.
pub fn wait_at_gate(path: &Path) {
    let mut stream = std::os::unix::net::UnixStream::connect(path).unwrap();
    stream.set_read_timeout(Some(2 * DEADLINE)).unwrap();
    stream.write_all(&(std::process::id() as i32).to_ne_bytes()).unwrap();
    // A signal does not release it.
    while stream.read(&mut [0]).is_err_and(|error| error.kind() == ErrorKind::Interrupted) {}
}

/// Prints the addresses of a server, as the examples do.
pub fn announce(addresses: &[Address]) {
    let mut stdout = io::stdout().lock();
    for address in addresses {
        writeln!(stdout, "listening on {address}").unwrap();
    }
    stdout.flush().unwrap();
}

/// The descriptors, threads and children of a process, which a server must release.
#[derive(Debug, PartialEq, Eq)]
pub struct Resources {
    descriptors: usize,
    threads: usize,
    children: Vec<i32>,
}

impl Resources {
    pub fn of_this_process() -> Self {
        let pid = std::process::id() as i32;
        Resources {
            descriptors: descriptors_of(pid).len(),
            threads: threads_of(pid),
            children: children_of(pid),
        }
    }

    /// Waits until this process has exactly these again.
    pub fn wait_until_restored(&self) {
        let deadline = Instant::now() + DEADLINE / 2;
        loop {
            let now = Resources::of_this_process();
            if now == *self {
                return;
            }
            if Instant::now() >= deadline {
                let open = descriptors_of(std::process::id() as i32);
                panic!("resources leak: {now:?} instead of {self:?}: {open:?}");
            }
            thread::sleep(Duration::from_millis(1));
        }
    }
}
