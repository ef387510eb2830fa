//! The twelve server classes of Python by name: short constructors for programs that are ported
//! from Python.

use std::fmt::Debug;
use std::net::ToSocketAddrs;
use std::path::Path;

use super::{Builder, Server};
use crate::accepted::Accepted;
use crate::blocking::RequestHandler;
use crate::conversation::Raw;
use crate::error::Error;
use crate::modes::{Forking, Inline, Threading};

/// An address for an example of a constructor of [`Server`].
macro_rules! address {
    (tcp) => {
        "127.0.0.1:9999"
    };
    (udp) => {
        "127.0.0.1:9999"
    };
    ($unix:ident) => {
        "/run/hello.socket"
    };
}

macro_rules! classes {
    ($($name:ident = $python:literal: $begin:ident($address:ident: $($bound:tt)+), $mode:ident $(+ $send:ident)?;)+) => {$(
        #[doc = concat!("Python's [`", $python, "`](https://docs.python.org/3/library/socketserver.html).")]
        ///
        #[doc = concat!("Short for [`Server::", stringify!($begin), "`] with [`", stringify!($mode), "`].")]
        ///
        /// ```no_run
        #[doc = concat!("use socketserver::{HandlerResult, Request, RequestHandler, ", stringify!($name), "};")]
        ///
        /// struct Hello;
        ///
        /// impl RequestHandler for Hello {
        ///     fn handle(&mut self, request: &mut Request<'_>) -> HandlerResult {
        ///         Ok(std::io::Write::write_all(request, b"hello\n")?)
        ///     }
        /// }
        ///
        #[doc = concat!("let mut server = ", stringify!($name), "::bind(\"", address!($begin), "\", |_client| Hello)?;")]
        /// server.serve_forever()?;
        ///
        /// // The same, with an option before it listens:
        #[doc = concat!("let builder = ", stringify!($name), "::builder(\"", address!($begin), "\")?;")]
        /// builder.request_queue_size(128).serve_blocking(|_client| Hello)?.serve_forever()?;
        /// # Ok::<(), socketserver::Error>(())
        /// ```
        #[derive(Debug, Clone, Copy)]
        pub struct $name;

        impl $name {
            /// Binds, listens, and answers each request with a new handler: Python's constructor.
            ///
            /// # Errors
            ///
            /// As for the [`Server`]'s constructor and [`Builder::serve_blocking`].
            pub fn bind<R>(
                $address: $($bound)+,
                make: impl FnMut(&Accepted<'_>) -> R + Send + 'static,
            ) -> Result<Server, Error>
            where
                R: RequestHandler $(+ $send)? + 'static,
            {
                Self::builder($address)?.serve_blocking(make)
            }

            /// As [`bind`](Self::bind), but returns the builder, so that options can be set:
            /// Python's `bind_and_activate=False` and class attributes.
            ///
            /// # Errors
            ///
            /// As for the [`Server`]'s constructor.
            pub fn builder($address: $($bound)+) -> Result<Builder<Raw, $mode>, Error> {
                Ok(Server::$begin($address)?.mode($mode::default()))
            }
        }
    )+};
}

classes! {
    TcpServer = "TCPServer": tcp(address: impl ToSocketAddrs + Debug), Inline;
    UdpServer = "UDPServer": udp(address: impl ToSocketAddrs + Debug), Inline;
    UnixStreamServer = "UnixStreamServer": unix_stream(path: impl AsRef<Path>), Inline;
    UnixDatagramServer = "UnixDatagramServer": unix_datagram(path: impl AsRef<Path>), Inline;
    ThreadingTcpServer = "ThreadingTCPServer":
        tcp(address: impl ToSocketAddrs + Debug), Threading + Send;
    ThreadingUdpServer = "ThreadingUDPServer":
        udp(address: impl ToSocketAddrs + Debug), Threading + Send;
    ThreadingUnixStreamServer = "ThreadingUnixStreamServer":
        unix_stream(path: impl AsRef<Path>), Threading + Send;
    ThreadingUnixDatagramServer = "ThreadingUnixDatagramServer":
        unix_datagram(path: impl AsRef<Path>), Threading + Send;
    ForkingTcpServer = "ForkingTCPServer": tcp(address: impl ToSocketAddrs + Debug), Forking;
    ForkingUdpServer = "ForkingUDPServer": udp(address: impl ToSocketAddrs + Debug), Forking;
    ForkingUnixStreamServer = "ForkingUnixStreamServer":
        unix_stream(path: impl AsRef<Path>), Forking;
    ForkingUnixDatagramServer = "ForkingUnixDatagramServer":
        unix_datagram(path: impl AsRef<Path>), Forking;
}
