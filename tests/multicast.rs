//! Multicast and broadcast over the loopback interface: groups that are joined and groups that are not,
//! datagrams to a group, and where a reply to one comes from.

mod support;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6, UdpSocket};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, OnceLock};

use socket2::{Domain, InterfaceIndexOrAddress, SockRef, Socket, Type};
use socketserver::{
    Accepted, Address, Builder, Context, Error, Handler, HandlerResult, Interface, Peer, Server,
};
use support::{DEADLINE, TestServer, start_server};

const LOOPBACK: Ipv4Addr = Ipv4Addr::LOCALHOST;

/// A group of this test run: the tests of two runs at a time are not to hear each other.
fn group(number: u8) -> Ipv4Addr {
    let [_, _, high, low] = std::process::id().to_be_bytes();
    Ipv4Addr::new(239, 192 + (number & 63), high, low)
}

/// A server of one service, unless the system has no multicast.
fn made(builder: Builder, handler: impl Fn() -> Relay + Send + 'static) -> Option<Server> {
    let make = move |accepted: &Accepted<'_>| {
        let at = Some((accepted.local_addr().unwrap(), accepted.interface()));
        Relay { at, ..handler() }
    };
    match builder.serve(make) {
        Ok(server) => Some(server),
        Err(error @ Error::Option { .. }) => {
            eprintln!("skipped: the system has no multicast here: {error:#}");
            None
        }
        Err(error) => panic!("{error:#}"),
    }
}

/// Tells what it receives and where that was sent to, answers, and sends on to a group.
#[derive(Clone)]
struct Relay {
    received: Sender<(Vec<u8>, Address, Option<u32>)>,
    to: Arc<OnceLock<SocketAddr>>,
    /// Where the datagram was sent to, and the interface that it came by.
    at: Option<(Address, Option<u32>)>,
}

impl Handler for Relay {
    fn on_message(&mut self, message: &[u8], cx: &mut Context<'_>) -> HandlerResult {
        let (address, interface) = self.at.clone().unwrap();
        let _ = self.received.send((message.to_vec(), address, interface));
        // What it has sent itself is not answered.
        if message == b"to the group" {
            return Ok(());
        }
        if let Some(to) = self.to.get() {
            cx.send_to(&Peer::from(*to), b"to the group")?;
        }
        cx.send(b"reply")
    }
}

type Received = Receiver<(Vec<u8>, Address, Option<u32>)>;

fn relay() -> (Relay, Received) {
    let (received, receives) = mpsc::channel();
    (Relay { received, to: Arc::default(), at: None }, receives)
}

/// A client that sends multicast datagrams by the loopback interface, and whether it has any.
fn client() -> UdpSocket {
    let client = UdpSocket::bind("127.0.0.1:0").unwrap();
    client.set_read_timeout(Some(DEADLINE)).unwrap();
    SockRef::from(&client).set_multicast_if_v4(&LOOPBACK).unwrap();
    client
}

/// A socket that has joined a group on the loopback interface.
fn member(group: Ipv4Addr, port: u16) -> UdpSocket {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, None).unwrap();
    socket.set_reuse_address(true).unwrap();
    socket.bind(&SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)).into()).unwrap();
    socket.join_multicast_v4_n(&group, &InterfaceIndexOrAddress::Address(LOOPBACK)).unwrap();
    socket.set_read_timeout(Some(DEADLINE)).unwrap();
    socket.into()
}

fn port_of(server: &Server) -> u16 {
    server.local_addr().port().unwrap()
}

fn expect_reply(client: &UdpSocket) -> SocketAddr {
    let mut reply = [0; 100];
    let (count, from) = client.recv_from(&mut reply).expect("a reply");
    assert_eq!(&reply[..count], b"reply");
    from
}

#[test]
fn a_service_hears_the_groups_it_has_joined_and_no_other_that_the_host_has() {
    let (joined, also, others) = (group(1), group(2), group(3));
    for address in ["0.0.0.0:0", "[::]:0"] {
        let (relay, receives) = relay();
        let builder = Server::udp(address).unwrap().dual_stack(true).packet_info(true);
        // By the address of the interface, and by its index.
        let index = Interface::named("lo").unwrap();
        let builder = builder.join_multicast(joined, LOOPBACK).join_multicast(also, index);
        let Some(server) = made(builder, move || relay.clone()) else { return };
        let port = port_of(&server);
        let _server = start_server(server);
        let _member = member(others, 0);
        let client = client();
        for group in [others, joined, others, also] {
            client.send_to(group.to_string().as_bytes(), (group, port)).unwrap();
        }
        for group in [joined, also] {
            let (message, to, interface) = receives.recv_timeout(DEADLINE).unwrap();
            assert_eq!(message, group.to_string().as_bytes());
            assert_eq!(to, Address::Udp((group, port).into()));
            assert_eq!(interface.map(Interface::Index), Some(index));
            // The group is not a source.
            assert_eq!(expect_reply(&client).ip(), IpAddr::from(LOOPBACK));
        }
        assert!(receives.try_recv().is_err());
    }
}

