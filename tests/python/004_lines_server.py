# Tutorial 004, the synchronous server: as printed, without its comments.

import socketserver
import threading

class MyTCPHandle(socketserver.BaseRequestHandler):
    def handle(self):
        self.data = self.request.recv(1024)
        print("connected by", self.client_address, threading.current_thread())
        print(self.data)
        self.request.sendall(self.data)

class myTCPHandle(socketserver.StreamRequestHandler):
    def handle(self):
        while self.rfile.readline().strip():
            self.data = self.rfile.readline().strip()
            print("connected by", self.client_address, threading.current_thread(), self.data)
            self.wfile.write(self.data)

if __name__ == "__main__":
    host, port = '', 9998
    print(threading.current_thread())
    with socketserver.TCPServer((host, port), myTCPHandle) as server:
        server.serve_forever()
