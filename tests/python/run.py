"""Runs a tutorial's program as printed, at a port of the test's choice.

run.py PROGRAM 0            a server, at a free port
    run.py PROGRAM PORT         a client of the server at PORT
    run.py PROGRAM PORT CALL    calls one of the program's functions, and not its main part

The programs contain fixed ports. This script replaces them: a server binds port 0 of the same host
and prints its address, as the examples do; a client connects or sends to PORT of the same host.
"""

import runpy
import signal
import socket
import socketserver
import sys

program, port, *call = sys.argv[1:]

# A program that outlives a killed test ends after two minutes.
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
