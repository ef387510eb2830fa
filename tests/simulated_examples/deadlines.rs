//! What the servers do after some time, which does not pass in reality.

use std::time::Duration;

use socketserver::testing::{Client, Simulation, StreamEnd};
use socketserver::{Limits, Mode};

use super::chat::{Chat, HANDSHAKE, WebSocket, frame, frames};
use super::conversation::quietly;
use super::dns::{Dns, framed, query};
use super::http::{Http, responses, stored};
use super::resp::{Resp, words};
use super::smtp::{Smtp, codes};
use super::syslog::Syslog;
use super::target::{TCP, Target, settle};

const SECOND: Duration = Duration::from_secs(1);

/// Lets a client be silent until it is closed, and returns after how many seconds it was.
fn seconds_until_close(sim: &mut Simulation<'_>, client: &Client) -> u32 {
    sim.pass(Duration::from_millis(10)); // the way to the server
    for seconds in 1..1000 {
        sim.pass(SECOND);
        if client.closed_by_server().is_some() {
            return seconds;
        }
    }
    panic!("it is not closed");
}

fn sent(sim: &mut Simulation<'_>, bytes: &[u8]) -> Client {
    let client = sim.connect();
    client.send(bytes);
    sim.settle();
    client
}

#[test]
fn half_a_command_of_resp_is_closed_by_the_message_deadline_and_a_silent_client_is_not() {
    quietly(|_, _: &mut Resp, sim| {
        let (half, silent) = (sent(sim, b"*2\r\n$4\r\nECHO\r\n$9\r\nhal"), sim.connect());
        assert!((29..=33).contains(&seconds_until_close(sim, &half)));
        sim.pass(3600 * SECOND);
        silent.send(&words("PING"));
        sim.settle();
        assert_eq!(silent.read(), b"+PONG\r\n");
    });
}

#[test]
fn blpop_waits_for_its_time_and_an_element_ends_the_wait() {
    quietly(|_, _: &mut Resp, sim| {
        let late = sent(sim, &[words("BLPOP list 5"), words("PING")].concat());
        sim.pass(4 * SECOND);
        assert_eq!(late.read(), b"");
        sim.pass(2 * SECOND);
        assert_eq!(late.read(), b"*-1\r\n+PONG\r\n");
        let early = sent(sim, &words("BLPOP list 5"));
        let other = sent(sim, &words("RPUSH list x"));
        assert_eq!(early.read(), b"*2\r\n$4\r\nlist\r\n$1\r\nx\r\n");
        assert_eq!(other.read(), b":1\r\n");
        sim.pass(10 * SECOND);
        assert_eq!(early.read(), b"", "the time-out is off");
    });
}

#[test]
fn keys_expire_at_their_time_also_if_nobody_reads_them() {
    quietly(|_, _: &mut Resp, sim| {
        let client = sent(sim, &[words("SET a 1 PX 1500"), words("SET b 1 EX 60")].concat());
        client.read();
        sim.pass(SECOND);
        client.send(&words("DBSIZE"));
        sim.settle();
        assert_eq!(client.read(), b":2\r\n");
        sim.pass(SECOND);
        client.send(&[words("DBSIZE"), words("GET a"), words("TTL b")].concat());
        sim.settle();
        assert_eq!(client.read(), b":1\r\n$-1\r\n:58\r\n");
        sim.pass(3600 * SECOND);
        client.send(&words("DBSIZE"));
        sim.settle();
        assert_eq!(client.read(), b":0\r\n");
    });
}

#[test]
fn half_a_request_of_http_gets_408_and_a_kept_connection_is_closed_without_a_word() {
    quietly(|_, _: &mut Http, sim| {
        let half = sent(sim, b"GET / HTTP/1.1\r\nHost:");
        let kept = sent(sim, b"GET /a.txt HTTP/1.1\r\nHost: x\r\n\r\n");
        assert_eq!(responses(&kept.read(), true)[0].status, 200);
        assert_eq!(seconds_until_close(sim, &half), 20);
        let answers = responses(&half.read(), true);
        assert_eq!((answers.len(), answers[0].status, answers[0].closes), (1, 408, true));
        assert_eq!(kept.closed_by_server(), Some(StreamEnd::Eof));
        assert_eq!(kept.read(), b"");
    });
}

#[test]
fn a_body_that_drips_gets_408_and_one_that_is_fast_enough_is_stored() {
    quietly(|_, _: &mut Http, sim| {
        let head = b"PUT /up HTTP/1.1\r\nHost: x\r\nContent-Length: 9000\r\n\r\n";
        let (slow, fast) = (sent(sim, head), sent(sim, &[&head[..7], b"2", &head[7..]].concat()));
        for _ in 0..60 {
            slow.send(b"x");
            fast.send(&[b'x'; 150]);
            sim.pass(SECOND);
        }
        let answers = responses(&slow.read(), true);
        assert_eq!((answers.len(), answers[0].status, answers[0].closes), (1, 408, true));
        assert!(slow.closed_by_server().is_some());
        let answers = responses(&fast.read(), true);
        assert_eq!((answers.len(), answers[0].status, answers[0].closes), (1, 201, false));
        assert_eq!(stored("up2"), [b'x'; 9000]);
    });
}

