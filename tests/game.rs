//! The example `game`: clients over real UDP, and what a forged address can cause.

#[path = "support/programs.rs"]
mod programs;
#[path = "support/tools.rs"]
mod tools;

use std::io::Write as _;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use programs::{Client, Directory, Program, connect, example, run, serve, spawn_reading, text};
use tools::have_programs;

const MODES: [&str; 5] = ["reactor", "offload", "inline", "threading", "pool"];

/// `HELLO`, as long as its answer.
const HELLO: &str = "HELLO                 ";

/// Runs `check` with a server in each mode.
fn in_each_mode(check: impl Fn(Program)) {
    for mode in MODES {
        println!("under {mode}");
        check(serve("game", &["udp://127.0.0.1:0"], &["--mode", mode]));
    }
}

/// The token for the address of this client.
#[track_caller]
fn token(client: &mut Client) -> String {
    let answer = text(&client.send(HELLO).datagram());
    answer.strip_prefix("TOKEN ").unwrap_or_else(|| panic!("{answer}")).to_owned()
}

/// Joins; returns the token.
#[track_caller]
fn join(client: &mut Client, name: &str) -> String {
    let token = token(client);
    let answer = text(&client.send(format!("JOIN {token} {name}")).datagram());
    assert!(answer.starts_with("JOINED "), "{answer}");
    token
}

/// Says where to go and waits until this client sees the others as `shown` wants.
#[track_caller]
fn go_until(client: &mut Client, go: &str, what: &str, shown: impl Fn(&str) -> bool) {
    let start = Instant::now();
    let mut last = String::new();
    for count in 1.. {
        assert!(start.elapsed() < programs::DEADLINE, "not seen: {what}; last seen: {last}");
        let mut words = go.split(' ');
        let (token, to) = (words.next().unwrap(), words.collect::<Vec<_>>().join(" "));
        client.send(format!("GO {token} {count} {to}"));
        last = text(&client.datagram());
        if shown(&last) {
            return;
        }
    }
}

/// Whether the system has no multicast on its loopback interface, which is then said.
fn lacks_multicast(stderr: &[String]) -> bool {
    let lacks = stderr.iter().any(|line| line.contains("join_multicast"));
    if lacks {
        println!("skipped: the system has no multicast here: {stderr:?}");
    }
    lacks
}

// ---- players

#[test]
fn players_see_each_other_move_in_every_mode() {
    in_each_mode(|program| {
        let (mut ann, mut bob) = (program.connect(), program.connect());
        let (at_ann, at_bob) = (join(&mut ann, "ann"), join(&mut bob, "bob"));
        go_until(&mut ann, &format!("{at_ann} 0 0"), "bob", |see| see.contains(",bob"));
        go_until(&mut bob, &format!("{at_bob} 31 11"), "ann at 0,0", |see| {
            see.contains(",0,0,ann") && see.contains(",31,11,bob")
        });
        // A place outside of the board is its border.
        go_until(&mut bob, &format!("{at_bob} 65535 3"), "bob at the border", |see| {
            see.contains(",31,3,bob")
        });
        ann.send(format!("LEAVE {at_ann}"));
        let start = Instant::now();
        while text(&bob.datagram()).contains(",ann") {
            assert!(start.elapsed() < programs::DEADLINE);
        }
        program.stop();
    });
}

#[test]
fn players_at_several_listeners_see_each_other() {
    let directory = Directory::new();
    let urls = ["udp://127.0.0.1:0", "udp://127.0.0.1:0", &directory.url("unixgram")];
    let program = serve("game", &urls, &[]);
    let mut clients: Vec<_> = program.urls().iter().map(|url| connect(url)).collect();
    let tokens: Vec<_> = clients
        .iter_mut()
        .zip(["ann", "bob", "eve"])
        .map(|(client, name)| join(client, name))
        .collect();
    for (client, token) in clients.iter_mut().zip(tokens) {
        go_until(client, &format!("{token} 5 5"), "all three", |see| {
            ["ann", "bob", "eve"].iter().all(|name| see.contains(name))
        });
    }
    program.stop();
}