#[test]
fn a_handler_sends_to_a_group_by_the_chosen_interface() {
    let group = group(4);
    let (relay, receives) = relay();
    let to = relay.to.clone();
    let builder = Server::udp("0.0.0.0:0").unwrap().join_multicast(group, LOOPBACK);
    let builder = builder.multicast_interface(LOOPBACK).multicast_loop(true).packet_info(true);
    let Some(server) = made(builder, move || relay.clone()) else { return };
    let port = port_of(&server);
    to.set((group, port).into()).unwrap();
    let server = start_server(server);
    let client = client();
    client.send_to(b"hello", ("127.0.0.1", port)).unwrap();
    expect_reply(&client);
    assert_eq!(receives.recv_timeout(DEADLINE).unwrap().0, b"hello");
    let (message, to, _) = receives.recv_timeout(DEADLINE).unwrap();
    assert_eq!((&*message, to), (&b"to the group"[..], Address::Udp((group, port).into())));
    assert_eq!((server.counters().replies, server.counters().unsent), (2, 0));
}

#[test]
fn several_servers_of_one_host_hear_one_group() {
    let group = group(6);
    let mut port = 0;
    let servers: Vec<_> = (0..3)
        .map_while(|_| {
            let (relay, receives) = relay();
            let builder = Server::udp((Ipv4Addr::UNSPECIFIED, port)).unwrap().reuse_address(true);
            let server = made(builder.join_multicast(group, LOOPBACK), move || relay.clone())?;
            port = port_of(&server);
            Some((start_server(server), receives))
        })
        .collect();
    let client = client();
    client.send_to(b"to all", (group, port)).unwrap();
    for (_, receives) in &servers {
        assert_eq!(receives.recv_timeout(DEADLINE).unwrap().0, b"to all");
        expect_reply(&client);
    }
}

/// The indexes of the interfaces that have an IPv6 address.
fn interfaces_of_ipv6() -> Vec<u32> {
    let table = std::fs::read_to_string("/proc/net/if_inet6").unwrap_or_default();
    let of_line = |line: &str| u32::from_str_radix(line.split_whitespace().nth(1)?, 16).ok();
    let mut interfaces: Vec<_> = table.lines().filter_map(of_line).collect();
    interfaces.sort();
    interfaces.dedup();
    interfaces
}

/// Asks an IPv6 group on this interface; false where the system sends no multicast by it.
fn an_ipv6_group_is_heard_on(index: u32) -> bool {
    let group = Ipv6Addr::new(0xff12, 0, 0, 0, 0, 0, std::process::id() as u16, index as u16);
    let (relay, receives) = relay();
    let builder = Server::udp("[::]:0").unwrap().packet_info(true);
    let builder = builder.join_multicast(group, index).multicast_interface(index);
    let Some(server) = made(builder, move || relay.clone()) else { return false };
    let port = port_of(&server);
    let server = start_server(server);
    let client = UdpSocket::bind("[::]:0").unwrap();
    client.set_read_timeout(Some(DEADLINE)).unwrap();
    SockRef::from(&client).set_multicast_if_v6(index).unwrap();
    let to = SocketAddrV6::new(group, port, 0, index);
    if client.send_to(b"hello", to).is_err() {
        return false;
    }
    let (message, local, interface) = receives.recv_timeout(DEADLINE).unwrap();
    assert_eq!(
        (&*message, local, interface),
        (&b"hello"[..], Address::Udp(to.into()), Some(index))
    );
    assert!(!expect_reply(&client).ip().is_multicast());
    assert_eq!(server.counters().unsent, 0);
    true
}

#[test]
fn an_ipv6_group_is_heard_and_the_reply_comes_from_an_address_of_the_host() {
    let heard = interfaces_of_ipv6().into_iter().filter(|index| an_ipv6_group_is_heard_on(*index));
    if heard.count() == 0 {
        eprintln!("skipped: no interface of this host sends IPv6 multicast");
    }
}

#[test]
fn a_broadcast_is_sent_only_where_it_is_allowed() {
    for allowed in [false, true] {
        let receiver = UdpSocket::bind("0.0.0.0:0").unwrap();
        receiver.set_read_timeout(Some(DEADLINE)).unwrap();
        let port = receiver.local_addr().unwrap().port();
        let (relay, _receives) = relay();
        relay.to.set(([127, 255, 255, 255], port).into()).unwrap();
        let builder = Server::udp("127.0.0.1:0").unwrap().broadcast(allowed);
        let server = made(builder, move || relay.clone()).unwrap();
        let server: TestServer = start_server(server);
        let client = client();
        client.send_to(b"hello", server.address()).unwrap();
        expect_reply(&client);
        server.wait_for("both are settled", |counters| counters.replies + counters.unsent == 2);
        assert_eq!(server.counters().unsent, u64::from(!allowed));
        if allowed {
            let mut message = [0; 20];
            let count = receiver.recv(&mut message).expect("the broadcast");
            assert_eq!(&message[..count], b"to the group");
        }
    }
}
