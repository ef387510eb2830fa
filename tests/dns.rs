//! The example `dns` as a program, with `dig`, dnspython and `dnsperf` as its clients.

#[path = "support/programs.rs"]
mod programs;
#[path = "support/tools.rs"]
mod tools;

use std::fs;
use std::net::TcpListener;
use std::process::{Command, Stdio};

use programs::{Directory, Program, connect, run, serve, text};
use tools::{have_programs, have_python_modules};

const MODES: [&str; 6] = ["reactor", "offload", "inline", "threading", "pool", "forking"];

const LISTEN: [&str; 2] = ["udp://127.0.0.1:0", "tcp://127.0.0.1:0"];

/// A server of the zone that is compiled in.
fn server(mode: &str) -> Program {
    serve("dns", &LISTEN, &["--mode", mode])
}

/// A server of this zone, below `test.`.
fn server_of(zone: &str) -> (Program, Directory) {
    let directory = Directory::new();
    let file = directory.path("zone");
    let soa = "@ 60 SOA ns h 1 2 3 4 30\n@ 60 NS ns.other.\n";
    fs::write(&file, format!("{soa}{zone}")).unwrap();
    let program = serve("dns", &LISTEN, &["--zone", file.to_str().unwrap(), "--origin", "test."]);
    (program, directory)
}

/// The port of the listener at this place.
fn port(program: &Program, listener: usize) -> &str {
    program.urls()[listener].rsplit(':').next().unwrap()
}

/// What dig prints for this query.
#[track_caller]
fn dig(program: &Program, query: &str) -> String {
    let listener = usize::from(query.contains("+tcp"));
    let output = Command::new("dig")
        .args(["@127.0.0.1", "+time=10", "+tries=1", "+nocookie", "-p", port(program, listener)])
        .args(query.split(' '))
        .output()
        .unwrap();
    assert!(output.status.success(), "dig {query}: {output:?}");
    text(&output.stdout)
}

/// Checks that dig prints all of these, with the white space between words left out.
#[track_caller]
fn expect(program: &Program, query: &str, expected: &[&str]) {
    let output = dig(program, query);
    let words = output.split_whitespace().collect::<Vec<_>>().join(" ");
    for part in expected {
        assert!(words.contains(part), "dig {query}: no {part:?} in\n{output}");
    }
}

// ---- dig

#[test]
fn dig_gets_each_kind_of_answer() {
    if !have_programs(&["dig"]) {
        return;
    }
    let server = server("reactor");
    for (query, expected) in [
        ("example.com MX", &["NOERROR", "qr aa", "ANSWER: 1,", "MX 10 mail.example.com."][..]),
        ("www.example.com A", &["CNAME example.com.", "example.com. 3600 IN A 192.0.2.1"]),
        ("www.example.com CNAME", &["ANSWER: 1,", "CNAME example.com."]),
        // No data, and no name: with the SOA record.
        ("www.example.com SRV", &["NOERROR", "ANSWER: 1, AUTHORITY: 1", "300 IN SOA ns1"]),
        ("b.c.example.com A", &["NOERROR", "ANSWER: 0, AUTHORITY: 1", "300 IN SOA ns1"]),
        ("nothing.example.com A", &["NXDOMAIN", "ANSWER: 0, AUTHORITY: 1", "300 IN SOA ns1"]),
        ("any.wild.example.com A", &["NOERROR", "any.wild.example.com. 3600 IN A 192.0.2.7"]),
        ("x.y.wild.example.com TXT", &["x.y.wild.example.com. 3600 IN TXT \"any name"]),
        ("any.wild.example.com MX", &["NOERROR", "ANSWER: 0, AUTHORITY: 1"]),
        ("_sip._tcp.example.com SRV", &["SRV 0 5 5060 mail.example.com."]),
        ("example.com ANY +notcp", &["ANSWER: 1,", "HINFO \"RFC8482\" \"\""]),
        ("www.example.com ANY +notcp", &["ANSWER: 1,", "CNAME example.com."]),
        // Delegated.
        (
            "x.sub.example.com A",
            &["flags: qr rd;", "sub.example.com. 3600 IN NS ns.sub", "IN A 192.0.2.100"],
        ),
        ("sub.example.com DS", &["flags: qr aa", "ANSWER: 0, AUTHORITY: 1", "SOA"]),
        // Refused.
        ("example.org A", &["REFUSED", "flags: qr rd;", "ANSWER: 0, AUTHORITY: 0"]),
        (". NS", &["REFUSED"]),
        ("example.com CH TXT", &["REFUSED"]),
        ("example.com IXFR=1 +tcp", &["Transfer failed"]),
        ("example.com +opcode=UPDATE", &["NOTIMP", "opcode: UPDATE"]),
        ("example.com +header-only", &["FORMERR", "QUERY: 0"]),
        // EDNS.
        ("example.com A +edns=0", &["EDNS: version: 0, flags:; udp: 1232"]),
        ("example.com A +dnssec", &["EDNS: version: 0, flags: do; udp: 1232"]),
        ("example.com A +edns=1 +noednsneg", &["BADVERS", "EDNS: version: 0", "ANSWER: 0"]),
        ("example.com A +noedns", &["NOERROR", "ADDITIONAL: 0"]),
        ("example.com A +ednsopt=65001:abcd", &["NOERROR", "ANSWER: 1"]),
        // The case of the question.
        ("wWw.eXample.cOM A", &[";wWw.eXample.cOM. IN A", "wWw.eXample.cOM. 3600 IN CNAME"]),
    ] {
        expect(&server, query, expected);
    }
    server.stop();
}

