# Tutorial 000, TCP example 1, server: as printed, without its comments.

import socketserver

class MyTCPhanler(socketserver.BaseRequestHandler):
    def handle(self):
        self.data = self.request.recv(1024).strip()
        print(self.client_address)
        print(self.data.decode('utf-8'))

if __name__ == '__main__':
    server = socketserver.ThreadingTCPServer(('127.0.0.1',8888),MyTCPhanler)
    server.serve_forever()
