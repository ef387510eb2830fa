"""Python's own HTTP client and `requests`, at the URL given: what each checks by itself, and more."""

import hashlib
import http.client
import sys
import threading
import urllib.parse

import requests

url = sys.argv[1]
address = urllib.parse.urlsplit(url).netloc
keeps = sys.argv[2] == "keeps"  # whether a connection takes several requests

# http.client: several requests on one connection, and a body of unknown length.
client = http.client.HTTPConnection(address, timeout=20)
for _ in range(3):
    client.request("GET", "/page.html")
    answer = client.getresponse()
    assert (answer.status, answer.reason) == (200, "OK"), answer.status
    assert answer.getheader("Content-Type") == "text/html; charset=utf-8"
    assert answer.read() == b"<h1>page</h1>"
    assert answer.will_close != keeps
pieces = [b"piece %d " % number * 1000 for number in range(30)]
client.request("PUT", "/pieces", iter(pieces), {"Transfer-Encoding": "chunked"}, encode_chunked=True)
answer = client.getresponse()
assert answer.status == 201, answer.status
answer.read()
client.request("GET", "/pieces")
assert client.getresponse().read() == b"".join(pieces)
client.request("HEAD", "/pieces")
answer = client.getresponse()
assert answer.read() == b"" and int(answer.getheader("Content-Length")) == len(b"".join(pieces))
client.close()

# requests: a session keeps its connection.
session = requests.Session()
answer = session.get(url + "/directory")
assert answer.ok and answer.history[0].status_code == 301 and "file &amp; more" in answer.text
page = session.get(url + "/page.html")
for condition in ({"If-None-Match": page.headers["ETag"]}, {"If-Modified-Since": page.headers["Last-Modified"]}):
    answer = session.get(url + "/page.html", headers=condition)
    assert (answer.status_code, answer.content) == (304, b""), answer
answer = session.get(url + "/page.html", headers={"Range": "bytes=4-7"})
assert (answer.status_code, answer.text) == (206, "page")
assert answer.headers["Content-Range"] == "bytes 4-7/13"
assert session.get(url + "/page.html", headers={"Range": "bytes=13-"}).status_code == 416
assert session.delete(url + "/page.html").status_code == 405
assert session.get(url + "/目录/文件.txt").text == "文件"

# Uploads: a short one, one that is refused, and one that replaces a file in eight threads at once.
assert session.put(url + "/short", data=b"short").status_code == 201
assert session.put(url + "/short", data=b"other", headers={"If-None-Match": "*"}).status_code == 412
assert session.get(url + "/short").text == "short"
assert session.put(url + "/none/file", data=b"x").status_code == 409
bodies = [bytes([65 + number]) * 500_000 for number in range(8)]
threads = [threading.Thread(target=requests.put, args=(url + "/raced",), kwargs={"data": body}) for body in bodies]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
assert session.get(url + "/raced").content in bodies  # one of them, and whole

# A gigabyte, if there is one.
if session.head(url + "/gigabyte").ok:
    length, digest = 0, hashlib.sha256()
    with session.get(url + "/gigabyte", stream=True) as answer:
        for piece in answer.iter_content(1 << 20):
            length += len(piece)
    assert length == 1 << 30, length
print("done")
