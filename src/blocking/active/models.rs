//! Models of the active connections: loom tries every interleaving of a thread that serves a
//! connection and of one that stops or limits it. The system calls are real.

use std::io::{ErrorKind, Read as _};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

use super::*;
use crate::sync::thread;

/// A registered connection, and its other end.
fn connection() -> (Arc<ActiveConnections>, Registration, Arc<Socket>, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    ours.set_nonblocking(true).unwrap();
    let active = Arc::new(ActiveConnections::default());
    active.reopen(&Arc::default());
    let socket = Arc::new(Socket::from(OwnedFd::from(ours)));
    let registration = active.register(socket.clone(), ConnectionId::next());
    (active, registration, socket, theirs)
}

/// Whether a read in which the thread waits has ended.
fn reads_end(socket: &Socket) -> bool {
    !matches!(sys::receive_now(socket, &mut [0]), Err(error) if error.kind() == ErrorKind::WouldBlock)
}

#[test]
fn a_thread_that_becomes_idle_sees_the_stop_or_the_end_of_its_input() {
    loom::model(|| {
        let (active, registration, socket, _theirs) = connection();
        let served = thread::spawn(move || {
            registration.set_idle(true);
            (registration.is_stopping(), registration)
        });
        active.stop();
        let (is_stopping, registration) = served.join().unwrap();
        assert!(is_stopping || (registration.is_shut() && reads_end(&socket)));
    });
}

#[test]
fn a_thread_that_waits_for_its_wakeup_is_woken_by_a_stop() {
    loom::model(|| {
        let (active, registration, ..) = connection();
        let served = thread::spawn(move || {
            if let Some(wakeup) = registration.wakeup().unwrap() {
                wakeup.wait();
            }
            assert!(registration.is_stopping());
        });
        active.stop();
        served.join().unwrap();
    });
}

#[test]
fn a_thread_that_begins_to_wait_for_output_sees_its_rejection_or_its_socket_is_disconnected() {
    loom::model(|| {
        let (active, registration, _socket, mut theirs) = connection();
        theirs.set_nonblocking(true).unwrap();
        let served = thread::spawn(move || {
            registration.set_stalled(true);
            (registration.limit().is_some(), registration)
        });
        active.reject_waiting(u64::MAX).unwrap();
        let (sees_it, _registration) = served.join().unwrap();
        assert!(sees_it || theirs.read(&mut [0]).is_ok());
    });
}

#[test]
fn a_connection_whose_message_comes_is_not_rejected_and_one_that_is_rejected_sees_it() {
    loom::model(|| {
        let (active, registration, ..) = connection();
        let served = thread::spawn(move || {
            registration.standing().prove();
            registration
        });
        let is_rejected = active.reject_waiting(u64::MAX).is_ok();
        let registration = served.join().unwrap();
        assert_eq!(is_rejected, registration.limit().is_some());
    });
}

#[test]
fn the_memory_of_a_connection_that_is_closed_for_it_counts_once() {
    loom::model(|| {
        let (active, registration, ..) = connection();
        let memory = active.memory.get().unwrap().clone();
        registration.hold(100);
        let served = thread::spawn(move || {
            registration.hold(200);
            registration.hold(50);
            drop(registration);
        });
        active.close_heaviest();
        served.join().unwrap();
        assert_eq!(memory.held(), 0);
    });
}

#[test]
fn a_connection_that_ends_during_a_stop_or_an_abort_is_counted_once() {
    loom::model(|| {
        let (active, registration, ..) = connection();
        let served = thread::spawn(move || {
            registration.set_idle(true);
            if registration.is_stopping() {
                registration.set_found_idle();
            }
        });
        active.stop();
        active.abort_all();
        served.join().unwrap();
        assert!(active.ended_idle() <= 1);
        assert!(lock(&active.connections).is_empty());
    });
}
