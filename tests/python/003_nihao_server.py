# Tutorial 003, the server: as printed, without its comments.

import socketserver

class bf(socketserver.BaseRequestHandler):
     def handle(self):
         b = self.request
         b.sendall(bytes("你好欢迎你",encoding='utf-8'))

         while True:
            j = b.recv(1024)
            j2 = str(j, encoding='utf-8')
            if j2 == "q":
                break
            b.sendall(bytes(j2+"好",encoding='utf-8'))

shezhi = socketserver.ThreadingTCPServer(('127.0.0.1', 9999,), bf)

shezhi.serve_forever()
