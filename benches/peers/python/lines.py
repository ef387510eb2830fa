"""A hello-world on Python's ThreadingTCPServer with its defaults: it sends each line back.

usage: lines.py tcp://HOST:PORT
"""

import socketserver
import sys


class EchoLines(socketserver.StreamRequestHandler):
    def handle(self):
        for line in self.rfile:
            self.wfile.write(line)


host, port = sys.argv[1].removeprefix("tcp://").rsplit(":", 1)
with socketserver.ThreadingTCPServer((host, int(port)), EchoLines) as server:
    print("listening on tcp://%s:%d" % server.server_address, flush=True)
    server.serve_forever()