#[test]
fn two_terminals_find_the_server_by_multicast_and_see_each_other() {
    let server = serve_anywhere();
    let Some(server) = server else { return };
    let port = server.urls()[0].rsplit(':').next().unwrap().to_owned();
    let play = |name: &str| {
        let mut command = Command::new(example("game"));
        command.args(["--client", "--name", name, "--server"]);
        command.arg(format!("udp://239.255.70.2:{port}"));
        let (reader, keys) = std::io::pipe().unwrap();
        (spawn_reading(&mut command, reader), keys)
    };
    let ((ann, mut keys), (bob, mut bobs_keys)) = (play("ann"), play("bob"));
    let sees = |program: &Program, what: &str| {
        let start = Instant::now();
        while !program.next_line().expect("the game goes on").contains(what) {
            assert!(start.elapsed() < programs::DEADLINE, "not seen: {what}");
        }
    };
    sees(&ann, "*ann");
    sees(&bob, "ann ");
    // To the upper left corner, and one step to the right of it.
    keys.write_all(&[b"a".repeat(40), b"w".repeat(40), b"d\n".to_vec()].concat()).unwrap();
    sees(&bob, "ann 1,0");
    bobs_keys.write_all(b"q\n").unwrap();
    bob.end().succeeds();
    drop(keys); // the end of the input leaves too
    ann.end().succeeds();
    server.stop();
}

/// A server that can be found by multicast, if the system has that.
fn serve_anywhere() -> Option<Program> {
    let probe = run("game", &["--demo"]);
    (!lacks_multicast(&probe.stderr)).then(|| serve("game", &["udp://0.0.0.0:0"], &[]))
}

#[test]
fn the_demonstration_shows_what_each_bot_sees_and_ends() {
    let start = Instant::now();
    let ended = run("game", &["--demo"]);
    if lacks_multicast(&ended.stderr) {
        return;
    }
    assert!(start.elapsed() < Duration::from_secs(20));
    let said = ended.succeeds().stdout.join("\n");
    for (bot, other) in
        [("ann", "bob"), ("ann", "eve"), ("bob", "ann"), ("bob", "eve"), ("eve", "ann")]
    {
        assert!(said.contains(&format!("{bot} sees {other} at ")), "{said}");
        assert!(said.contains(&format!("{bot} sees all 3 at 16,6")), "{said}");
    }
    assert_eq!(ended.stderr, [""; 0]);
}

#[test]
fn nc_gets_a_token_for_a_hello() {
    if !have_programs(&["nc"]) {
        return;
    }
    let program = serve("game", &["udp://127.0.0.1:0"], &[]);
    let port = program.urls()[0].rsplit(':').next().unwrap();
    let mut nc = Command::new("nc")
        .args(["-u", "-w", "1", "127.0.0.1", port])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    nc.stdin.take().unwrap().write_all(HELLO.as_bytes()).unwrap();
    let said = text(&nc.wait_with_output().unwrap().stdout);
    assert!(said.starts_with("TOKEN "), "{said}");
    program.stop();
}

// ---- forged addresses and other bytes

#[test]
fn an_address_that_has_not_proved_itself_gets_no_more_than_it_sends() {
    in_each_mode(|program| {
        let (mut client, mut other) = (program.connect(), program.connect());
        let stolen = token(&mut other);
        for datagram in [
            "HELLO",
            "HELLO                ",
            "",
            "nonsense",
            "JOIN 0000000000000000 x",
            &format!("JOIN {stolen} x"),
            &format!("GO {stolen} 1 2 3"),
            &format!("LEAVE {stolen}"),
            &format!("{HELLO}{}", " ".repeat(200)),
        ] {
            client.send(datagram);
        }
        // Under some modes the answers could come out of order, so all of them are waited for.
        client.expect_silence();
        let answer = client.send(HELLO).datagram();
        assert!(answer.len() <= HELLO.len(), "{}", text(&answer));
        client.expect_silence();
        program.stop();
    });
}

