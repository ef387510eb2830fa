//! A server leaks no descriptor, and continues to run when it has none left. Each server here runs
//! in a process of its own: the test program started again.

mod support;

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use socketserver::{Accepted, Mode, Server, handler_fn};
use support::*;

/// The environment variable that makes this program a server, with its mode and root directory.
const ROLE: &str = "SOCKETSERVER_TEST_ROLE";

/// A server process. Dropping it kills it.
struct Process {
    child: Child,
    address: SocketAddr,
}

/// Starts this program as a server that can open `descriptors` descriptors.
fn start_process(role: &str, descriptors: u32) -> Process {
    let program = std::env::current_exe().unwrap();
    let mut child = Command::new("sh")
        .arg("-c")
        .arg(format!("ulimit -n {descriptors} && exec \"$0\" --exact entry_point_of_server_processes --nocapture"))
        .arg(program)
        .env(ROLE, role)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let address = lines.by_ref().map(Result::unwrap).find_map(|line| {
        let (_, address) = line.split_once("listening on ")?;
        address.parse().ok()
    });
    // Read the rest of its output, so that it never blocks on the pipe.
    std::thread::spawn(move || lines.for_each(drop));
    Process { child, address: address.expect("a line with its address") }
}

impl Process {
    /// The number of its open descriptors.
    fn descriptors(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.child.id())).unwrap().count()
    }

    /// The processor time that it has used, in clock ticks.
    fn ticks(&self) -> u64 {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap();
        // The name, in brackets, may contain spaces.
        let (_, fields) = stat.rsplit_once(')').unwrap();
        let fields: Vec<_> = fields.split_whitespace().collect();
        fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
    }

    fn expect_alive(&mut self) {
        assert!(self.child.try_wait().unwrap().is_none(), "the server has exited");
        connect(self.address).send("hello").expect_reply("hello");
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Not a test: the entry point of the servers that the tests start.
#[test]
fn entry_point_of_server_processes() {
    let Ok(role) = std::env::var(ROLE) else {
        return;
    };
    let builder = Server::tcp("127.0.0.1:0").unwrap();
    let make = |_: &Accepted<'_>| {
        handler_fn(|message, cx| match message {
            b"close" => {
                cx.close();
                Ok(())
            }
            _ => cx.send(message),
        })
    };
    let (mode, root) = role.split_once(' ').unwrap_or((&role, "/"));
    let mode = mode.parse::<Mode>().unwrap().workers(4);
    let mut server = builder.mode(mode).serve(make).unwrap();
    // By default it would stop accepting before descriptors run out.
    server.max_connections(None);
    if root != "/" {
        std::os::unix::fs::chroot(root).unwrap();
        std::env::set_current_dir("/").unwrap();
    }
    let mut stdout = std::io::stdout().lock();
    use std::io::Write as _;
    writeln!(stdout, "listening on {}", server.local_addr().inet().unwrap()).unwrap();
    drop(stdout);
    server.serve_forever().unwrap();
}

#[test]
#[cfg(target_os = "linux")]
fn a_server_without_descriptors_neither_dies_nor_spins_and_serves_again() {
    for role in ["reactor", "offload"] {
        let mut server = start_process(role, 40);
        server.expect_alive();
        let clients: Vec<_> = (0..120).map(|_| connect(server.address)).collect();
        wait_until("its descriptors are used up", || server.descriptors() >= 38);
        // Clients that are already served continue to be served.
        let mut first = clients;
        first[0].send("still here").expect_reply("still here");
        let before = server.ticks();
        std::thread::sleep(Duration::from_secs(1));
        let used = server.ticks() - before;
        assert!(used <= 10, "idle clients cost {used} of 100 ticks in a second");
        assert!(server.child.try_wait().unwrap().is_none(), "the server has exited");
        drop(first);
        wait_until("the descriptors are free again", || server.descriptors() < 20);
        server.expect_alive();
    }
}

/// Whether the server answers; otherwise it has closed the connection.
fn is_answered(client: &mut Client) -> bool {
    matches!(client.send("x").stream.read(&mut [0]), Ok(1))
}

