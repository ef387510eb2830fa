# Tutorial 000, TCP example 1, client 2: as printed, without its comments.

from socket import *

client = socket(AF_INET, SOCK_STREAM)
client.connect(('127.0.0.1', 8888))
client.send('client2'.encode('utf-8'))
client.close()
