"""A headless Chromium, driven by the WebDriver protocol (https://www.w3.org/TR/webdriver2/) without a package."""

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
    """Return True if a server of this machine answers a request."""
    try:
        with urlopen(url, timeout=5):  # noqa: S310
            return True
    except (URLError, OSError):
        return False


def wait_until(condition, *, seconds, message):
    """Return the result of `condition()` once it is true; raise AssertionError(message) after so many seconds.

    `message` may be a function that returns it.
    """
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if result := condition():
            return result
        time.sleep(0.3)
    raise AssertionError(message() if callable(message) else message)


class Browser:
    """A window of the browser."""

    def __init__(self, address, session):
        self._url = f"{address}/session/{session}"

    def open(self, url):
        """Load a page."""
        # Otherwise an address that differs only behind the # does not load the page again
        call(f"{self._url}/url", {"url": "about:blank"})
        call(f"{self._url}/url", {"url": url})

    def run(self, script, *arguments):
        """Return what the body of a JavaScript function returns in the page."""
        return call(f"{self._url}/execute/sync", {"script": script, "args": list(arguments)})

    def text(self):
        """Return all visible text."""
        return self.run("return document.body.innerText")

    def shows(self, *words, seconds=90):
        """Wait until all words are visible, and return the text."""

        def text_with_words():
            text = self.text()
            return text if all(word in text for word in words) else None

        return wait_until(text_with_words, seconds=seconds, message=lambda: f"{words} not in: {self.text()[:3000]}")

    def click(self, selector, *, containing=""):
        """Wait for an element whose text or label contains a string, and click it."""
        script = (
            "return [...document.querySelectorAll(arguments[0])].find(e => "
            "`${e.innerText} ${e.ariaLabel} ${e.title}`.includes(arguments[1]))"
        )
        missing = f"nothing to click: {selector} {containing}"
        (element,) = wait_until(lambda: self.run(script, selector, containing), seconds=90, message=missing).values()
        call(f"{self._url}/element/{element}/click", {})

    def command(self, name, **parameters):
        """Send a command of the DevTools protocol (https://chromedevtools.github.io/devtools-protocol/)."""
        return call(f"{self._url}/goog/cdp/execute", {"cmd": name, "params": parameters})

    def resize(self, width, height=1000):
        """Give the page a size, which may be smaller than a window can be."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.command("Emulation.setDeviceMetricsOverride", **size)

    def point_at(self, x, y):
        """Move the pointer to a place in the window."""
        self.command("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def pictures(self):
        """Return width and height in pixels of each loaded picture."""
        return self.run(
            "return [...document.images].filter(i => i.complete && i.naturalWidth)"
            ".map(i => [i.naturalWidth, i.naturalHeight])"
        )

    def screenshot(self, path):
        """Write a PNG of the window."""
        with urlopen(f"{self._url}/screenshot", timeout=60) as answer:  # noqa: S310
            Path(path).write_bytes(base64.b64decode(json.load(answer)["value"]))


def call(url, body):
    """Send a WebDriver command, and return its value."""
    request = Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})  # noqa: S310
    with urlopen(request, timeout=180) as answer:  # noqa: S310
        return json.load(answer)["value"]


@contextmanager
def browser(*, width=1600, height=1000):
    """Start a browser, and yield its window."""
    port = free_port()
    with subprocess.Popen(["chromedriver", f"--port={port}"], stdout=subprocess.DEVNULL) as process:
        try:
            address = f"http://127.0.0.1:{port}"
            wait_until(lambda: answers(f"{address}/status"), seconds=60, message="chromedriver does not answer")
            options = {"args": [*FLAGS.split(), f"--window-size={width},{height}"]}
            capabilities = {"capabilities": {"alwaysMatch": {"goog:chromeOptions": options}}}
            session = call(f"{address}/session", capabilities)["sessionId"]
            try:
                yield Browser(address, session)
            finally:
                urlopen(Request(f"{address}/session/{session}", method="DELETE"), timeout=60).close()  # noqa: S310
        finally:
            process.terminate()
