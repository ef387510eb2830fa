//! socketserver's reactor with `Lines` framing, which its example `echo` does not have.

use anyhow::Result;
use socketserver::{Context, Lines, Server, handler_fn};

use super::announce;
use crate::endpoint::Endpoint;

pub(super) fn serve(listen: &Endpoint) -> Result<()> {
    let listen: socketserver::Endpoint = listen.to_string().parse()?;
    let echo = |_: &_| handler_fn(|line: &[u8], cx: &mut Context<'_>| cx.send(line));
    let mut server = Server::listen(&listen)?.framing(Lines::default()).serve(echo)?;
    server.stop_on_signals()?;
    announce(&server.local_addr().to_string().parse()?)?;
    server.serve_forever()?;
    Ok(())
}
