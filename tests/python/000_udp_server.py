# Tutorial 000, the UDP example, server: as printed, without its comments.

import socketserver

class MyUdphandler(socketserver.BaseRequestHandler):
    def handle(self):
        data,sock = self.request
        print(self.client_address,'---->',data.decode())
        sock.sendto(data.upper(),self.client_address)

if __name__ == '__main__':
    server = socketserver.ThreadingUDPServer(('127.0.0.1',8888),MyUdphandler)
    server.serve_forever()
