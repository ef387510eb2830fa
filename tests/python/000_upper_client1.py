# Tutorial 000, TCP example 2, client 1: as printed, without its comments.

from socket import *
import time

client = socket(AF_INET, SOCK_STREAM)
client.connect(('127.0.0.1', 8888))

while True:
    client.send('client1'.encode('utf-8'))
    time.sleep(3)
    data = client.recv(1024)
    print(data)
client.close()
