//! What a server does with descriptors: it loses none, and lives on when there are no more. Each
//! server here is a process of its own, this test's program started again.

mod support;

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use socketserver::{Mode, Peer, Server, handler_fn};
use support::*;

/// Set where this program is to be a server.
const ROLE: &str = "SOCKETSERVER_TEST_ROLE";

/// A server process, killed when it is dropped.
struct Process {
    child: Child,
    address: SocketAddr,
}

/// Starts this program as a server that may have so many descriptors.
fn start_process(role: &str, descriptors: u32) -> Process {
    let program = std::env::current_exe().unwrap();
    let mut child = Command::new("sh")
        .arg("-c")
        .arg(format!("ulimit -n {descriptors} && exec \"$0\" --exact be_a_server --nocapture"))
        .arg(program)
        .env(ROLE, role)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut told = BufReader::new(child.stdout.take().unwrap()).lines();
    let address = told.by_ref().map(Result::unwrap).find_map(|line| {
        let (_, address) = line.split_once("listening on ")?;
        address.parse().ok()
    });
    // What else it tells is read, so that it never blocks on it.
    std::thread::spawn(move || told.for_each(drop));
    Process { child, address: address.expect("it listens") }
}

impl Process {
    /// How many descriptors it has.
    fn descriptors(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.child.id())).unwrap().count()
    }

    /// How many clock ticks of processor time it has used.
    fn ticks(&self) -> u64 {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap();
        // The name, in brackets, may hold anything.
        let (_, fields) = stat.rsplit_once(')').unwrap();
        let fields: Vec<_> = fields.split_whitespace().collect();
        fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
    }

    fn expect_alive(&mut self) {
        assert!(self.child.try_wait().unwrap().is_none(), "it lives");
        connect(self.address).send("hello").expect_reply("hello");
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Not a test: what the other tests start.
#[test]
fn be_a_server() {
    let Ok(role) = std::env::var(ROLE) else {
        return;
    };
    let builder = Server::tcp("127.0.0.1:0").unwrap();
    let make = |_: &Peer| {
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
    if root != "/" {
        std::os::unix::fs::chroot(root).unwrap();
        std::env::set_current_dir("/").unwrap();
    }
    let mut told = std::io::stdout().lock();
    use std::io::Write as _;
    writeln!(told, "listening on {}", server.local_addr().inet().unwrap()).unwrap();
    drop(told);
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
        // Those that are served are served on.
        let mut first = clients;
        first[0].send("still here").expect_reply("still here");
        let before = server.ticks();
        std::thread::sleep(Duration::from_secs(1));
        let used = server.ticks() - before;
        assert!(used <= 10, "{used} ticks of 100 in a second, for clients that do nothing");
        assert!(server.child.try_wait().unwrap().is_none(), "it lives");
        drop(first);
        wait_until("the descriptors are free again", || server.descriptors() < 20);
        server.expect_alive();
    }
}

/// Whether the server answers, rather than close the connection.
fn is_answered(client: &mut Client) -> bool {
    matches!(client.send("x").stream.read(&mut [0]), Ok(1))
}

/// Connects until the server has no descriptor left; those that it serves.
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

/// A listener without descriptors turns clients away, and pauses after that for longer each time, up
/// to a second. Clients that come meanwhile wait.
#[test]
#[cfg(target_os = "linux")]
fn clients_that_wait_for_a_descriptor_are_served_with_those_that_become_free() {
    for role in ["reactor", "offload", "threading"] {
        let server = start_process(role, 40);
        let mut served = use_up_the_descriptors(&server);
        let succeeded = (0..10).any(|_| {
            // Seven are turned away, one after the other, so that the pause is long; where an attempt
            // before has left a descriptor, one of them gets it.
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
        assert!(succeeded, "under {role}: each of three has the descriptor of one that went");
    }
}

#[test]
#[cfg(target_os = "linux")]
fn a_server_without_descriptors_turns_clients_away_after_chroot_too() {
    if fs::metadata("/proc/self").unwrap().uid() != 0 {
        return; // chroot(2) takes a privilege.
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

/// Comes, and goes by a reset in one of the states that a connection can be in.
fn come_and_reset(address: SocketAddr, state: usize) {
    let mut client = connect(address);
    match state % 6 {
        // Before anything is sent; perhaps before it is accepted.
        0 => {}
        // With a request under way.
        1 => _ = client.send("hello"),
        // With a reply unread.
        2 => _ = client.send("hello").expect_reply("hel"),
        // With much under way in both directions.
        3 => _ = client.send(pattern(256 << 10)),
        // After its end.
        4 => _ = client.send("hello").end(),
        // While the server closes.
        _ => _ = client.send("close").send("unread"),
    }
    client.reset();
}

#[test]
#[cfg(target_os = "linux")]
fn resets_in_every_state_lose_no_descriptor() {
    for role in ["reactor", "offload"] {
        let mut server = start_process(role, 1000);
        server.expect_alive();
        wait_until("nobody is connected", || server.descriptors() < 20);
        let before = server.descriptors();
        for state in 0..1500 {
            come_and_reset(server.address, state);
        }
        server.expect_alive();
        wait_until("every descriptor is back", || server.descriptors() <= before);
    }
}

#[test]
fn resets_in_every_state_lose_no_connection() {
    let server = Server::tcp("127.0.0.1:0").unwrap();
    let (make, told) = tellers(echo);
    let server = start_server(server.serve(make).unwrap());
    for state in 0..600 {
        come_and_reset(server.address(), state);
    }
    server.connect().send("hello").expect_reply("hello").end().expect_closed();
    server.wait_for_no_connection();
    let counters = server.counters();
    assert_eq!((counters.panics, counters.handler_errors), (0, 0));
    let (server, report) = server.stop();
    assert_eq!((report.idle, report.finished, report.aborted), (0, 0, 0));
    drop(server);
    let told: Vec<_> = told.iter().collect();
    let count = |wanted: fn(&Told) -> bool| told.iter().filter(|told| wanted(told)).count();
    let opened = count(|told| *told == Told::Open);
    assert_eq!(opened, count(|told| matches!(told, Told::Close(_))), "each is told its end once");
}
