//! The example `drop_privileges`: it binds as root and serves as another user. The tests that need
//! root say so and are skipped without it.
#![cfg(target_os = "linux")]

#[path = "support/programs.rs"]
mod programs;
#[path = "support/tools.rs"]
mod tools;

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use programs::{Directory, Program, example, run, serve, spawn};

const MODES: [&str; 6] = ["reactor", "offload", "inline", "threading", "pool", "forking"];

/// The line of this name in `/proc/PID/status`.
fn status(process: &str, name: &str) -> String {
    let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let value = status.lines().find_map(|line| line.strip_prefix(&format!("{name}:")));
    value.unwrap_or_else(|| panic!("{name}: {status}")).trim().to_owned()
}

fn have_root() -> bool {
    tools::have(status("self", "Uid").split('\t').nth(1) == Some("0"), "root")
}

/// The numbers of the user `nobody` and of its group.
fn nobody() -> (u32, u32) {
    let passwd = fs::read_to_string("/etc/passwd").unwrap();
    let entry = passwd.lines().find(|line| line.starts_with("nobody:")).expect("a user nobody");
    let mut numbers = entry.split(':').skip(2).map(|number| number.parse().unwrap());
    (numbers.next().unwrap(), numbers.next().unwrap())
}

/// Every thread of the process is `nobody` and nothing else.
fn expect_nobody(program: &Program) {
    let (user, group) = nobody();
    for thread in fs::read_dir(format!("/proc/{}/task", program.id())).unwrap() {
        let thread = thread.unwrap().file_name().into_string().unwrap();
        let ids = |id: u32| [id; 4].map(|id| id.to_string()).join("\t");
        assert_eq!(status(&thread, "Uid"), ids(user));
        assert_eq!(status(&thread, "Gid"), ids(group));
        assert_eq!(status(&thread, "Groups"), group.to_string());
        for capabilities in ["CapPrm", "CapEff", "CapInh", "CapAmb"] {
            assert_eq!(status(&thread, capabilities).trim_matches('0'), "", "{capabilities}");
        }
        assert_eq!(status(&thread, "NoNewPrivs"), "1");
    }
}

#[test]
fn a_port_below_1024_is_bound_and_the_user_has_no_rights_in_every_mode() {
    if !have_root() {
        return;
    }
    for mode in MODES {
        println!("under {mode}");
        let free = |port: &u16| TcpListener::bind(("127.0.0.1", *port)).is_ok();
        let port = (700..1024).find(free).expect("a free port below 1024");
        let url = format!("tcp://127.0.0.1:{port}");
        let program = serve("drop_privileges", &[&url], &["--mode", mode]);
        assert_eq!(program.urls()[0], url);
        let mut client = program.connect();
        client.send("hello").expect("hello");
        expect_nobody(&program);
        client.half_close().expect_end();
        program.stop();
    }
}

#[test]
fn a_server_with_another_root_directory_serves() {
    if !have_root() {
        return;
    }
    let directory = Directory::new();
    let path = directory.path("root");
    fs::create_dir(&path).unwrap();
    let program = serve(
        "drop_privileges",
        &["tcp://127.0.0.1:0", "udp://127.0.0.1:0"],
        &["--chroot", path.to_str().unwrap()],
    );
    let link = |name: &str| fs::read_link(format!("/proc/{}/{name}", program.id())).unwrap();
    assert_eq!((link("root"), link("cwd")), (path.clone(), path));
    expect_nobody(&program);
    for url in program.urls() {
        programs::connect(url).send("hello").expect("hello");
    }
    program.stop();
}

#[test]
fn without_root_it_ends_with_one_line_and_does_not_serve() {
    if !have_root() {
        // As the user that runs the tests.
        let ended = run("drop_privileges", &["--listen", "tcp://127.0.0.1:0"]);
        assert!(ended.expect_failure(1).contains("cannot become nobody"), "{ended:?}");
        return;
    }
    // A copy that `nobody` may read and execute, wherever the example was built.
    let directory = Directory::new();
    let copy = directory.path("drop_privileges");
    // Not by this process: a child that another test starts meanwhile would inherit the open copy.
    let copied = Command::new("cp").arg(example("drop_privileges")).arg(&copy).status().unwrap();
    assert!(copied.success());
    fs::set_permissions(&copy, fs::Permissions::from_mode(0o755)).unwrap();
    fs::set_permissions(directory.path("."), fs::Permissions::from_mode(0o755)).unwrap();
    let (user, group) = nobody();
    let mut command = Command::new(copy);
    command.uid(user).gid(group).args(["--listen", "tcp://127.0.0.1:0"]);
    let ended = spawn(&mut command).end();
    assert!(ended.expect_failure(1).contains("cannot become nobody"), "{ended:?}");
}

#[test]
fn a_user_that_cannot_be_one_is_one_line_and_code_2() {
    for user in ["root", "no such user", ""] {
        let ended = run("drop_privileges", &["--user", user]);
        assert!(ended.expect_failure(2).contains("user"), "{ended:?}");
    }
    let help = run("drop_privileges", &["--help"]).stdout.join("\n");
    assert!(help.contains("--user") && help.contains("[default: nobody]"), "{help}");
}
