//! A server that binds as root and serves as another user: an echo that may listen on a port below
//! 1024, and whose handlers can do nothing that the user cannot.
//!
//! The order matters. First comes all that needs root: sockets are bound, files opened, limits raised.
//! Then the process changes its root directory, its groups, its group and its user, in this order,
//! because each step needs the rights that a later one gives up. Then it proves that there is no way
//! back. Only then does it read a byte from a peer or start a thread.
//!
//! After that, the server may not be able to remove the files of Unix sockets. systemd can bind sockets
//! for a program, which then needs no rights at all: see `Server::from_socket`.
//!
//! Try `sudo drop_privileges --listen tcp://127.0.0.1:7 --user nobody` and `nc 127.0.0.1 7`.

mod common;

use std::ffi::CString;

use common::{About, Options, fail, unless_failed};
use nix::errno::Errno;
use nix::sys::prctl;
use nix::unistd::{Gid, Uid, User};
use socketserver::{Context, Handler, HandlerResult, Server};

struct Echo;

impl Handler for Echo {
    fn on_message(&mut self, message: &[u8], cx: &mut Context<'_>) -> HandlerResult {
        cx.send(message)
    }
}

/// The user of this name. It is looked up before the root directory changes.
fn user(name: &str) -> User {
    match User::from_name(name) {
        Ok(Some(user)) if user.uid.is_root() => fail("--user root gives up nothing", 2),
        Ok(Some(user)) => user,
        Ok(None) => fail(format_args!("there is no user {name:?}"), 2),
        Err(error) => fail(format_args!("the user {name:?}: {error}"), 1),
    }
}

/// Makes this directory the root directory of the process.
fn change_root(directory: &str) -> std::io::Result<()> {
    std::os::unix::fs::chroot(directory)?;
    // The working directory would still be outside.
    std::env::set_current_dir("/")
}

/// Becomes this user, for ever.
fn become_user(user: &User) -> nix::Result<()> {
    let (uid, gid) = (user.uid, user.gid);
    let name = CString::new(user.name.as_str()).map_err(|_| Errno::EINVAL)?;
    nix::unistd::initgroups(&name, gid)?;
    // The real, the effective and the saved ID: a process can go back to any that is left.
    nix::unistd::setresgid(gid, gid, gid)?;
    nix::unistd::setresuid(uid, uid, uid)?;
    assert_no_way_back();
    // From now on, no program with a set-user-ID bit gives rights back.
    prctl::set_no_new_privs()
}

/// Tries to become root again, which must fail.
fn assert_no_way_back() {
    let root = (Uid::from_raw(0), Gid::from_raw(0));
    let returns = [
        nix::unistd::setuid(root.0),
        nix::unistd::seteuid(root.0),
        nix::unistd::setgid(root.1),
        nix::unistd::setegid(root.1),
        nix::unistd::setgroups(&[root.1]),
    ];
    if returns.iter().any(|result| *result != Err(Errno::EPERM)) {
        fail(format_args!("the way back to root is open: {returns:?}"), 1);
    }
}

fn main() {
    let options = Options::parse(&About {
        values: &[
            ("user", "nobody", "the user to become"),
            ("chroot", "/", "the directory that becomes the root directory"),
        ],
        ..About::new(
            "drop_privileges",
            "An echo that binds its sockets as root and serves as another user.",
            "tcp://127.0.0.1:9999",
        )
    });
    let user = user(options.value("user").unwrap_or_default());
    let server = unless_failed(options.server(|endpoint| {
        Server::endpoint(endpoint)?.mode(options.mode).limits(options.limits()).service(|_| Echo)
    }));
    let root = options.value("chroot").unwrap_or_default();
    if root != "/"
        && let Err(error) = change_root(root)
    {
        fail(format_args!("{root} cannot become the root directory: {error}"), 1);
    }
    if let Err(error) = become_user(&user) {
        fail(format_args!("cannot become {}: {error}", user.name), 1);
    }
    unless_failed(options.serve(server));
}
