//! The end of a peer whose input is paused, in every mode whose handlers run in this process.

mod support;

use std::io::Write as _;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use socketserver::{Context, HandlerResult, Lines, Mode, Server};
use support::*;

const PAUSE: Duration = Duration::from_millis(200);

fn modes() -> impl Iterator<Item = Mode> {
    Mode::all().filter(|mode| mode.name() != "forking")
}

/// Pauses the input when the connection opens, and resumes it at the idle timeout.
fn pause_for_a_while(call: &Call, cx: &mut Context<'_>) -> HandlerResult {
    match call {
        Call::Open => {
            cx.pause_input();
            cx.set_idle_timeout(PAUSE)?;
        }
        Call::Timeout => {
            cx.resume_input();
            cx.set_idle_timeout(None)?;
        }
        Call::Eof => cx.close(),
        Call::Message(_) | Call::Close(_) => {}
    }
    Ok(())
}

#[test]
fn messages_of_a_unix_peer_that_has_closed_are_delivered_when_the_input_is_resumed() {
    let directory = std::env::temp_dir().join(format!("pausing-{}", std::process::id()));
    std::fs::create_dir_all(&directory).unwrap();
    for mode in modes() {
        let (make, calls) = recorders(pause_for_a_while);
        let path = directory.join(mode.name());
        let builder = Server::unix_stream(&path).unwrap().framing(Lines::default()).mode(mode);
        let server = start_server(builder.serve(make).unwrap());
        let mut client = UnixStream::connect(&path).unwrap();
        client.write_all(b"one\ntwo\n").unwrap();
        drop(client);
        let close = Call::Close("end of input".into());
        for call in [Call::Open, Call::Timeout, message("one"), message("two"), Call::Eof, close] {
            assert_eq!(expect_next(&calls), call, "{mode}");
        }
        server.stop();
    }
    std::fs::remove_dir_all(&directory).unwrap();
}

#[test]
fn a_reset_by_a_peer_whose_input_is_paused_after_the_output_was_finished_is_a_disconnect() {
    for mode in modes() {
        let (make, calls) = recorders(|call, cx| {
            if *call == Call::Open {
                cx.pause_input();
                cx.finish_output();
                cx.set_idle_timeout(DEADLINE)?;
            }
            Ok(())
        });
        let server = Server::tcp("127.0.0.1:0").unwrap().mode(mode).serve(make).unwrap();
        let server = start_server(server);
        let mut client = server.connect();
        assert_eq!(client.read_to_end(), b"", "{mode}: the output has ended");
        client.reset();
        let reason = expect_close(&calls);
        assert!(reason.starts_with("disconnected"), "{mode}: {reason}");
        server.stop();
    }
}