#[test]
fn dig_is_answered_over_udp_and_tcp_by_one_server_under_every_mode() {
    if !have_programs(&["dig"]) {
        return;
    }
    for mode in MODES {
        let server = server(mode);
        for query in ["www.example.com A", "www.example.com A +tcp"] {
            expect(&server, query, &["NOERROR", "192.0.2.1"]);
        }
        server.stop();
    }
}

#[test]
fn a_chain_of_aliases_is_followed_to_its_end_within_the_zone() {
    if !have_programs(&["dig"]) {
        return;
    }
    let zone = "
a 60 CNAME b
b 60 CNAME c
c 60 A 192.0.2.1
away 60 CNAME www.other.
gone 60 CNAME nothing
delegated 60 CNAME x.sub
sub 60 NS ns.sub
ns.sub 60 A 192.0.2.2
circle 60 CNAME circle2
circle2 60 CNAME circle
*.w 60 CNAME c
";
    let (server, _directory) = server_of(zone);
    expect(&server, "a.test A", &["ANSWER: 3, AUTHORITY: 0", "c.test. 60 IN A 192.0.2.1"]);
    expect(&server, "a.test MX", &["NOERROR", "ANSWER: 2, AUTHORITY: 1", "30 IN SOA"]);
    expect(&server, "away.test A", &["NOERROR", "qr aa", "ANSWER: 1, AUTHORITY: 0"]);
    expect(&server, "gone.test A", &["NXDOMAIN", "qr aa", "ANSWER: 1, AUTHORITY: 1"]);
    expect(&server, "delegated.test A", &["qr aa", "ANSWER: 1, AUTHORITY: 1, ADDITIONAL: 2"]);
    expect(&server, "circle.test A", &["NOERROR", "circle2.test. 60 IN CNAME circle.test."]);
    expect(&server, "any.w.test A", &["any.w.test. 60 IN CNAME c.test.", "192.0.2.1"]);
    server.stop();
}

#[test]
fn an_answer_that_is_too_long_for_udp_is_truncated_and_dig_gets_it_over_tcp() {
    if !have_programs(&["dig"]) {
        return;
    }
    let lines = (0..100).map(|n| format!("long 60 A 198.51.100.{n}\n"));
    let servers = (0..40).map(|n| format!("sub 60 NS n{n}.sub\nn{n}.sub 60 AAAA 2001:db8::{n}\n"));
    let (server, _directory) = server_of(&lines.chain(servers).collect::<String>());
    for query in ["long.test A +ignore", "long.test A +ignore +noedns", "x.sub.test A +ignore"] {
        expect(&server, query, &["flags: qr", "tc", "ANSWER: 0, AUTHORITY: 0"]);
    }
    expect(&server, "long.test A +tcp", &["ANSWER: 100,"]);
    expect(&server, "x.sub.test A +tcp", &["AUTHORITY: 40, ADDITIONAL: 41"]);
    server.stop();
}

// ---- dnspython

/// Runs a Python program, with the ports of the server's listeners as `udp` and `tcp`.
#[track_caller]
fn python(server: &Program, program: &str) {
    let (udp, tcp) = (port(server, 0), port(server, 1));
    let head = format!("udp, tcp = {udp}, {tcp}\nH = '127.0.0.1'\n");
    let output = Command::new("timeout")
        .args(["30", "python3", "-c", &(head + program)])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
}

