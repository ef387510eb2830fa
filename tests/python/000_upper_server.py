# Tutorial 000, TCP example 2, server: as printed, without its comments.

import socketserver

class MyTCPhanler(socketserver.BaseRequestHandler):
    def handle(self):
        while True:
            try:
                self.data = self.request.recv(1024).strip()
                print(self.client_address)
                self.request.send(self.data.upper())
            except ConnectionRefusedError:
                break
        self.request.close()

if __name__ == '__main__':
    server = socketserver.ThreadingTCPServer(('127.0.0.1',8888),MyTCPhanler)
    server.serve_forever()
