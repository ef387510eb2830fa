use std::io::Write;

use socketserver::{Error, HandlerResult, Request, RequestHandler, ThreadingTcpServer};

struct MyTcpHandler;

impl RequestHandler for MyTcpHandler {
    fn handle(&mut self, request: &mut Request<'_>) -> HandlerResult {
        let line = request.rfile().read_line()?.unwrap_or_default();
        let line = String::from_utf8(line.trim_ascii().to_vec())?;
        let client = request.client_address().inet().unwrap();
        println!("{} wrote: {line}", client.ip());
        request.wfile().write_all(line.to_ascii_uppercase().as_bytes())?;
        Ok(())
    }
}

fn main() -> Result<(), Error> {
    let mut server = ThreadingTcpServer::bind(("localhost", 9999), |_client| MyTcpHandler)?;
    server.serve_forever()?;
    Ok(())
}
