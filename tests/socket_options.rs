//! The options of the builder: what the system has set afterwards, on the service's socket and on
//! accepted connections, and the error where an option has no meaning.

mod support;

use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpListener, UdpSocket};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::mpsc::{self, Sender};
use std::time::Duration;

use socket2::SockRef;
use socketserver::{
    Accepted, Builder, Error, HandlerResult, Hooks, Inline, Interface, Lines, Mode, Peer, Request,
    RequestHandler, Server, Service, Threading, handler_fn,
};
use support::{DEADLINE, start_server};

/// A directory that goes with the test.
struct Directory(PathBuf);

fn directory() -> Directory {
    static MADE: AtomicUsize = AtomicUsize::new(0);
    let number = MADE.fetch_add(1, SeqCst);
    let path = std::env::temp_dir().join(format!("options-{}-{number}", std::process::id()));
    std::fs::create_dir_all(&path).unwrap();
    Directory(path)
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

type Set = fn(Builder) -> Builder;

const GROUP: Ipv4Addr = Ipv4Addr::new(239, 255, 71, 1);
const GROUP6: Ipv6Addr = Ipv6Addr::new(0xff15, 0, 0, 0, 0, 0, 0, 71);
const SECOND: Duration = Duration::from_secs(1);

/// Those that are for UDP alone.
const OF_UDP: [(&str, Set); 7] = [
    ("packet_info", |builder| builder.packet_info(true)),
    ("join_multicast", |builder| builder.join_multicast(GROUP, Ipv4Addr::LOCALHOST)),
    ("multicast_interface", |builder| builder.multicast_interface(Ipv4Addr::LOCALHOST)),
    ("multicast_loop", |builder| builder.multicast_loop(true)),
    ("multicast_ttl", |builder| builder.multicast_ttl(1)),
    ("broadcast", |builder| builder.broadcast(true)),
    ("ttl", |builder| builder.ttl(64)),
];

fn service(builder: Builder) -> Result<Service, Error> {
    builder.service(|_: &Accepted<'_>| handler_fn(|message, cx| cx.send(message)))
}

/// The option and the address that an error names, and what is wrong with it.
#[track_caller]
fn refused<T>(made: Result<T, Error>) -> (&'static str, String, ErrorKind) {
    match made.map(drop).unwrap_err() {
        Error::Option { option, address, source } => (option, address, source.kind()),
        other => panic!("{other:?}"),
    }
}

/// The option has no meaning for this service.
#[track_caller]
fn expect_meaningless<T>(made: Result<T, Error>, name: &str, scheme: &str) {
    let made = made.map(drop);
    assert!(made.as_ref().unwrap_err().is_usage());
    let (option, address, kind) = refused(made);
    assert_eq!((option, kind), (name, ErrorKind::InvalidInput));
    assert!(address.starts_with(scheme), "{address} is not {scheme}");
}

fn tcp() -> Builder {
    Server::tcp("127.0.0.1:0").unwrap()
}

fn udp() -> Builder {
    Server::udp("127.0.0.1:0").unwrap()
}

#[test]
fn an_option_of_udp_is_refused_for_every_other_transport_and_nothing_is_bound() {
    let directory = directory();
    let path = directory.0.join("socket");
    for (name, set) in OF_UDP {
        expect_meaningless(service(set(tcp())), name, "tcp://127.0.0.1:0");
        let stream = Server::unix_stream(&path).unwrap();
        expect_meaningless(service(set(stream)), name, "unix://");
        let datagram = Server::unix_datagram(&path).unwrap();
        expect_meaningless(set(datagram).bind(), name, "unixgram://");
        assert!(!path.exists(), "after {name}");
        let handed = Server::without_listener().unwrap();
        expect_meaningless(service(set(handed)), name, "unix://");
        drop(service(set(udp())).unwrap_or_else(|error| panic!("{error:#}")));
    }
}

#[test]
fn an_option_of_tcp_is_refused_for_every_other_transport() {
    let of_tcp: [(&str, Set); 3] = [
        ("keepalive", |builder| builder.keepalive(SECOND, SECOND, 1)),
        ("user_timeout", |builder| builder.user_timeout(SECOND)),
        ("defer_accept", |builder| builder.defer_accept(SECOND)),
    ];
    let directory = directory();
    let path = directory.0.join("socket");
    for (name, set) in of_tcp {
        expect_meaningless(service(set(udp())), name, "udp://");
        let stream = Server::unix_stream(&path).unwrap();
        expect_meaningless(service(set(stream)), name, "unix://");
        let datagram = Server::unix_datagram(&path).unwrap();
        expect_meaningless(service(set(datagram)), name, "unixgram://");
        drop(service(set(tcp())).unwrap());
    }
}

#[test]
fn a_files_permissions_are_refused_without_a_file_and_a_shared_port_without_a_port() {
    let directory = directory();
    let path = directory.0.join("socket");
    expect_meaningless(service(tcp().unix_mode(0o600)), "unix_mode", "tcp://");
    expect_meaningless(service(udp().unix_mode(0o600)), "unix_mode", "udp://");
    for builder in [Server::unix_stream(&path), Server::unix_datagram(&path)] {
        expect_meaningless(service(builder.unwrap().reuse_port(true)), "reuse_port", "unix");
    }
}

#[test]
fn what_concerns_the_binding_is_refused_for_a_socket_that_is_bound() {
    let of_binding: [(&str, Set); 3] = [
        ("reuse_address", |builder| builder.reuse_address(true)),
        ("reuse_port", |builder| builder.reuse_port(true)),
        ("dual_stack", |builder| builder.dual_stack(true)),
    ];
    for (name, set) in of_binding {
        expect_meaningless(service(set(tcp().bind().unwrap())), name, "tcp://");
        let made = TcpListener::bind("127.0.0.1:0").unwrap();
        expect_meaningless(service(set(Server::from_socket(made).unwrap())), name, "tcp://");
        // Said before, it is all right, and a second call changes nothing.
        drop(service(set(tcp()).bind().unwrap().bind().unwrap()).unwrap());
    }
    let directory = directory();
    let path = directory.0.join("socket");
    let bound = Server::unix_stream(&path).unwrap().bind().unwrap();
    expect_meaningless(service(bound.unix_mode(0o600)), "unix_mode", "unix://");
}

#[test]
fn one_chain_makes_a_service_of_any_endpoint() {
    let directory = directory();
    let path = directory.0.join("socket").display().to_string();
    let urls = ["tcp://127.0.0.1:0", "udp://[::1]:0", "tcp://[::]:0"].map(str::to_owned);
    let files = [format!("unix://{path}"), format!("unixgram://{path}.datagram")];
    for url in urls.into_iter().chain(files) {
        let service = Server::endpoint(&url.parse().unwrap())
            .unwrap()
            .nodelay(true)
            .dual_stack(true)
            .reuse_address(true)
            .request_queue_size(10)
            .max_packet_size(1000)
            .write_watermarks(1000, 100)
            .framing(Lines::default())
            .mode(Mode::default())
            .service(|_: &Accepted<'_>| handler_fn(|message, cx| cx.send(message)));
        drop(service.unwrap_or_else(|error| panic!("{url}: {error:#}")));
    }
}

/// Does nothing.
struct Idle;

impl RequestHandler for Idle {
    fn handle(&mut self, _: &mut Request<'_>) -> HandlerResult {
        Ok(())
    }
}

#[test]
fn write_water_marks_are_refused_for_a_blocking_handler() {
    let made = tcp().write_watermarks(2, 1).mode(Inline).serve_blocking(|_: &Accepted<'_>| Idle);
    expect_meaningless(made, "write_watermarks", "tcp://");
    tcp().mode(Threading::default()).serve_blocking(|_: &Accepted<'_>| Idle).unwrap();
}

/// The socket of a service over UDP.
fn bound(address: &str, set: Set) -> Builder {
    let builder = set(Server::udp(address).unwrap().dual_stack(address.starts_with("[::]")));
    builder.bind().unwrap_or_else(|error| panic!("{address}: {error:#}"))
}

#[test]
fn the_options_of_udp_are_set_for_both_families_of_a_dual_stack_socket() {
    let set: Set = |builder| {
        builder.ttl(7).multicast_ttl(9).multicast_loop(false).broadcast(true).multicast_interface(1)
    };
    for address in ["0.0.0.0:0", "[::1]:0", "[::]:0"] {
        let builder = bound(address, set);
        let fd = builder.socket().unwrap();
        let socket = SockRef::from(&fd);
        assert!(socket.broadcast().unwrap());
        if !address.starts_with("[::1]") {
            assert_eq!(socket.ttl_v4().unwrap(), 7, "{address}");
            assert_eq!(socket.multicast_ttl_v4().unwrap(), 9, "{address}");
            assert!(!socket.multicast_loop_v4().unwrap(), "{address}");
        }
        if address.starts_with('[') {
            assert_eq!(socket.unicast_hops_v6().unwrap(), 7, "{address}");
            assert_eq!(socket.multicast_hops_v6().unwrap(), 9, "{address}");
            assert!(!socket.multicast_loop_v6().unwrap(), "{address}");
            assert_eq!(socket.multicast_if_v6().unwrap(), 1, "{address}");
        }
    }
    let builder = bound("0.0.0.0:0", |builder| builder.multicast_interface(Ipv4Addr::LOCALHOST));
    let fd = builder.socket().unwrap();
    assert_eq!(SockRef::from(&fd).multicast_if_v4().unwrap(), Ipv4Addr::LOCALHOST);
}

#[test]
fn options_that_are_set_after_the_binding_or_on_a_socket_made_elsewhere_are_set_all_the_same() {
    let server = alone(bound("127.0.0.1:0", |builder| builder).ttl(7));
    assert_eq!(option_of(&server, |socket| socket.ttl_v4().unwrap()), 7);
    let made = UdpSocket::bind("127.0.0.1:0").unwrap();
    let server = alone(Server::from_socket(made).unwrap().ttl(9).broadcast(true));
    assert_eq!(option_of(&server, |socket| socket.ttl_v4().unwrap()), 9);
    assert!(option_of(&server, |socket| socket.broadcast().unwrap()));
    let made = TcpListener::bind("127.0.0.1:0").unwrap();
    let server = alone(Server::from_socket(made).unwrap().nodelay(true));
    assert!(option_of(&server, |socket| socket.tcp_nodelay().unwrap()));
    for nodelay in [true, false] {
        let server = alone(tcp().nodelay(nodelay));
        assert_eq!(option_of(&server, |socket| socket.tcp_nodelay().unwrap()), nodelay);
    }
}

fn alone(builder: Builder) -> Server {
    let mut server = Server::new().unwrap();
    server.add(service(builder).unwrap()).unwrap();
    server
}

fn option_of<T>(server: &Server, option: impl Fn(&SockRef<'_>) -> T) -> T {
    let fd = server.listener_fd(server.listeners()[0]).unwrap();
    option(&SockRef::from(&fd))
}

#[test]
fn a_value_that_the_system_does_not_take_is_an_error_with_the_name_of_the_option() {
    let values: [(&str, Set); 4] = [
        ("ttl", |builder| builder.ttl(0)),
        ("ttl", |builder| builder.ttl(256)),
        ("multicast_ttl", |builder| builder.multicast_ttl(256)),
        ("join_multicast", |builder| builder.join_multicast(GROUP, 999_999)),
    ];
    for (name, set) in values {
        let (option, address, _) = refused(service(set(udp())));
        assert_eq!((option, &*address), (name, "udp://127.0.0.1:0"));
    }
    let (option, ..) = refused(service(tcp().keepalive(Duration::ZERO, SECOND, 1)));
    assert_eq!(option, "keepalive");
    let error = service(udp().ttl(256)).unwrap_err();
    assert_eq!(error.to_string(), "cannot set ttl on udp://127.0.0.1:0");
    assert!(format!("{error:#}").contains("nvalid argument"), "{error:#}");
}

#[test]
fn a_group_of_another_family_or_none_at_all_is_refused() {
    let group = |address: &str, dual: bool, group: IpAddr, interface: Interface| {
        let builder = Server::udp(address).unwrap().dual_stack(dual);
        service(builder.join_multicast(group, interface))
    };
    let default = Interface::default();
    for (address, dual, of, interface) in [
        ("0.0.0.0:0", false, GROUP6.into(), default),
        ("[::]:0", false, GROUP.into(), default),
        ("0.0.0.0:0", false, Ipv4Addr::LOCALHOST.into(), default),
        ("[::]:0", true, Ipv6Addr::LOCALHOST.into(), default),
        ("[::]:0", true, GROUP6.into(), Ipv4Addr::LOCALHOST.into()),
    ] {
        expect_meaningless(group(address, dual, of, interface), "join_multicast", "udp://");
    }
    let by_address = Server::udp("[::]:0").unwrap().multicast_interface(Ipv4Addr::LOCALHOST);
    expect_meaningless(service(by_address), "multicast_interface", "udp://");
}

#[test]
fn an_interface_has_a_name() {
    if !Path::new("/sys/class/net/lo").exists() {
        eprintln!("skipped: there is no interface `lo`");
        return;
    }
    let index = std::fs::read_to_string("/sys/class/net/lo/ifindex").unwrap();
    assert_eq!(Interface::named("lo").unwrap(), index.trim().parse::<u32>().unwrap().into());
    for name in ["no-such-interface", "", "l\0o"] {
        assert!(Interface::named(name).is_err(), "{name:?}");
    }
}

/// Tells what is set on accepted connections.
struct Tell(Sender<(bool, Duration, Duration, u32)>);

impl Hooks for Tell {
    fn on_accept(&mut self, connection: BorrowedFd<'_>, _: &Peer) -> std::io::Result<()> {
        let socket = SockRef::from(&connection);
        let times = (socket.tcp_keepalive_time()?, socket.tcp_keepalive_interval()?);
        let told = (socket.keepalive()?, times.0, times.1, socket.tcp_keepalive_retries()?);
        self.0.send(told).map_err(std::io::Error::other)
    }
}

#[test]
fn accepted_connections_inherit_keepalive_from_the_listener() {
    // By address, and on a socket that was made elsewhere and listens already.
    let made = || OwnedFd::from(TcpListener::bind("127.0.0.1:0").unwrap());
    for builder in [tcp(), Server::from_socket(made()).unwrap(), tcp().bind().unwrap()] {
        let (tell, told) = mpsc::channel();
        let mut server = Server::new().unwrap();
        let service = builder
            .keepalive(Duration::from_millis(41_500), Duration::from_secs(7), 3)
            .hooks(Tell(tell))
            .service(|_: &Accepted<'_>| handler_fn(|message, cx| cx.send(message)));
        server.add(service.unwrap()).unwrap();
        let server = start_server(server);
        let _client = server.connect();
        let (enabled, idle, interval, retries) = told.recv_timeout(DEADLINE).unwrap();
        assert!(enabled);
        assert_eq!((idle, interval, retries), (42 * SECOND, 7 * SECOND, 3));
    }
    // By default it is off.
    let (tell, told) = mpsc::channel();
    let mut server = Server::new().unwrap();
    let service = tcp().hooks(Tell(tell)).service(|_: &Accepted<'_>| handler_fn(|_, _| Ok(())));
    server.add(service.unwrap()).unwrap();
    let server = start_server(server);
    let _client = server.connect();
    assert!(!told.recv_timeout(DEADLINE).unwrap().0);
}

/// Tells the user timeout of accepted connections, in milliseconds.
struct TellUserTimeout(Sender<Option<Duration>>);

impl Hooks for TellUserTimeout {
    fn on_accept(&mut self, connection: BorrowedFd<'_>, _: &Peer) -> std::io::Result<()> {
        let timeout = SockRef::from(&connection).tcp_user_timeout()?;
        self.0.send(timeout).map_err(std::io::Error::other)
    }
}

#[test]
fn accepted_connections_inherit_the_user_timeout_from_the_listener() {
    let timeouts = [(Some(Duration::from_micros(41_500_001)), Some(Duration::from_millis(41_501)))];
    // By default one and a half times the write timeout.
    let by_default = (None, Some(Duration::from_secs(90)));
    for (set, expected) in timeouts.into_iter().chain([by_default]) {
        let (tell, told) = mpsc::channel();
        let builder = match set {
            Some(timeout) => tcp().user_timeout(timeout),
            None => tcp(),
        };
        let mut server = Server::new().unwrap();
        let service = builder
            .hooks(TellUserTimeout(tell))
            .service(|_: &Accepted<'_>| handler_fn(|_, _| Ok(())));
        server.add(service.unwrap()).unwrap();
        let server = start_server(server);
        let _client = server.connect();
        assert_eq!(told.recv_timeout(DEADLINE).unwrap(), expected);
    }
}

#[test]
fn a_client_is_accepted_when_its_first_data_arrives_if_the_kernel_defers_it() {
    let server = start_server(alone(tcp().defer_accept(Duration::from_secs(60))));
    let mut client = server.connect();
    client.expect_silence();
    assert_eq!(server.counters().accepted, 0, "it has sent nothing");
    client.send("hello").expect_reply("hello");
    server.wait_for("it is counted", |counters| counters.accepted == 1);
}
