"""Headless Chromium: two pages chat with each other, and a page with assets is photographed.

`http_browser.py URL PICTURE`: PICTURE is a path, or `-` for none.
"""

import base64
import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time

from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

url, picture = sys.argv[1:]
deadline = time.monotonic() + 50
browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))))


class DevTools:
    """The browser's DevTools protocol: commands, and their results."""

    def __init__(self, socket):
        self.socket = socket
        self.number = 0

    def call(self, method, session=None, **parameters):
        self.number += 1
        message = {"id": self.number, "method": method, "params": parameters}
        if session:
            message["sessionId"] = session
        self.socket.send(json.dumps(message))
        while True:
            answer = json.loads(self.socket.recv(deadline - time.monotonic()))
            if answer.get("id") == self.number:
                assert "error" not in answer, answer
                return answer["result"]

    def open(self, address):
        target = self.call("Target.createTarget", url=address)["targetId"]
        return self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]

    def evaluate(self, session, expression):
        result = self.call("Runtime.evaluate", session, expression=expression, returnByValue=True)
        return result["result"].get("value")

    def wait_for(self, session, expression):
        while not self.evaluate(session, expression):
            assert time.monotonic() < deadline, f"not within the deadline: {expression}"
            time.sleep(0.02)


def chat_and_shop(tools):
    """Two pages that chat, and one with assets."""
    says = "[...document.querySelectorAll('#lines li')].map(line => line.textContent)"
    page = tools.open(url + "/shop/")
    tools.wait_for(page, "document.readyState === 'complete' && window.isStyled?.()")
    loaded = tools.evaluate(page, "performance.getEntriesByType('resource').map(entry => entry.name)")
    assert {name.rsplit("/", 1)[1] for name in loaded} >= {"style.css", "script.js", "picture.svg", "data.json"}
    tools.wait_for(page, "frames[0].document.querySelectorAll('#lines li').length > 0")

    one, two = tools.open(url + "/chat"), tools.open(url + "/chat")
    for member in (one, two):
        tools.wait_for(member, f"{says}.some(line => line.startsWith('* you are guest'))")
    say = ("document.querySelector('input').value = %r;"
           "document.querySelector('form').requestSubmit()")
    tools.evaluate(one, say % "grüß dich <b>")
    tools.wait_for(two, f"{says}.some(line => /^guest[0-9]: grüß dich <b>$/.test(line))")
    tools.evaluate(two, say % "hello yourself")
    tools.wait_for(one, f"{says}.some(line => /^guest[0-9]: hello yourself$/.test(line))")

    tools.wait_for(page, "frames[0].document.querySelector('#lines').textContent.includes('hello yourself')")
    tools.call("Page.bringToFront", page)
    shot = base64.b64decode(tools.call("Page.captureScreenshot", page, format="png")["data"])
    assert shot.startswith(b"\x89PNG")
    if picture != "-":
        with open(picture, "wb") as file:
            file.write(shot)
    with contextlib.suppress(ConnectionClosed):
        tools.call("Browser.close")


with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
    flags = ("--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking "
             "--disable-component-update --disable-sync --hide-scrollbars --window-size=640,670 "
             "--disable-dev-shm-usage --remote-debugging-port=0 --remote-allow-origins=*").split()
    process = subprocess.Popen([browser, *flags, f"--user-data-dir={profile}", "about:blank"],
                               stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        port_file = os.path.join(profile, "DevToolsActivePort")
        while not (os.path.exists(port_file) and open(port_file).read().count("\n") >= 1):
            assert process.poll() is None and time.monotonic() < deadline, "the browser does not start"
            time.sleep(0.02)
        port, path = open(port_file).read().split()
        with connect(f"ws://127.0.0.1:{port}{path}", max_size=None, open_timeout=20) as socket:
            chat_and_shop(DevTools(socket))
        process.wait(10)
    finally:
        process.kill()
        process.wait()
print("done")
