//! The example `http`, and the chat room that it shares with `chat`, against the clients that people
//! use: curl, wrk, Python's libraries, a browser; and against clients that are slow, many or hostile.

#[path = "support/programs.rs"]
mod programs;
#[path = "support/tools.rs"]
mod tools;

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use programs::{Client, Directory, Program, connect, serve, text, wait_until};
use tools::{have, have_programs, have_python_modules};

const MODES: [&str; 6] = ["reactor", "offload", "threading", "pool", "inline", "forking"];
const CHAT_MODES: [&str; 4] = ["reactor", "offload", "threading", "pool"];

/// The most memory of the server while its clients do not read, in KiB.
const BOUNDED: u64 = 16 * 1024;

/// A root with a few files.
fn root() -> Directory {
    let directory = Directory::new();
    let path = |name: &str| directory.path(name);
    fs::write(path("page.html"), "<h1>page</h1>").unwrap();
    fs::create_dir(path("directory")).unwrap();
    fs::write(path("directory/file & more"), "file").unwrap();
    fs::create_dir(path("目录")).unwrap();
    fs::write(path("目录/文件.txt"), "文件").unwrap();
    fs::write(path("long"), long()).unwrap();
    directory
}

/// Three million bytes that do not repeat in small steps.
fn long() -> Vec<u8> {
    (0..3_000_000_u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8).collect()
}

/// A file of 1 GiB that takes no room on the disk.
fn gigabyte(root: &Directory) {
    File::create(root.path("gigabyte")).unwrap().set_len(1 << 30).unwrap();
}

fn start(root: &Directory, options: &[&str]) -> Program {
    let path = root.path("");
    let arguments = [&["--root", path.to_str().unwrap(), "--upload"], options].concat();
    serve("http", &["tcp://127.0.0.1:0"], &arguments)
}

fn url(program: &Program) -> String {
    program.urls()[0].replace("tcp://", "http://")
}

/// Runs a client to its end. Each has a deadline of its own.
#[track_caller]
fn client(command: &mut Command) -> Output {
    let name = format!("{command:?}");
    let output =
        command.stdin(Stdio::null()).output().unwrap_or_else(|error| panic!("{name}: {error}"));
    let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{name}: {}\n{stdout}\n{stderr}", output.status);
    output
}

/// What curl prints.
#[track_caller]
fn curl(arguments: &[&str]) -> String {
    let always = ["--silent", "--show-error", "--max-time", "30"];
    text(&client(Command::new("curl").args(always).args(arguments)).stdout)
}

fn python(script: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new("python3");
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients").join(script);
    command.arg(path).args(arguments);
    command
}

/// The resident memory of a process, in KiB.
fn memory(program: &Program, field: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", program.id())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(field)).unwrap();
    line.trim_matches(|c: char| !c.is_ascii_digit()).parse().unwrap()
}

/// Requests a page, which must come at once.
#[track_caller]
fn answers_at_once(program: &Program) -> Duration {
    let begun = Instant::now();
    let mut client = program.connect();
    client.send("GET /page.html HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    assert!(text(&client.rest()).ends_with("<h1>page</h1>"));
    begun.elapsed()
}

/// The head of an answer.
fn head(client: &mut Client) -> String {
    let mut head = String::new();
    loop {
        let line = client.line();
        head += &line;
        if line == "\r\n" || line.is_empty() {
            return head;
        }
    }
}

/// The names of what uploads have left behind.
fn left_behind(root: &Directory) -> Vec<String> {
    let entries = fs::read_dir(root.path("")).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.starts_with('.')).collect()
}

// ---- the clients that people use