#[test]
fn a_player_is_not_moved_or_removed_by_a_datagram_without_its_token() {
    let program = serve("game", &["udp://127.0.0.1:0"], &[]);
    let mut ann = program.connect();
    let at_ann = join(&mut ann, "ann");
    go_until(&mut ann, &format!("{at_ann} 0 0"), "ann at 0,0", |see| see.contains(",0,0,ann"));
    // As another who forges its address would send.
    let wrong = "0123456789abcdef";
    ann.send(format!("GO {wrong} 1000000 31 11")).send(format!("LEAVE {wrong}"));
    let mut seen = 0;
    while seen < 10 {
        let see = text(&ann.datagram());
        assert!(see.contains(",0,0,ann"), "{see}");
        seen += 1;
    }
    program.stop();
}

#[test]
fn a_full_game_says_so_and_its_board_fits_into_one_datagram() {
    let program = serve("game", &["udp://127.0.0.1:0"], &[]);
    let mut players: Vec<_> = (0..32).map(|_| program.connect()).collect();
    for player in &mut players {
        join(player, "twelveletter");
    }
    let mut late = program.connect();
    let token = token(&mut late);
    late.send(format!("JOIN {token} late")).expect("FULL");
    let start = Instant::now();
    loop {
        let see = players[0].datagram();
        assert!(see.len() <= 1200);
        if text(&see).matches("twelveletter").count() == 32 {
            break;
        }
        assert!(start.elapsed() < programs::DEADLINE);
    }
    program.stop();
}

#[test]
fn random_bytes_cause_no_panic_and_players_go_on() {
    in_each_mode(|program| {
        let mut ann = program.connect();
        let at_ann = join(&mut ann, "ann");
        let mut other = program.connect();
        let mut state = 3u64;
        let mut random = || {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 33) as usize
        };
        let words = ["HELLO", "JOIN", "GO", "LEAVE", " ", " ", "0123456789abcdef", "9", "-", ","];
        for _ in 0..300 {
            let mut datagram = Vec::new();
            for _ in 0..random() % 20 {
                match random() % 3 {
                    0 => datagram.push(random() as u8),
                    _ => datagram.extend(words[random() % words.len()].bytes()),
                }
            }
            other.send(&datagram);
        }
        go_until(&mut ann, &format!("{at_ann} 1 1"), "ann at 1,1", |see| see.contains(",1,1,ann"));
        let ended = program.stop();
        assert_eq!(ended.stderr, [""; 0]);
    });
}

// ---- command line

#[test]
fn help_shows_the_options_and_unusable_ones_are_one_line_and_code_2() {
    let help = run("game", &["--help"]).succeeds().stdout.join("\n");
    for shown in [
        "udp://HOST:PORT or unixgram://PATH",
        "[default: udp://0.0.0.0:9995]",
        "--client",
        "--demo",
        "[default: udp://239.255.70.2:9995]",
        "--name",
    ] {
        assert!(help.contains(shown), "{shown} is not in\n{help}");
    }
    for arguments in [["--mode", "forking"], ["--listen", "tcp://127.0.0.1:0"], ["--demo=1", "x"]] {
        run("game", &arguments).expect_failure(2);
    }
    let program = serve("game", &["udp://127.0.0.1:0"], &[]);
    let url = program.urls()[0].clone();
    assert!(run("game", &["--listen", &url]).expect_failure(1).contains(&url));
    for arguments in [
        ["--client", "--name", "a b"],
        ["--client", "--server", "tcp://127.0.0.1:1"],
        ["--client", "--server", "nowhere"],
    ] {
        run("game", &arguments).expect_failure(2);
    }
    // Nothing answers there.
    let ended = run("game", &["--client", "--server", "udp://127.0.0.1:9"]);
    assert!(ended.expect_failure(1).contains("udp://127.0.0.1:9"), "{ended:?}");
    program.stop();
}
