//! The Rust program of `docs/from-python.md`, as it is printed there, at a free port. Its line with
//! `listening on` is the one of `run.py`, which starts the Python program.

mod program {
    #![allow(missing_docs)]

    /// The crate, with a server that binds a free port of the same host and prints its address.
    mod socketserver {
        use ::socketserver::{Accepted, Server};
        pub(super) use ::socketserver::{Error, HandlerResult, Request, RequestHandler};

        pub(super) struct ThreadingTcpServer;

        impl ThreadingTcpServer {
            pub(super) fn bind<R: RequestHandler + Send + 'static>(
                (host, _): (&str, u16),
                make: impl FnMut(&Accepted<'_>) -> R + Send + 'static,
            ) -> Result<Server, Error> {
                let server = ::socketserver::ThreadingTcpServer::bind((host, 0), make)?;
                println!("listening on {}", server.local_addr());
                Ok(server)
            }
        }
    }

    include!("program.rs");

    pub(super) fn run() -> Result<(), Error> {
        main()
    }
}

fn main() -> Result<(), socketserver::Error> {
    program::run()
}
