//! The operating system, thinly: the only `unsafe` of this package.
//!
//! No policy lives here. The baseline server and the load generator are written directly on these
//! wrappers, which is why they are one system call each and nothing more.
#![allow(unsafe_code)]

mod datagrams;
mod epoll;
mod process;
mod socket;

pub use datagrams::Batch;
pub use epoll::{Epoll, Event, Events};
pub use process::{
    anonymous_kib, before_exec, busy_time, children, context_switches, cpu_time, cpus,
    die_with_parent, own_cpu_time, pin_to, pin_to_any, precise_timers, raise_descriptor_limit,
    run_when_idle, signal, thread_states, threads, wait_readable, waiting_time,
};
pub use socket::{Socket, accept, adopt, bind_without_port};

use std::io;

/// Turns the `-1` convention of the C library into a result.
fn check(returned: libc::c_int) -> io::Result<libc::c_int> {
    match returned {
        -1 => Err(io::Error::last_os_error()),
        value => Ok(value),
    }
}

/// As [`check`], for calls that return a length.
fn check_length(returned: isize) -> io::Result<usize> {
    match returned {
        -1 => Err(io::Error::last_os_error()),
        length => Ok(length as usize),
    }
}
