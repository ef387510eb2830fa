//! The program of `README.md`, as it is printed there, at a free port.

mod program {
    #![allow(missing_docs)]

    /// The crate, with a server that binds a free port of the same host and prints its address.
    mod socketserver {
        use std::net::TcpListener;
        use std::os::fd::OwnedFd;

        use ::socketserver::Builder;
        pub(super) use ::socketserver::{Context, Error, Handler, HandlerResult, Limits, Lines};

        pub(super) struct Server;

        impl Server {
            pub(super) fn tcp(address: &str) -> Result<Builder, Error> {
                let host = address.split(':').next().unwrap();
                let listener = TcpListener::bind((host, 0)).expect("a free port");
                println!("listening on tcp://{}", listener.local_addr().expect("its address"));
                ::socketserver::Server::from_socket(OwnedFd::from(listener))
            }
        }
    }

    include!("program.rs");

    pub(super) fn run() -> Result<(), socketserver::Error> {
        main()
    }
}

fn main() -> Result<(), socketserver::Error> {
    program::run()
}