#[test]
fn curl_gets_and_stores_files_in_every_mode() {
    if !have_programs(&["curl"]) {
        return;
    }
    for mode in MODES {
        let root = root();
        let program = start(&root, &["--mode", mode]);
        let base = url(&program);
        let at = |name: &str| format!("{base}/{name}");
        let file = |name: &str| root.path(name).to_str().unwrap().to_owned();

        assert_eq!(curl(&[&at("page.html"), &at("page.html")]), "<h1>page</h1><h1>page</h1>");
        assert_eq!(curl(&["--http1.0", &at("page.html")]), "<h1>page</h1>");
        assert!(curl(&["--head", &at("long")]).contains("Content-Length: 3000000\r\n"));
        assert!(curl(&["--location", &at("directory")]).contains("file &amp; more"));
        let status = ["--output", "/dev/null", "--write-out", "%{http_code}"];
        assert_eq!(curl(&[&status[..], &[&at("none")]].concat()), "404");
        assert_eq!(
            curl(&[&status[..], &["--time-cond", &file("long"), &at("long")]].concat()),
            "304"
        );
        assert_eq!(curl(&[&status[..], &["--data", "x", &at("long")]].concat()), "405");

        // A download that goes on where another one has stopped.
        let part = file("part");
        fs::write(&part, &long()[..1_000_000]).unwrap();
        curl(&["--continue-at", "-", "--output", &part, &at("long")]);
        assert!(fs::read(&part).unwrap() == long(), "{mode}: the parts do not fit");

        // A long upload, for which curl waits for `100 Continue`, and one of unknown length.
        curl(&["--fail", "--output", "/dev/null", "--upload-file", &file("long"), &at("copy")]);
        assert!(fs::read(root.path("copy")).unwrap() == long(), "{mode}: the copy differs");
        let stdin = File::open(root.path("long")).unwrap();
        let stored = Command::new("curl")
            .args([
                "--silent",
                "--show-error",
                "--fail",
                "--max-time",
                "30",
                "--output",
                "/dev/null",
                "--upload-file",
                "-",
            ])
            .arg(at("chunked"))
            .stdin(stdin)
            .status();
        assert!(stored.unwrap().success());
        assert!(fs::read(root.path("chunked")).unwrap() == long(), "{mode}: the chunks differ");
        assert_eq!(left_behind(&root), [""; 0]);
        program.stop();
    }
}

#[test]
fn wrk_sees_no_error_in_any_mode() {
    if !have_programs(&["wrk"]) {
        return;
    }
    let root = root();
    for mode in MODES {
        let program = start(&root, &["--mode", mode, "--workers", "40"]);
        for (file, header) in
            [("page.html", "A: b"), ("long", "A: b"), ("page.html", "Connection: close")]
        {
            let at = format!("{}/{file}", url(&program));
            // `inline` serves one connection at a time, so that more would wait for each other.
            let connections = if mode == "inline" { "1" } else { "32" };
            let arguments = ["-t1", "-c", connections, "-d1s", "-H", header, &at];
            let report = text(&client(Command::new("wrk").args(arguments)).stdout);
            assert!(!report.contains("Non-2xx") && !report.contains("Socket errors"), "{report}");
            assert!(
                report.contains("requests in") && !report.contains(" 0 requests in"),
                "{report}"
            );
        }
        program.stop();
    }
}

#[test]
fn the_libraries_of_python_find_what_they_expect_in_every_mode() {
    if !have_python_modules(&["requests"]) {
        return;
    }
    for mode in MODES {
        let root = root();
        if mode == "reactor" {
            gigabyte(&root);
        }
        let program = start(&root, &["--mode", mode]);
        let keeps = if mode == "inline" { "closes" } else { "keeps" };
        let output = client(&mut python("http_libraries.py", &[&url(&program), keeps]));
        assert_eq!(text(&output.stdout), "done\n", "{mode}");
        assert_eq!(left_behind(&root), [""; 0]);
        program.stop();
    }
}

#[test]
fn members_chat_by_websocket_and_leave_with_the_close_code_that_fits() {
    if !have_python_modules(&["websockets"]) {
        return;
    }
    let root = root();
    for mode in CHAT_MODES {
        let program = start(&root, &["--mode", mode]);
        let at = format!("ws://{}/chat", &program.urls()[0]["tcp://".len()..]);
        chat(program, &[&at]);
        let lines = ["tcp://127.0.0.1:0"];
        let mut program =
            serve("chat", &lines, &["--mode", mode, "--websocket", "tcp://127.0.0.1:0"]);
        let at = program.next_url().replace("tcp://", "ws://");
        let port = program.urls()[0].rsplit(':').next().unwrap().to_owned();
        chat(program, &[&at, &port]);
    }
}

