"""Members of the chat room, by Python's `websockets`: `http_members.py URL [LINE_PORT]`."""

import contextlib
import socket
import sys

from websockets.exceptions import ConnectionClosed
from websockets.frames import Frame, Opcode
from websockets.sync.client import connect

url = sys.argv[1]


members = contextlib.ExitStack()


def join():
    return members.enter_context(connect(url, open_timeout=20, close_timeout=20, compression=None))


def close_code(member):
    try:
        while True:
            member.recv(20)
    except ConnectionClosed as closed:
        return closed.rcvd.code if closed.rcvd else None


def masked(opcode, payload):
    return Frame(opcode, payload).serialize(mask=True)


one, two = join(), join()
assert one.recv(20) == "* you are guest1, and 0 others are here"
assert two.recv(20) == "* you are guest2, and 1 others are here"
assert one.recv(20) == "* guest2 joins"
one.send("大家好")
assert two.recv(20) == "guest1: 大家好"
two.send(["in ", "three ", "fragments"])
assert one.recv(20) == "guest2: in three fragments"
two.send("a line\nguest1: forged")
assert one.recv(20) == "guest2: a line\N{REPLACEMENT CHARACTER}guest1: forged"
long = "x" * 65_000
one.send(long)
assert two.recv(20) == "guest1: " + long
assert one.ping("sign of life").wait(20)

# A member that speaks lines, if there is a port for that.
if len(sys.argv) > 2:
    lines = socket.create_connection(("127.0.0.1", int(sys.argv[2])), 20)
    file = lines.makefile("rw", encoding="utf-8", newline="\n")
    assert file.readline() == "* you are guest3, and 2 others are here\n"
    assert one.recv(20) == two.recv(20) == "* guest3 joins"
    file.write("by line\n")
    file.flush()
    assert one.recv(20) == two.recv(20) == "guest3: by line"
    one.send("by WebSocket")
    assert file.readline() == "guest1: by WebSocket\n"
    assert two.recv(20) == "guest1: by WebSocket"
    lines.shutdown(socket.SHUT_WR)
    assert file.readline() == ""
    assert one.recv(20) == two.recv(20) == "* guest3 leaves"

# Each violation has its close code.
for sent, code in [
    (masked(Opcode.TEXT, b"\xff"), 1007),
    (masked(Opcode.CONT, b"x"), 1002),
    (b"\xc1" + masked(Opcode.TEXT, b"x")[1:], 1002),
    (masked(Opcode.TEXT, b"x" * 70_000), 1009),
    (masked(Opcode.BINARY, b"x"), 1003),
    (masked(Opcode.CLOSE, b"\x03\xe8"), 1000),
    (masked(Opcode.CLOSE, b"\x0f\xa0bye"), 4000),
    (masked(Opcode.CLOSE, b"\x03\xed"), 1002),
]:
    bad = join()
    bad.socket.sendall(sent)
    assert close_code(bad) == code, (sent[:20], code)
    for member in (one, two):
        assert member.recv(20).endswith(" joins")
        assert member.recv(20).endswith(" leaves")
unmasked = join()
unmasked.socket.sendall(Frame(Opcode.TEXT, b"x").serialize(mask=False))
assert close_code(unmasked) == 1002
for member in (one, two):
    assert member.recv(20).endswith(" joins") and member.recv(20).endswith(" leaves")

two.close()
assert two.close_code == 1000
assert one.recv(20) == "* guest2 leaves"
print("ready", flush=True)
# The server stops.
assert close_code(one) == 1001
print("done")
