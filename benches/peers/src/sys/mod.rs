//! Thin wrappers of system calls, with all `unsafe` code of this package.
//!
//! They contain no policy: the baseline server and the load generator use them directly, so each
//! wrapper makes one system call.
#![allow(unsafe_code)]

mod datagrams;
mod epoll;
mod process;
mod socket;

pub use datagrams::Batch;
pub use epoll::{Epoll, Event, Events};
pub use process::{
    Resources, anonymous_kib, before_exec, busy_time, children, context_switches, cpu_time, cpus,
    die_with_parent, limit_descriptors, lower_priority, own_cpu_time, pin_to, pin_to_any,
    precise_timers, raise_descriptor_limit, resources, run_when_idle, signal, thread_states,
    threads, wait_readable, waiting_time,
};
pub use socket::{Socket, accept, adopt, bind_without_port};

use std::io;

/// Converts the C library's -1 into an error.
fn check(returned: libc::c_int) -> io::Result<libc::c_int> {
    match returned {
        -1 => Err(io::Error::last_os_error()),
        value => Ok(value),
    }
}

/// The same as [`check`], for calls that return a length.
fn check_length(returned: isize) -> io::Result<usize> {
    match returned {
        -1 => Err(io::Error::last_os_error()),
        length => Ok(length as usize),
    }
}
