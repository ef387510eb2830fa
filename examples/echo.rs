//! Echo.
use socketserver::*;
fn main() -> Result<(), Error> {
    env_logger::init();
    let url: Endpoint = std::env::args().nth(1).unwrap().parse()?;
    let off = std::env::args().nth(2).is_some();
    let b = Server::listen(&url)?;
    let mut s = if off {
        b.dispatch(Offload::new(4))
            .serve(|_p| handler_fn(|m, cx| cx.send(m)))?
    } else {
        b.serve(|_p| handler_fn(|m, cx| cx.send(m)))?
    };
    s.stop_on_signals()?;
    println!("listening on {}", s.local_addr());
    let r = s.serve_forever()?;
    eprintln!("{r:?} {:?}", s.counters());
    Ok(())
}
