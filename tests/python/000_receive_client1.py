# Tutorial 000, TCP example 1, client 1: as printed, without its comments.

from socket import *

client = socket(AF_INET, SOCK_STREAM)
client.connect(('127.0.0.1', 8888))
client.send('client1'.encode('utf-8'))
client.close()
