//! The files of Unix sockets: whose they are, when they are taken over, and that they go.

#[path = "support/process.rs"]
mod process;
#[path = "support/runner.rs"]
mod runner;

use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::Path;
use std::process::{Command, ExitCode};
use std::sync::{Arc, Barrier};
use std::thread;

use process::{Directory, Process, announce, connect};
use socketserver::{Builder, Error, MAX_UNIX_PATH, Peer, Server, handler_fn};

type Make = fn(&Path) -> Result<Builder, Error>;

const KINDS: [Make; 2] = [|path| Server::unix_stream(path), |path| Server::unix_datagram(path)];

fn built(builder: Builder) -> Result<Server, Error> {
    builder.serve(|_: &Peer| handler_fn(|message, cx| cx.send(message)))
}

fn bound(make: Make, path: &Path) -> Result<Server, Error> {
    built(make(path)?)
}

fn kind_of(error: &Error) -> ErrorKind {
    error.io_kind().expect("what the system said")
}

/// Leaves the file of a socket that nobody listens at.
fn leave_stale(path: &Path) {
    drop(UnixListener::bind(path).unwrap());
    assert!(fs::symlink_metadata(path).unwrap().file_type().is_socket());
}

fn a_stale_file_is_taken_over() {
    for make in KINDS {
        let directory = Directory::new();
        let path = directory.join("socket");
        leave_stale(&path);
        let server = bound(make, &path).unwrap();
        drop(server);
        assert!(!path.exists());
    }
}

fn the_file_of_a_server_that_lives_is_not() {
    for make in KINDS {
        let directory = Directory::new();
        let path = directory.join("socket");
        let first = bound(make, &path).unwrap();
        let inode = fs::metadata(&path).unwrap().ino();
        // Whatever kind the second one is.
        for other in KINDS {
            let error = bound(other, &path).unwrap_err();
            assert_eq!(kind_of(&error), ErrorKind::AddrInUse);
            assert!(error.to_string().contains(path.to_str().unwrap()), "{error}");
        }
        assert_eq!(fs::metadata(&path).unwrap().ino(), inode);
        drop(first);
        assert!(!path.exists());
    }
}

fn the_file_of_a_server_with_a_full_queue_is_not_either() {
    let directory = Directory::new();
    let path = directory.join("socket");
    let busy = built(Server::unix_stream(&path).unwrap().request_queue_size(0)).unwrap();
    let _waiting = UnixStream::connect(&path).unwrap();
    assert_eq!(kind_of(&bound(KINDS[0], &path).unwrap_err()), ErrorKind::AddrInUse);
    assert!(path.exists());
    drop(busy);
}

fn what_is_no_socket_is_never_removed() {
    for make in KINDS {
        let directory = Directory::new();
        let (file, link, dangling) =
            (directory.join("file"), directory.join("link"), directory.join("dangling"));
        fs::write(&file, "precious").unwrap();
        symlink(&file, &link).unwrap();
        symlink(directory.join("nowhere"), &dangling).unwrap();
        fs::create_dir(directory.join("inner")).unwrap();
        for path in [&file, &link, &dangling, &directory.join("inner")] {
            let error = bound(make, path).unwrap_err();
            assert!(error.to_string().contains(path.to_str().unwrap()), "{error}");
            assert!(fs::symlink_metadata(path).is_ok(), "{} stays", path.display());
        }
        assert_eq!(fs::read_to_string(&file).unwrap(), "precious");
    }
}

fn a_link_to_a_stale_socket_is_not_followed_to_it() {
    let directory = Directory::new();
    let (socket, link) = (directory.join("socket"), directory.join("link"));
    leave_stale(&socket);
    symlink(&socket, &link).unwrap();
    assert!(bound(KINDS[0], &link).is_err());
    assert!(socket.exists());
    assert!(fs::symlink_metadata(&link).is_ok());
}

fn the_own_file_goes_with_the_server_from_wherever_it_works() {
    let directory = Directory::new();
    let server = Process::start(2, &["both", directory.path().to_str().unwrap()]);
    let paths = [directory.join("stream"), directory.join("datagram")];
    assert!(paths.iter().all(|path| path.exists()));
    stop(server, libc::SIGTERM);
    assert!(!paths.iter().any(|path| path.exists()), "although the process has gone elsewhere");
}

fn after_sigint_too() {
    let directory = Directory::new();
    let server = Process::start(2, &["both", directory.path().to_str().unwrap()]);
    stop(server, libc::SIGINT);
    assert!(!directory.join("stream").exists());
}