/// Connects clients until the server has no descriptor left; returns those that it serves.
fn use_up_the_descriptors(server: &Process) -> Vec<Client> {
    let mut served = Vec::new();
    loop {
        let mut client = connect(server.address);
        if !is_answered(&mut client) {
            return served;
        }
        served.push(client);
    }
}

/// A listener without descriptors closes new connections, and then pauses for longer each time, up
/// to a second. Clients that connect during the pause wait in the kernel.
#[test]
#[cfg(target_os = "linux")]
fn waiting_clients_are_served_when_descriptors_become_free() {
    for role in ["reactor", "offload", "threading"] {
        let server = start_process(role, 40);
        let mut served = use_up_the_descriptors(&server);
        let succeeded = (0..10).any(|_| {
            // Seven are closed, one after the other, so that the pause is long; if an earlier
            // attempt has left a descriptor free, one of them is served.
            for _ in 0..7 {
                let mut client = connect(server.address);
                if is_answered(&mut client) {
                    served.push(client);
                }
            }
            let waiting = [(); 3].map(|()| connect(server.address));
            waiting.into_iter().all(|mut client| {
                drop(served.remove(0));
                let is_served = is_answered(&mut client);
                served.push(client);
                is_served
            })
        });
        assert!(succeeded, "under {role}: each of three waiting clients gets a freed descriptor");
    }
}

#[test]
#[cfg(target_os = "linux")]
fn a_server_without_descriptors_rejects_clients_after_chroot_too() {
    if fs::metadata("/proc/self").unwrap().uid() != 0 {
        return; // Only root may call chroot(2).
    }
    let root = std::env::temp_dir().join(format!("sock-root-{}", std::process::id()));
    fs::create_dir_all(&root).unwrap();
    let server = start_process(&format!("reactor {}", root.display()), 40);
    let served = use_up_the_descriptors(&server);
    for _ in 0..4 {
        connect(server.address).expect_gone();
    }
    drop((served, server));
    fs::remove_dir(&root).unwrap();
}

/// Connects, and resets the connection in one of six states.
fn connect_and_reset(address: SocketAddr, state: usize) {
    let mut client = connect(address);
    match state % 6 {
        // Before anything is sent, and perhaps before the accept.
        0 => {}
        // With a request in transit.
        1 => _ = client.send("hello"),
        // With a reply unread.
        2 => _ = client.send("hello").expect_reply("hel"),
        // With many bytes in transit in both directions.
        3 => _ = client.send(pattern(256 << 10)),
        // After FIN.
        4 => _ = client.send("hello").end(),
        // While the server closes.
        _ => _ = client.send("close").send("unread"),
    }
    client.reset();
}

#[test]
#[cfg(target_os = "linux")]
fn resets_in_every_state_leak_no_descriptor() {
    for role in ["reactor", "offload"] {
        let mut server = start_process(role, 1000);
        server.expect_alive();
        wait_until("no client is connected", || server.descriptors() < 20);
        let before = server.descriptors();
        for state in 0..1500 {
            connect_and_reset(server.address, state);
        }
        server.expect_alive();
        wait_until("all descriptors are closed", || server.descriptors() <= before);
    }
}

#[test]
fn after_resets_in_every_state_each_connection_is_closed_once() {
    let server = Server::tcp("127.0.0.1:0").unwrap();
    let (make, calls) = recorders(echo);
    let server = start_server(server.serve(make).unwrap());
    for state in 0..600 {
        connect_and_reset(server.address(), state);
    }
    server.connect().send("hello").expect_reply("hello").end().expect_closed();
    server.wait_for_no_connection();
    let counters = server.counters();
    assert_eq!((counters.panics, counters.handler_errors), (0, 0));
    let (server, report) = server.stop();
    assert_eq!((report.idle, report.finished, report.aborted), (0, 0, 0));
    drop(server);
    let calls: Vec<_> = calls.iter().collect();
    let count = |wanted: fn(&Call) -> bool| calls.iter().filter(|call| wanted(call)).count();
    let opened = count(|call| *call == Call::Open);
    assert_eq!(
        opened,
        count(|call| matches!(call, Call::Close(_))),
        "on_close is called once for each"
    );
}