/// Runs the members of `http_members.py`, and stops the server when they are ready.
fn chat(program: Program, arguments: &[&str]) {
    let members = programs::spawn(&mut python("http_members.py", arguments));
    let first = members.next_line();
    if first.as_deref() != Some("ready") {
        panic!("{arguments:?}: {first:?}, {:?}", members.end());
    }
    program.stop();
    assert_eq!(members.end().succeeds().stdout, ["ready", "done"]);
}

#[test]
fn pages_in_a_browser_load_their_assets_and_chat_with_each_other() {
    let browsers = ["chromium", "chromium-browser", "google-chrome"];
    let paths = std::env::var_os("PATH").unwrap_or_default();
    let is_there = std::env::split_paths(&paths)
        .any(|folder| browsers.iter().any(|name| folder.join(name).is_file()));
    if !have(is_there, "a browser (chromium)") || !have_python_modules(&["websockets"]) {
        return;
    }
    let root = Directory::new();
    fs::create_dir(root.path("shop")).unwrap();
    for (name, content) in [
        ("index.html", include_str!("clients/shop/index.html")),
        ("style.css", include_str!("clients/shop/style.css")),
        ("script.js", include_str!("clients/shop/script.js")),
        ("picture.svg", include_str!("clients/shop/picture.svg")),
        ("data.json", include_str!("clients/shop/data.json")),
    ] {
        fs::write(root.path("shop").join(name), content).unwrap();
    }
    let program = start(&root, &[]);
    // With HTTP_PICTURE=docs/http.png, the picture of the documentation is made again.
    let picture = std::env::var("HTTP_PICTURE").unwrap_or("-".into());
    let output = client(&mut python("http_browser.py", &[&url(&program), &picture]));
    assert_eq!(text(&output.stdout), "done\n");
    program.stop();
}

#[test]
fn a_root_without_files_shows_the_page_of_the_chat() {
    let root = Directory::new();
    let program = start(&root, &[]);
    let mut client = program.connect();
    client.send("GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    assert!(text(&client.rest()).contains("<title>Chat</title>"));
    fs::write(root.path("a file"), "").unwrap();
    let mut client = program.connect();
    client.send("GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    assert!(text(&client.rest()).contains("<a href=\"./a%20file\">a file</a>"));
    program.stop();
}

#[test]
fn a_websocket_where_members_have_no_senders_is_not_implemented() {
    let root = root();
    for mode in ["inline", "forking"] {
        let program = start(&root, &["--mode", mode]);
        let mut client = program.connect();
        client.send(
            "GET /chat HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
        );
        assert!(client.line().starts_with("HTTP/1.1 501 "), "{mode}");
        drop(client);
        program.stop();
    }
}

#[test]
fn an_unusable_argument_is_one_line_and_code_2() {
    for arguments in [
        &["--root", "/nowhere/at/all"][..],
        &["--root", "/dev/null"],
        &["--max-upload", "much"],
        &["--patience", "0"],
        &["--listen", "udp://127.0.0.1:0"],
    ] {
        programs::run("http", arguments).expect_failure(2);
    }
    programs::run("chat", &["--websocket", "udp://127.0.0.1:0"]).expect_failure(2);
    programs::run("chat", &["--websocket", "ws://127.0.0.1:0"]).expect_failure(2);
}

// ---- a stop

#[test]
fn a_stop_lets_uploads_and_downloads_finish_and_then_closes_their_connections() {
    for mode in MODES {
        let root = root();
        let program = start(&root, &["--mode", mode, "--drain", "20"]);
        if mode == "inline" {
            // The one connection that is served.
            let mut upload = program.connect();
            upload.send("PUT /new HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n12345");
            wait_until("the upload begins", || !left_behind(&root).is_empty());
            program.signal("TERM");
            upload.send("67890");
            assert!(head(&mut upload).starts_with("HTTP/1.1 201 "));
            assert_eq!(text(&upload.rest()), "201 Created\n");
            program.stopped();
            continue;
        }
        let mut idle = program.connect();
        idle.send("HEAD /long HTTP/1.1\r\nHost: x\r\n\r\n");
        assert!(!head(&mut idle).contains("Connection: close"), "{mode}");
        let mut download = program.connect();
        download.send("GET /long HTTP/1.1\r\nHost: x\r\n\r\n");
        head(&mut download);
        let mut upload = program.connect();
        upload.send("PUT /new HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n12345");
        wait_until("the upload begins", || !left_behind(&root).is_empty());
        program.signal("TERM");
        idle.expect_end();
        upload.send("67890");
        let answer = head(&mut upload);
        assert!(answer.starts_with("HTTP/1.1 201 "), "{mode}: {answer}");
        // Elsewhere the rest of the upload can be read before its handler is told of the stop.
        let is_told = answer.contains("Connection: close\r\n");
        assert!(is_told || mode != "reactor", "{answer}");
        assert_eq!(text(&upload.rest()), "201 Created\n");
        assert!(download.rest() == long(), "{mode}: the download is not whole");
        assert_eq!(fs::read(root.path("new")).unwrap(), b"1234567890");
        program.stopped();
    }
}