/// A killed server leaves its file, and the next one takes it over.
fn a_killed_servers_file_is_taken_over() {
    let directory = Directory::new();
    let mut killed = Process::start(2, &["both", directory.path().to_str().unwrap()]);
    killed.signal(libc::SIGKILL);
    killed.wait();
    assert!(directory.join("stream").exists());
    let next = Process::start(2, &["both", directory.path().to_str().unwrap()]);
    let url = format!("unix://{}", directory.join("stream").display());
    connect(&url).send("hello").expect("hello");
    stop(next, libc::SIGTERM);
    assert!(!directory.join("stream").exists());
}

fn a_forked_child_does_not_remove_its_parents_file() {
    let directory = Directory::new();
    let server = Process::start(2, &["forking", directory.path().to_str().unwrap()]);
    for _ in 0..3 {
        connect(server.url()).send("hello").expect("hello").end().expect_end();
    }
    assert!(directory.join("stream").exists());
    stop(server, libc::SIGTERM);
    assert!(!directory.join("stream").exists());
}

fn a_file_that_someone_else_has_put_there_is_left() {
    for make in KINDS {
        let directory = Directory::new();
        let path = directory.join("socket");
        let server = bound(make, &path).unwrap();
        fs::remove_file(&path).unwrap();
        let theirs = UnixDatagram::bind(&path).unwrap();
        drop(server);
        assert!(path.exists(), "it is another's now");
        drop(theirs);
        let server = bound(make, &path).unwrap();
        fs::remove_file(&path).unwrap();
        fs::write(&path, "no socket").unwrap();
        drop(server);
        assert_eq!(fs::read_to_string(&path).unwrap(), "no socket");
    }
}

fn the_mode_is_as_asked() {
    for make in KINDS {
        for mode in [0o600, 0o660, 0o666] {
            let directory = Directory::new();
            let path = directory.join("socket");
            let _server = built(make(&path).unwrap().unix_mode(mode)).unwrap();
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, mode);
        }
    }
}

fn a_path_may_be_as_long_as_the_system_allows_and_no_longer() {
    for make in KINDS {
        let directory = Directory::new();
        let room = MAX_UNIX_PATH - directory.path().as_os_str().len() - 1;
        let longest = directory.join(&"x".repeat(room));
        drop(bound(make, &longest).unwrap());
        let error = bound(make, &directory.join(&"x".repeat(room + 1))).unwrap_err();
        assert!(matches!(error, Error::UnusableAddress { .. }), "{error:?}");
    }
    assert!(matches!(Server::unix_stream(""), Err(Error::UnusableAddress { .. })));
    assert!(matches!(Server::unix_stream("a\0b"), Err(Error::UnusableAddress { .. })));
}

/// Several servers start on one stale file at the same moment: one of them has it, the others are
/// told so, and the one that has it can be reached.
fn of_several_that_start_on_a_stale_file_one_wins() {
    const STARTERS: usize = 4;
    for round in 0..200 {
        let directory = Directory::new();
        let path = Arc::new(directory.join("socket"));
        leave_stale(&path);
        let barrier = Arc::new(Barrier::new(STARTERS));
        let starters: Vec<_> = (0..STARTERS)
            .map(|_| {
                let (path, barrier) = (path.clone(), barrier.clone());
                thread::spawn(move || {
                    barrier.wait();
                    bound(KINDS[round % 2], &path)
                })
            })
            .collect();
        let results: Vec<_> = starters.into_iter().map(|starter| starter.join().unwrap()).collect();
        let (won, lost): (Vec<_>, Vec<_>) = results.into_iter().partition(Result::is_ok);
        assert_eq!(won.len(), 1, "in round {round}: {lost:?}");
        for error in lost {
            assert_eq!(kind_of(&error.unwrap_err()), ErrorKind::AddrInUse);
        }
        if round % 2 == 0 {
            UnixStream::connect(&*path).expect("the winner listens");
        }
        drop(won);
        assert!(!path.exists());
    }
}

/// Nobody who may only read a directory can hold up who binds there.
fn a_lock_on_the_directory_holds_up_nobody() {
    for make in KINDS {
        let directory = Directory::new();
        let theirs = File::open(directory.path()).unwrap();
        theirs.lock().unwrap();
        leave_stale(&directory.join("socket"));
        bound(make, &directory.join("socket")).expect("a lock of somebody else's is none");
    }
}