#[test]
fn dnspython_gets_valid_answers_of_each_kind() {
    if !have_python_modules(&["dns"]) {
        return;
    }
    let server = server("reactor");
    python(
        &server,
        "
import dns.message, dns.query, dns.flags, dns.rcode, dns.edns, socket, struct

def ask(name, rtype, **options):
    query = dns.message.make_query(name, rtype, **options)
    over_udp = dns.query.udp(query, H, port=udp, timeout=10, raise_on_truncation=True)
    over_tcp = dns.query.tcp(query, H, port=tcp, timeout=10)
    assert over_udp.to_wire() == over_tcp.to_wire(), (over_udp, over_tcp)
    return over_udp

answer = ask('www.example.com', 'AAAA', use_edns=0, payload=4096)
assert answer.flags & dns.flags.AA and not answer.flags & (dns.flags.RA | dns.flags.AD)
assert [rrset.rdtype for rrset in answer.answer] == [5, 28], answer
assert (answer.edns, answer.payload) == (0, 1232)
answer = ask('nothing.example.com', 'A')
assert answer.rcode() == dns.rcode.NXDOMAIN and answer.edns == -1, answer
assert answer.authority[0].ttl == 300, answer
assert ask('example.org', 'A').rcode() == dns.rcode.REFUSED
option = dns.edns.GenericOption(65001, b'x' * 400)
assert ask('example.com', 'TXT', use_edns=0, options=[option]).rcode() == 0

# Queries that arrive together are answered together, in their order, each with its number.
queries = [dns.message.make_query(f'x{n}.wild.example.com', 'A') for n in range(100)]
wires = [query.to_wire() for query in queries]
with socket.create_connection((H, tcp), 10) as connection:
    connection.sendall(b''.join(struct.pack('!H', len(wire)) + wire for wire in wires))
    stream = connection.makefile('rb')
    for query in queries:
        answer = dns.message.from_wire(stream.read(*struct.unpack('!H', stream.read(2))))
        assert query.is_response(answer) and len(answer.answer) == 1, answer
",
    );
    server.stop();
}

// ---- dnsperf

#[test]
fn dnsperf_loses_no_query_over_udp_and_tcp_at_once() {
    if !have_programs(&["dnsperf"]) {
        return;
    }
    let (directory, server) = (Directory::new(), server("reactor"));
    let queries = directory.path("queries");
    let lines = (0..1000).map(|n| format!("x{n}.wild.example.com A\nx{n}.example.com A\n"));
    fs::write(&queries, lines.collect::<String>()).unwrap();
    let clients = [("udp", port(&server, 0)), ("tcp", port(&server, 1))].map(|(mode, port)| {
        Command::new("dnsperf")
            .args([
                "-s",
                "127.0.0.1",
                "-p",
                port,
                "-m",
                mode,
                "-c",
                "4",
                "-q",
                "50",
                "-t",
                "20",
                "-n",
                "5",
            ])
            .arg("-d")
            .arg(&queries)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    });
    for client in clients {
        let output = client.wait_with_output().unwrap();
        let said = text(&output.stdout);
        let words = said.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(words.contains("Queries completed: 10000 (100.00%)"), "{said}");
        assert!(words.contains("NOERROR 5000 (50.00%), NXDOMAIN 5000 (50.00%)"), "{said}");
    }
    server.stop();
}

// ---- what is not a query

/// A query with this header and these bytes after it.
fn message(flags: u16, counts: [u16; 4], rest: &[u8]) -> Vec<u8> {
    let mut message = vec![0x12, 0x34];
    message.extend(flags.to_be_bytes());
    counts.iter().for_each(|count| message.extend(count.to_be_bytes()));
    message.extend(rest);
    message
}

const QUESTION: &[u8] = b"\x07example\x03com\x00\x00\x01\x00\x01";
const OPT: &[u8] = b"\x00\x00\x29\x04\xd0\x00\x00\x00\x00\x00\x00";

