//! The files of Unix sockets: which are replaced, which are left alone, and when they are removed.

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
use socketserver::{Accepted, Builder, Error, MAX_UNIX_PATH, Server, handler_fn};

type Make = fn(&Path) -> Result<Builder, Error>;

const KINDS: [Make; 2] = [|path| Server::unix_stream(path), |path| Server::unix_datagram(path)];

fn built(builder: Builder) -> Result<Server, Error> {
    builder.serve(|_: &Accepted<'_>| handler_fn(|message, cx| cx.send(message)))
}

fn bound(make: Make, path: &Path) -> Result<Server, Error> {
    built(make(path)?)
}

fn kind_of(error: &Error) -> ErrorKind {
    error.io_kind().expect("an I/O error")
}

/// Creates the file of a socket that no process listens at.
fn leave_stale(path: &Path) {
    drop(UnixListener::bind(path).unwrap());
    assert!(fs::symlink_metadata(path).unwrap().file_type().is_socket());
}

fn a_stale_socket_file_is_replaced() {
    for make in KINDS {
        let directory = Directory::new();
        let path = directory.join("socket");
        leave_stale(&path);
        let server = bound(make, &path).unwrap();
        drop(server);
        assert!(!path.exists());
    }
}

fn the_file_of_a_running_server_is_not_replaced() {
    for make in KINDS {
        let directory = Directory::new();
        let path = directory.join("socket");
        let first = bound(make, &path).unwrap();
        let inode = fs::metadata(&path).unwrap().ino();
        // The second server may be of either kind.
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

fn the_file_of_a_server_with_a_full_queue_is_not_replaced() {
    let directory = Directory::new();
    let path = directory.join("socket");
    let busy = built(Server::unix_stream(&path).unwrap().request_queue_size(0)).unwrap();
    let _waiting = UnixStream::connect(&path).unwrap();
    assert_eq!(kind_of(&bound(KINDS[0], &path).unwrap_err()), ErrorKind::AddrInUse);
    assert!(path.exists());
    drop(busy);
}

fn a_file_that_is_not_a_socket_is_never_removed() {
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
            assert!(fs::symlink_metadata(path).is_ok(), "{} is removed", path.display());
        }
        assert_eq!(fs::read_to_string(&file).unwrap(), "precious");
    }
}

fn a_link_to_a_stale_socket_is_not_followed() {
    let directory = Directory::new();
    let (socket, link) = (directory.join("socket"), directory.join("link"));
    leave_stale(&socket);
    symlink(&socket, &link).unwrap();
    assert!(bound(KINDS[0], &link).is_err());
    assert!(socket.exists());
    assert!(fs::symlink_metadata(&link).is_ok());
}

fn the_socket_file_is_removed_although_the_working_directory_has_changed() {
    let directory = Directory::new();
    let server = Process::start(2, &["both", directory.path().to_str().unwrap()]);
    let paths = [directory.join("stream"), directory.join("datagram")];
    assert!(paths.iter().all(|path| path.exists()));
    stop(server, libc::SIGTERM);
    assert!(!paths.iter().any(|path| path.exists()), "the socket files are left");
}

fn the_socket_file_is_removed_after_sigint() {
    let directory = Directory::new();
    let server = Process::start(2, &["both", directory.path().to_str().unwrap()]);
    stop(server, libc::SIGINT);
    assert!(!directory.join("stream").exists());
}

/// A killed server cannot remove its file.
fn the_file_of_a_killed_server_is_replaced() {
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

fn a_file_that_another_process_put_there_is_not_removed() {
    for make in KINDS {
        let directory = Directory::new();
        let path = directory.join("socket");
        let server = bound(make, &path).unwrap();
        fs::remove_file(&path).unwrap();
        let theirs = UnixDatagram::bind(&path).unwrap();
        drop(server);
        assert!(path.exists(), "the file of another process is removed");
        drop(theirs);
        let server = bound(make, &path).unwrap();
        fs::remove_file(&path).unwrap();
        fs::write(&path, "no socket").unwrap();
        drop(server);
        assert_eq!(fs::read_to_string(&path).unwrap(), "no socket");
    }
}

fn the_socket_file_has_the_requested_mode() {
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

/// Several servers start on one stale file at the same moment: one binds and can be reached, and
/// the others fail with `AddrInUse`.
fn of_several_servers_that_start_on_a_stale_file_exactly_one_binds() {
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
            UnixStream::connect(&*path).expect("the server that has bound listens");
        }
        drop(won);
        assert!(!path.exists());
    }
}

/// A user who can only read the directory can lock it, and must not delay a bind there.
fn a_lock_on_the_directory_does_not_delay_a_bind() {
    for make in KINDS {
        let directory = Directory::new();
        let theirs = File::open(directory.path()).unwrap();
        theirs.lock().unwrap();
        leave_stale(&directory.join("socket"));
        bound(make, &directory.join("socket")).expect("a lock on the directory has no effect");
    }
}

fn only_the_socket_file_is_left_in_the_directory() {
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

/// A server that is killed while it binds leaves its lock file; one that still binds holds a lock
/// on it.
fn a_stale_lock_file_is_replaced_and_a_held_one_is_an_error_that_names_it() {
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
        // A link is not followed.
        let elsewhere = directory.join("elsewhere");
        symlink(&elsewhere, &lock).unwrap();
        bound(make, &path).unwrap_err();
        assert!(!elsewhere.exists());
    }
}

/// It is locked and left in place.
fn a_foreign_file_with_the_name_of_the_lock_is_not_removed() {
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
    let [what, directory] = arguments else { panic!("wrong arguments: {arguments:?}") };
    // The paths are relative; the working directory changes before the server stops.
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
        let service =
            service.service(|_: &Accepted<'_>| handler_fn(|message, cx| cx.send(message)));
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
        a_stale_socket_file_is_replaced,
        the_file_of_a_running_server_is_not_replaced,
        the_file_of_a_server_with_a_full_queue_is_not_replaced,
        a_file_that_is_not_a_socket_is_never_removed,
        a_link_to_a_stale_socket_is_not_followed,
        the_socket_file_is_removed_although_the_working_directory_has_changed,
        the_socket_file_is_removed_after_sigint,
        the_file_of_a_killed_server_is_replaced,
        a_forked_child_does_not_remove_its_parents_file,
        a_file_that_another_process_put_there_is_not_removed,
        the_socket_file_has_the_requested_mode,
        a_path_may_be_as_long_as_the_system_allows_and_no_longer,
        of_several_servers_that_start_on_a_stale_file_exactly_one_binds,
        a_lock_on_the_directory_does_not_delay_a_bind,
        only_the_socket_file_is_left_in_the_directory,
        a_stale_lock_file_is_replaced_and_a_held_one_is_an_error_that_names_it,
        a_foreign_file_with_the_name_of_the_lock_is_not_removed,
    ];
    runner::run(tests, arguments.into_iter()).0
}