/// The messages of the server after the handshake.
fn messages(client: &Client) -> Vec<String> {
    let bytes = client.read();
    let end = bytes.windows(4).position(|four| four == b"\r\n\r\n").map_or(0, |end| end + 4);
    frames(&bytes[end..], true)
}

#[test]
fn a_silent_member_is_asked_for_a_sign_of_life_and_disconnected_without_one() {
    fn test<T: Target>() {
        quietly(|_, target: &mut T, sim| {
            let (dead, alive) = (target.connect(sim), target.connect(sim));
            for client in [&dead, &alive] {
                client.send(HANDSHAKE);
            }
            sim.settle();
            for _ in 0..5 {
                messages(&alive);
                sim.pass(20 * SECOND);
                alive.send(&frame(0x8a, b""));
                sim.settle();
            }
            assert_eq!(dead.closed_by_server(), Some(StreamEnd::Reset));
            assert_eq!(messages(&alive), ["9 "]);
            assert_eq!(alive.closed_by_server(), None);
        });
    }
    test::<WebSocket>();
    test::<Http>();
}

#[test]
fn a_handshake_that_does_not_end_is_closed_and_so_is_half_a_line() {
    quietly(|_, target: &mut WebSocket, sim| {
        let (opening, line) = (target.connect(sim), sent(sim, b"half a line"));
        opening.send(b"GET /chat HTTP/1.1\r\n");
        for _ in 0..6 {
            sim.pass(3 * SECOND);
            opening.send(b"X: y\r\n");
        }
        assert_eq!(opening.closed_by_server(), None);
        assert!(seconds_until_close(sim, &opening) <= 3);
        assert!((10..=14).contains(&seconds_until_close(sim, &line)));
    });
    quietly(|_, _: &mut Chat, sim| {
        let silent = sim.connect();
        sim.pass(86_400 * SECOND);
        assert_eq!(silent.closed_by_server(), None, "a member may be silent");
    });
}

#[test]
fn a_name_server_closes_after_ten_seconds_of_silence() {
    quietly(|_, _: &mut Dns, sim| {
        let client = sent(sim, &framed(&query(1, "example.com", 1)));
        assert!(!client.read().is_empty());
        sim.pass(9 * SECOND);
        client.send(&framed(&query(2, "example.com", 1)));
        sim.settle();
        assert!(!client.read().is_empty());
        assert_eq!(seconds_until_close(sim, &client), 10);
    });
}

#[test]
fn while_nobody_takes_lines_messages_wait_in_the_client() {
    socketserver::testing::quiet(|world| {
        let (mut syslog, mut server) = Syslog::at(TCP, Mode::default(), Limits::default());
        let mut sim = world.start(&mut server);
        let message = [&b"<13>"[..], &[b'x'; 9995], b"\n"].concat();
        let client = sim.connect();
        client.send(&message.repeat(400));
        sim.pass(60 * SECOND);
        let read = client.bytes_read_by_server();
        assert!(
            (1 << 20..2 << 20).contains(&read),
            "{read} bytes are read, and nobody takes lines"
        );
        for _ in 0..20 {
            syslog.take();
            sim.pass(SECOND);
        }
        assert_eq!(syslog.lines().lines().count(), 400);
        client.close();
        sim.settle();
    });
}

#[test]
fn a_silent_client_of_smtp_is_told_so_and_one_whose_mail_is_written_is_not() {
    quietly(|_, smtp: &mut Smtp, sim| {
        let silent = sent(sim, b"EHLO me\r\n");
        let mail = b"EHLO me\r\nMAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\nDATA\r\nx\r\n.\r\n";
        let waiting = sent(sim, mail);
        assert_eq!(seconds_until_close(sim, &silent), 300);
        let answer = silent.read();
        assert_eq!(codes(&answer, true), ["220", "250", "421"]);
        sim.pass(3600 * SECOND);
        assert_eq!(codes(&waiting.read(), true), ["220", "250", "250", "250", "354"]);
        settle(smtp, sim);
        assert_eq!(codes(&waiting.read(), true), ["250"]);
    });
}

#[test]
fn a_mail_that_comes_during_a_stop_is_still_taken() {
    quietly(|world, smtp: &mut Smtp, sim| {
        let mail = b"EHLO me\r\nMAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\nDATA\r\nhalf";
        let (coming, idle) = (sent(sim, mail), sent(sim, b"EHLO me\r\n"));
        let later = coming.clone();
        world.after(2 * SECOND, move || later.send(b" and half\r\n.\r\n"));
        // The thread that writes, after the mail has come.
        let before = world.now();
        sim.stop();
        assert!(world.now() - before <= 6 * SECOND);
        smtp.work();
        assert_eq!(smtp.mails(), "a@b to c@d: \"half and half\\r\\n\"\n");
        assert_eq!(codes(&idle.read(), true), ["220", "250", "421"]);
    });
}