#[test]
fn a_malformed_message_gets_a_header_and_the_next_query_is_answered() {
    let server = server("reactor");
    let (mut udp, mut tcp) = (server.connect(), connect(&server.urls()[1]));
    let pointer_to_itself = b"\xc0\x0c\x00\x01\x00\x01";
    let circle = b"\x01a\xc0\x10\x01b\xc0\x0c\x00\x01\x00\x01";
    let far = b"\xff\xff\x00\x01\x00\x01";
    let long_label = b"\x40aaaa\x00\x00\x01\x00\x01";
    let long_name = [&b"\x3f"[..], &[b'a'; 63]].concat().repeat(5);
    let two_opts = [QUESTION, OPT, OPT].concat();
    let opt_of_a_name = [QUESTION, b"\x01a", OPT].concat();
    let option_too_long = [QUESTION, &OPT[..9], b"\x00\x04\x00\x03\x00\x09"].concat();
    let cases: &[(u16, [u16; 4], &[u8], u8)] = &[
        (0, [0, 0, 0, 0], b"", 1),
        (0, [1, 0, 0, 0], b"", 1),
        (0, [2, 0, 0, 0], &QUESTION.repeat(2), 1),
        (0, [65535; 4], QUESTION, 1),
        (0, [1, 0, 0, 0], pointer_to_itself, 1),
        (0, [1, 0, 0, 0], circle, 1),
        (0, [1, 0, 0, 0], far, 1),
        (0, [1, 0, 0, 0], long_label, 1),
        (0, [1, 0, 0, 0], &long_name, 1),
        (0, [1, 1, 0, 0], QUESTION, 1),
        (0, [1, 0, 0, 1], QUESTION, 1),
        (0, [1, 0, 0, 2], &two_opts, 1),
        (0, [1, 0, 0, 1], &opt_of_a_name, 1),
        (0, [1, 0, 0, 1], &option_too_long, 1),
        (0x2000, [1, 0, 0, 0], QUESTION, 4), // NOTIFY
        (0x7800, [0, 0, 0, 0], b"", 4),
    ];
    for (flags, counts, rest, rcode) in cases {
        let bytes = message(*flags, *counts, rest);
        let length = (bytes.len() as u16).to_be_bytes();
        tcp.send([&length[..], &bytes].concat());
        udp.send(&bytes);
        let expected = message(0x8000 | flags | u16::from(*rcode), [0; 4], b"");
        udp.expect(&expected);
        tcp.expect([&[0, 12], &expected[..]].concat());
    }
    for silent in [&b""[..], b"x", &[0; 11], &message(0x8000, [1, 0, 0, 0], QUESTION)] {
        udp.send(silent);
    }
    udp.send(message(0, [1, 0, 0, 0], QUESTION));
    assert_eq!(udp.datagram()[..4], [0x12, 0x34, 0x84, 0x00]);
    server.stop();
}

#[test]
fn what_is_not_dns_closes_its_tcp_connection_and_no_other() {
    let server = server("reactor");
    let mut other = connect(&server.urls()[1]);
    for junk in [
        &b"\x00\x00"[..],
        b"\x00\x05hello",
        b"\x00\x0c\x00\x01\x80\x00\x00\x00\x00\x00\x00\x00\x00\x00",
    ] {
        let mut client = connect(&server.urls()[1]);
        client.send(junk);
        client.expect_end();
    }
    let query = message(0, [1, 0, 0, 0], QUESTION);
    other.send([0, query.len() as u8]).send(query);
    other.expect([0, 45, 0x12, 0x34, 0x84, 0x00]);
    server.stop();
}

// ---- the command line

#[test]
fn help_shows_both_default_addresses_and_the_zone() {
    let help = run("dns", &["--help"]).succeeds().stdout.join("\n");
    for shown in ["[default: udp://127.0.0.1:5300 tcp://127.0.0.1:5300]", "--zone X", "--origin X"]
    {
        assert!(help.contains(shown), "{shown} is not in\n{help}");
    }
}

#[test]
fn an_unusable_zone_or_address_is_one_line_that_names_it() {
    let directory = Directory::new();
    let file = directory.path("bad");
    fs::write(&file, "example. 60 A 192.0.2.1\n").unwrap();
    let bad = file.to_str().unwrap();
    for (arguments, named) in [
        (["--zone", "/nowhere/at/all"], "/nowhere/at/all"),
        (["--zone", bad], "exactly one SOA"),
        (["--origin", "a..b"], "a..b"),
        (["--mode", "threads"], "threads"),
    ] {
        let ended = run("dns", &arguments);
        assert!(ended.expect_failure(2).contains(named), "{ended:?}");
    }
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("tcp://{}", taken.local_addr().unwrap());
    assert!(run("dns", &["--listen", &url]).expect_failure(1).contains(&url));
}