// ---- clients that are slow, many or hostile

#[test]
fn an_upload_that_ends_early_leaves_nothing_behind() {
    for mode in MODES {
        let root = root();
        let program = start(&root, &["--mode", mode]);
        for begin in [
            "PUT /page.html HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n12345",
            "PUT /page.html HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nabcde\r\n",
        ] {
            for ends_with_reset in [false, true] {
                let mut upload = program.connect();
                upload.send(begin);
                wait_until("the upload begins", || !left_behind(&root).is_empty());
                if ends_with_reset {
                    upload.socket.set_linger(Some(Duration::ZERO)).unwrap();
                }
                drop(upload);
                wait_until("nothing is left", || left_behind(&root).is_empty());
            }
        }
        assert_eq!(fs::read(root.path("page.html")).unwrap(), b"<h1>page</h1>");
        program.stop();
    }
}

#[test]
fn forty_stalled_downloads_of_a_gigabyte_take_little_memory_and_hinder_nobody() {
    let root = root();
    gigabyte(&root);
    for mode in ["reactor", "offload"] {
        let program = start(&root, &["--mode", mode]);
        let mut stalled: Vec<_> = (0..40).map(|_| program.connect()).collect();
        for client in &mut stalled {
            client.send("GET /gigabyte HTTP/1.1\r\nHost: x\r\n\r\n");
            assert!(head(client).contains("Content-Length: 1073741824\r\n"));
        }
        for _ in 0..20 {
            answers_at_once(&program);
        }
        let peak = memory(&program, "VmHWM:");
        println!("{mode}: {peak} KiB");
        assert!(peak < BOUNDED, "{mode}: {peak} KiB");
        // One of them reads on, and gets all of it.
        let mut left = 1_u64 << 30;
        let mut buffer = vec![0; 1 << 20];
        while left > 0 {
            let count = stalled[0].socket.read(&mut buffer).unwrap();
            assert!(count > 0, "{left} bytes are missing");
            left -= count as u64;
        }
        let peak = memory(&program, "VmHWM:");
        assert!(peak < BOUNDED, "{mode}: {peak} KiB");
        drop(stalled);
        program.stop();
    }
}

/// Many uploads at once, a piece of each in turn, so that all are under way together.
fn upload_together(mode: &str, uploads: usize, megabytes: usize) {
    let root = root();
    let program = start(&root, &["--mode", mode, "--workers", "16"]);
    let piece = &long()[..1 << 20];
    let length = megabytes << 20;
    let threads: Vec<_> = (0..4)
        .map(|part| {
            let (url, piece) = (program.urls()[0].clone(), piece.to_vec());
            thread::spawn(move || {
                let mut clients: Vec<_> = (0..uploads / 4).map(|_| connect(&url)).collect();
                for (number, client) in clients.iter_mut().enumerate() {
                    client.send(format!(
                        "PUT /{part}-{number} HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\
                         Connection: close\r\n\r\n"
                    ));
                }
                for _ in 0..megabytes {
                    for client in &mut clients {
                        client.send(&piece);
                    }
                }
                for client in &mut clients {
                    assert!(text(&client.rest()).starts_with("HTTP/1.1 201 "));
                }
            })
        })
        .collect();
    for thread in threads {
        thread.join().unwrap();
    }
    let peak = memory(&program, "VmHWM:");
    println!("{mode}: {uploads} uploads of {megabytes} MiB: {peak} KiB");
    // Under offload each connection that waits for a worker keeps one read of 64 KiB.
    assert!(peak < 2 * BOUNDED, "{mode}: {peak} KiB");
    let stored = fs::read(root.path("3-0")).unwrap();
    assert!(stored.len() == length && stored.chunks(1 << 20).all(|stored| stored == piece));
    assert_eq!(left_behind(&root), [""; 0]);
    program.stop();
}

