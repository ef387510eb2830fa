# Tutorial 001, the first server: as printed, without its comments, but for one word: with the
# `__mian__` of the original it never starts.

import socketserver
class MyServer(socketserver.BaseRequestHandler):

    def handle(self):

        self.request.recv(1024)
        msg = '亲,学会了吗'
        self.request.send(bytes(msg,encoding='utf-8'))

        self.request.close()

        pass
if __name__ == '__main__':
    server = socketserver.ThreadingTCPServer(('127.0.0.1',8090),MyServer)
    server.serve_forever()
