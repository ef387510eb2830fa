import socketserver

class MyTCPHandler(socketserver.StreamRequestHandler):
    def handle(self):
        line = self.rfile.readline().strip()
        print(f"{self.client_address[0]} wrote: {line.decode()}")
        self.wfile.write(line.upper())

with socketserver.ThreadingTCPServer(("localhost", 9999), MyTCPHandler) as server:
    server.serve_forever()