#[test]
fn uploads_at_once_take_little_memory() {
    for mode in ["reactor", "offload"] {
        upload_together(mode, 100, 1);
    }
}

#[test]
#[ignore = "writes 6.4 GB; run with --ignored"]
fn a_hundred_uploads_of_64_mib_at_once_take_little_memory() {
    for mode in ["reactor", "offload"] {
        upload_together(mode, 100, 64);
    }
}

#[test]
fn a_client_that_is_too_slow_with_its_request_is_answered_with_408() {
    let root = root();
    for mode in MODES {
        let program = start(&root, &["--mode", mode, "--patience", "0.4"]);
        for begin in
            ["GET / HTTP/1.1\r\n", "PUT /new HTTP/1.1\r\nHost: x\r\nContent-Length: 90\r\n\r\n"]
        {
            // It goes on, byte by byte, so that it is never silent for long.
            let mut client = program.connect();
            client.send(begin);
            let mut other_half = client.socket.try_clone().unwrap();
            let drip = thread::spawn(move || {
                let begun = Instant::now();
                while other_half.write_all(b"A").is_ok() && begun.elapsed() < programs::DEADLINE {
                    thread::sleep(Duration::from_millis(50));
                }
            });
            let line = client.line();
            assert!(line.starts_with("HTTP/1.1 408 "), "{mode} {begin:?}: {line:?}");
            drop(client);
            drip.join().unwrap();
        }
        // A client that says nothing is not told anything.
        assert_eq!(text(&program.connect().rest()), "", "{mode}");
        assert_eq!(left_behind(&root), [""; 0]);
        program.stop();
    }
}

/// One of the attacks of slowhttptest, while another client requests a page every now and then.
fn withstand(mode: &str, attack: &[&str], connections: &str, seconds: &str) {
    let root = root();
    let program = start(&root, &["--mode", mode, "--patience", "3", "--workers", "16"]);
    let at = format!("{}/long", url(&program));
    let mut slow = Command::new("slowhttptest")
        .args(["-c", connections, "-r", "500", "-i", "1", "-l", seconds, "-u", &at])
        .args(attack)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let (mut worst, mut answered) = (Duration::ZERO, 0);
    while slow.try_wait().unwrap().is_none() {
        worst = worst.max(answers_at_once(&program));
        answered += 1;
        thread::sleep(Duration::from_millis(20));
    }
    let peak = memory(&program, "VmHWM:");
    println!("{mode} {attack:?}: {answered} answered, {worst:?} at worst, {peak} KiB");
    assert!(worst < Duration::from_secs(2), "{mode} {attack:?}: {worst:?}");
    // About 64 KiB of one connection in each worker, and what the connections keep.
    assert!(peak < 4 * BOUNDED, "{mode} {attack:?}: {peak} KiB");
    program.stop();
}

/// Slow heads, slow bodies, many ranges, slow reading.
const ATTACKS: [&[&str]; 4] = [
    &["-H"],
    &["-B", "-t", "PUT", "-s", "100000"],
    &["-R", "-a", "10", "-b", "3000"],
    &["-X", "-w", "512", "-y", "1024", "-n", "1", "-z", "32", "-k", "3"],
];

#[test]
fn slow_clients_in_great_numbers_hinder_nobody() {
    if !have_programs(&["slowhttptest"]) {
        return;
    }
    for attack in ATTACKS {
        withstand("reactor", attack, "300", "3");
    }
}

#[test]
#[ignore = "takes three minutes; run with --ignored"]
fn a_thousand_slow_clients_hinder_nobody_for_long() {
    if !have_programs(&["slowhttptest"]) {
        return;
    }
    for mode in ["reactor", "offload"] {
        for attack in ATTACKS {
            withstand(mode, attack, "1000", "20");
        }
    }
}
