"""A headless Chromium, driven as WebDriver says (https://www.w3.org/TR/webdriver2/), without a package for it."""

import base64
import json
import shutil
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path
from urllib.error import URLError
from urllib.request import Request, urlopen

from tests.support.ports import free_port

FLAGS = "--headless=new --no-sandbox --disable-gpu --no-first-run --disable-background-networking"
MISSING = next((name for name in ("chromium", "chromedriver") if shutil.which(name) is None), None)


def answers(url):
    try:
        with urlopen(url, timeout=5):  # noqa: S310 - of this machine
            return True
    except (URLError, OSError):
        return False


def wait_until(true, *, seconds, what):
    """What `true` returns once that is anything; `what` is said, or what it returns, if it does not come to be."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := true():
            return found
        time.sleep(0.3)
    raise AssertionError(what() if callable(what) else what)


class Browser:
    """One window."""

    def __init__(self, address, session):
        self._at = f"{address}/session/{session}"

    def open(self, url):
        call(f"{self._at}/url", {"url": "about:blank"})  # else a change behind the # alone loads nothing anew
        call(f"{self._at}/url", {"url": url})

    def run(self, script, *arguments):
        """What a function body returns in the page."""
        return call(f"{self._at}/execute/sync", {"script": script, "args": list(arguments)})

    def text(self):
        """All text that is shown."""
        return self.run("return document.body.innerText")

    def shows(self, *words, seconds=90):
        """Wait until all words are to be read; returns the text."""

        def found():
            text = self.text()
            return text if all(word in text for word in words) else None

        return wait_until(found, seconds=seconds, what=lambda: f"{words} not in: {self.text()[:3000]}")

    def click(self, selector, *, holding=""):
        """Wait for an element with a text or a label, and click it as a mouse does."""
        script = (
            "return [...document.querySelectorAll(arguments[0])].find(e => "
            "`${e.innerText} ${e.ariaLabel} ${e.title}`.includes(arguments[1]))"
        )
        missing = f"nothing to click: {selector} {holding}"
        (element,) = wait_until(lambda: self.run(script, selector, holding), seconds=90, what=missing).values()
        call(f"{self._at}/element/{element}/click", {})

    def pictures(self):
        """Width and height in pixels of the pictures that have been loaded."""
        return self.run(
            "return [...document.images].filter(i => i.complete && i.naturalWidth)"
            ".map(i => [i.naturalWidth, i.naturalHeight])"
        )

    def screenshot(self, path):
        with urlopen(f"{self._at}/screenshot", timeout=60) as answer:  # noqa: S310
            Path(path).write_bytes(base64.b64decode(json.load(answer)["value"]))


def call(url, body):
    request = Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})  # noqa: S310
    with urlopen(request, timeout=180) as answer:  # noqa: S310
        return json.load(answer)["value"]


@contextmanager
def browser(*, width=1600, height=1000):
    port = free_port()
    with subprocess.Popen(["chromedriver", f"--port={port}"], stdout=subprocess.DEVNULL) as process:
        try:
            address = f"http://127.0.0.1:{port}"
            wait_until(lambda: answers(f"{address}/status"), seconds=60, what="chromedriver does not answer")
            options = {"args": [*FLAGS.split(), f"--window-size={width},{height}"]}
            wanted = {"capabilities": {"alwaysMatch": {"goog:chromeOptions": options}}}
            session = call(f"{address}/session", wanted)["sessionId"]
            try:
                yield Browser(address, session)
            finally:
                urlopen(Request(f"{address}/session/{session}", method="DELETE"), timeout=60).close()  # noqa: S310
        finally:
            process.terminate()