fn nothing_but_the_socket_is_left_beside_it() {
    for make in KINDS {
        let directory = Directory::new();
        let path = directory.join("socket");
        let names = || {
            let entries = fs::read_dir(directory.path()).unwrap();
            entries.map(|entry| entry.unwrap().file_name()).collect::<Vec<_>>()
        };
        let server = bound(make, &path).unwrap();
        assert_eq!(names(), ["socket"]);
        bound(make, &path).unwrap_err();
        assert_eq!(names(), ["socket"]);
        drop(server);
        assert!(names().is_empty());
    }
}

/// What a server that was killed while it bound has left behind, or who still binds.
fn a_lock_left_behind_is_taken_over_and_one_that_is_held_is_told_of() {
    for make in KINDS {
        let directory = Directory::new();
        let (path, lock) = (directory.join("socket"), directory.join(".socket.lock"));
        let theirs = File::create(&lock).unwrap();
        drop(bound(make, &path).unwrap());
        assert!(!lock.exists());
        drop(theirs);
        let theirs = File::create(&lock).unwrap();
        theirs.lock().unwrap();
        let error = bound(make, &path).unwrap_err();
        assert!(format!("{error:#}").contains(".socket.lock"), "{error:#}");
        assert!(!path.exists() && lock.exists());
        drop(theirs);
        bound(make, &path).unwrap();
        // Nor is a link followed.
        let elsewhere = directory.join("elsewhere");
        symlink(&elsewhere, &lock).unwrap();
        bound(make, &path).unwrap_err();
        assert!(!elsewhere.exists());
    }
}

/// A file that happens to be called like the lock is locked, and stays.
fn a_file_of_somebody_elses_that_is_called_like_the_lock_is_left() {
    for make in KINDS {
        let directory = Directory::new();
        let (path, lock) = (directory.join("socket"), directory.join(".socket.lock"));
        fs::write(&lock, "precious").unwrap();
        drop(bound(make, &path).unwrap());
        assert_eq!(fs::read_to_string(&lock).unwrap(), "precious");
        fs::remove_file(&lock).unwrap();
        assert!(Command::new("mkfifo").arg(&lock).status().unwrap().success());
        drop(bound(make, &path).unwrap());
        assert!(fs::symlink_metadata(&lock).unwrap().file_type().is_fifo());
    }
}

// The server

fn serve(arguments: &[String]) {
    let [what, directory] = arguments else { panic!("what to serve") };
    // Relative, and then the directory is left.
    std::env::set_current_dir(directory).unwrap();
    let mode = if what == "forking" { "forking" } else { "reactor" };
    let mode: socketserver::Mode = mode.parse().unwrap();
    let mut server = Server::new().unwrap();
    for (make, name) in KINDS.into_iter().zip(["stream", "datagram"]) {
        let path = if what == "both" {
            Path::new(name).to_owned()
        } else {
            Path::new(directory).join(name)
        };
        let service = make(&path).unwrap().mode(mode);
        let service = service.service(|_: &Peer| handler_fn(|message, cx| cx.send(message)));
        server.add(service.unwrap()).unwrap();
    }
    server.stop_on_signals().unwrap();
    announce(&server.addresses());
    std::env::set_current_dir("/").unwrap();
    server.serve_forever().unwrap();
}

fn stop(mut server: Process, signal: i32) {
    server.signal(signal);
    server.expect_success();
}

fn main() -> ExitCode {
    let Some(arguments) = runner::arguments_unless_serving(serve) else {
        return ExitCode::SUCCESS;
    };
    let tests = tests![
        a_stale_file_is_taken_over,
        the_file_of_a_server_that_lives_is_not,
        the_file_of_a_server_with_a_full_queue_is_not_either,
        what_is_no_socket_is_never_removed,
        a_link_to_a_stale_socket_is_not_followed_to_it,
        the_own_file_goes_with_the_server_from_wherever_it_works,
        after_sigint_too,
        a_killed_servers_file_is_taken_over,
        a_forked_child_does_not_remove_its_parents_file,
        a_file_that_someone_else_has_put_there_is_left,
        the_mode_is_as_asked,
        a_path_may_be_as_long_as_the_system_allows_and_no_longer,
        of_several_that_start_on_a_stale_file_one_wins,
        a_lock_on_the_directory_holds_up_nobody,
        nothing_but_the_socket_is_left_beside_it,
        a_lock_left_behind_is_taken_over_and_one_that_is_held_is_told_of,
        a_file_of_somebody_elses_that_is_called_like_the_lock_is_left,
    ];
    runner::run(tests, arguments.into_iter()).0
}
