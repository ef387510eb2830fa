"""Echo servers on Python's standard library.

usage: echo.py {threading,forking,asyncio} URL      URL: tcp://HOST:PORT, udp://HOST:PORT or unix://PATH
"""

import asyncio
import socket
import socketserver
import sys

BACKLOG = 4096
READ_BUFFER = 64 << 10


class EchoStream(socketserver.BaseRequestHandler):
    def setup(self):
        if self.request.family != socket.AF_UNIX:
            self.request.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, True)

    def handle(self):
        while data := self.request.recv(READ_BUFFER):
            self.request.sendall(data)


class EchoDatagram(socketserver.BaseRequestHandler):
    def handle(self):
        data, server = self.request
        server.sendto(data, self.client_address)


class EchoProtocol(asyncio.Protocol):
    def connection_made(self, transport):
        self.transport = transport

    def data_received(self, data):
        self.transport.write(data)

    def pause_writing(self):
        self.transport.pause_reading()

    def resume_writing(self):
        self.transport.resume_reading()


class EchoDatagramProtocol(asyncio.DatagramProtocol):
    def connection_made(self, transport):
        self.transport = transport

    def datagram_received(self, data, peer):
        self.transport.sendto(data, peer)


SERVERS = {
    ("threading", "tcp"): socketserver.ThreadingTCPServer,
    ("threading", "unix"): socketserver.ThreadingUnixStreamServer,
    ("threading", "udp"): socketserver.ThreadingUDPServer,
    ("forking", "tcp"): socketserver.ForkingTCPServer,
    ("forking", "unix"): getattr(socketserver, "ForkingUnixStreamServer", None),  # Python 3.12
    ("forking", "udp"): socketserver.ForkingUDPServer,
}


def serve_sockets(style, scheme, address):
    class Server(SERVERS[style, scheme]):
        request_queue_size = BACKLOG
        allow_reuse_address = scheme == "tcp"
        daemon_threads = True
        max_children = 1000
        max_packet_size = 64 << 10

        def handle_error(self, request, client_address):
            """A lost connection is not an error."""

    with Server(address, EchoDatagram if scheme == "udp" else EchoStream) as server:
        announce(scheme, server.server_address)
        server.serve_forever()


async def serve_asyncio(scheme, address):
    loop = asyncio.get_running_loop()
    if scheme == "udp":
        transport, _ = await loop.create_datagram_endpoint(EchoDatagramProtocol, address)
        announce(scheme, transport.get_extra_info("sockname"))
        await asyncio.Event().wait()
    if scheme == "unix":
        server = await loop.create_unix_server(EchoProtocol, address, backlog=BACKLOG)
    else:
        server = await loop.create_server(EchoProtocol, *address, backlog=BACKLOG)
    announce(scheme, server.sockets[0].getsockname())
    await server.serve_forever()


def announce(scheme, address):
    where = address if scheme == "unix" else "%s:%d" % address[:2]
    print(f"listening on {scheme}://{where}", flush=True)


def main():
    style, url = sys.argv[1:]
    scheme, _, rest = url.partition("://")
    if scheme == "unix":
        address = rest
    else:
        host, _, port = rest.rpartition(":")
        address = (host, int(port))
    if style == "asyncio":
        asyncio.run(serve_asyncio(scheme, address))
    else:
        serve_sockets(style, scheme, address)


main()
