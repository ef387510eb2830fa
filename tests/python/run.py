"""Runs a tutorial's program as it is printed, at a port of the test's choice.

    run.py PROGRAM 0            a server, at whatever port is free
    run.py PROGRAM PORT         a client of the server at PORT
    run.py PROGRAM PORT CALL    calls one of the program's functions, and not its main part

The programs have their ports written in them. So that they can stay as they are, it is done here:
whatever a server binds is port 0 of the same host, and it tells where it listens, as the examples
do; whatever a client connects or sends to is PORT of the same host.
"""

import runpy
import signal
import socket
import socketserver
import sys

program, port, *call = sys.argv[1:]

# Should the test be killed, no program outlives it for long.
signal.alarm(120)


def redirect(method):
    original = getattr(socket.socket, method)

    def redirected(self, *arguments):
        *others, (host, _) = arguments
        return original(self, *others, (host, int(port)))

    setattr(socket.socket, method, redirected)


def announce():
    original = socketserver.TCPServer.__init__

    def announced(self, *arguments, **options):
        original(self, *arguments, **options)
        scheme = "udp" if self.socket_type == socket.SOCK_DGRAM else "tcp"
        print("listening on %s://127.0.0.1:%d" % (scheme, self.server_address[1]))

    socketserver.TCPServer.__init__ = announced


if port == "0":
    redirect("bind")
    announce()
else:
    redirect("connect")
    redirect("sendto")

if call:
    eval(call[0], runpy.run_path(program))
else:
    runpy.run_path(program, run_name="__main__")
