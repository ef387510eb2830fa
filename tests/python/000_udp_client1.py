# Tutorial 000, the UDP example, client 1: as printed, without its comments.

from socket import *
import time

client = socket(AF_INET,SOCK_DGRAM)

while True:
    client.sendto(b'client1',('127.0.0.1',8888))
    data , server_addr = client.recvfrom(1024)
    print(data)
    time.sleep(3)
client.close()
