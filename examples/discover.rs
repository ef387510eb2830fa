//! Services that are found by multicast: a question to a group, and an answer from each of its members.
//!
//! The members are three servers of this program, which join the group on the loopback interface. They
//! share a port. It needs no arguments and ends by itself.

mod common;

use std::error::Error;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::mpsc;
use std::time::Duration;

use socketserver::{Peer, Running, Server, handler_fn};

const GROUP: Ipv4Addr = Ipv4Addr::new(239, 255, 70, 1);
const QUESTION: &[u8] = b"who is there?";

/// A server that joins the group and answers the question. With port 0 the system picks a port.
fn member(name: &'static str, port: u16) -> Result<Running, socketserver::Error> {
    Server::udp((Ipv4Addr::UNSPECIFIED, port))?
        .reuse_address(true) // each socket on the port receives what is sent to the group
        .join_multicast(GROUP, Ipv4Addr::LOCALHOST)
        .packet_info(true) // so that `local_addr` is the address that was asked
        .serve(move |accepted| {
            let asked_at = accepted.local_addr();
            handler_fn(move |question, cx| match (question, &asked_at) {
                (QUESTION, Ok(here)) => cx.send(format!("{name}, asked at {here}").as_bytes()),
                _ => Ok(()),
            })
        })?
        .spawn()
}

fn main() -> Result<(), Box<dyn Error>> {
    common::no_options("discover", "Services that are found by multicast.");

    let first = member("printer", 0)?;
    let port = first.local_addr().port().expect("a UDP port");
    let _members = [first, member("camera", port)?, member("lamp", port)?];

    let (found, answers) = mpsc::channel();
    let asking =
        Server::udp("127.0.0.1:0")?.multicast_interface(Ipv4Addr::LOCALHOST).serve(move |_| {
            let found = found.clone();
            handler_fn(move |answer, _cx| Ok(found.send(String::from_utf8_lossy(answer).into())?))
        })?;
    let sender = asking.datagram_sender(asking.listeners()[0])?;
    let _asking = asking.spawn()?;

    println!("asking udp://{GROUP}:{port}");
    sender.send_to(&Peer::from(SocketAddr::from((GROUP, port))), QUESTION)?;
    for _ in 0..3 {
        let answer: String = answers.recv_timeout(Duration::from_secs(10))?;
        println!("answered: {answer}");
    }
    Ok(())
}
