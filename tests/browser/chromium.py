"""A headless Chromium, driven over its DevTools pipe: one tab, opened, clicked, typed into, looked at and printed.

How it works. `--remote-debugging-pipe` speaks the DevTools protocol over two file descriptors, JSON with a zero byte
behind each message: no port, no WebSocket, no package. What the page asks of the network and what it complains of is
collected while it runs.
"""

from __future__ import annotations

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

__all__ = ["Chromium", "find_chromium", "running"]

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
_FLAGS = (
    "--headless=new", "--remote-debugging-pipe", "--no-first-run", "--disable-gpu", "--disable-extensions",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars",
    "--force-color-profile=srgb", "--disable-dev-shm-usage", "about:blank",
)  # fmt: skip
#: seconds, on a machine whose cores have other things to do
_PATIENCE = 60.0
#: Key codes, without which Chromium moves nothing.
_CODES = {"ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40, "Enter": 13, "End": 35, "Home": 36}


def find_chromium() -> str | None:
    """Return the path of a Chromium, `$CHROMIUM` before those on the PATH; None where there is none."""
    named = os.environ.get("CHROMIUM")
    found = (shutil.which(name) for name in ((named,) if named else _NAMES))
    return next((path for path in found if path), None)


class Chromium:
    """One tab. `problems` are what the page complained of, `requests` what it asked for besides itself."""

    def __init__(self, to_browser: int, from_browser: int) -> None:
        self._to, self._from = to_browser, from_browser
        self._buffer = b""
        self._last = 0
        self._session: str | None = None
        self.problems: list[str] = []
        self.requests: list[str] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def open(
        self,
        page: Path,
        *,
        width: int = 1280,
        height: int = 900,
        dark: bool = False,
        scale: float = 1.0,
        first: str = "",
    ) -> None:
        """Open a file, and wait until it has drawn itself; the script `first` runs before the page's own."""
        self.problems.clear()
        self.requests.clear()
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=scale, mobile=False
        )
        scheme = "dark" if dark else "light"
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        before = self.call("Page.addScriptToEvaluateOnNewDocument", source=first)["identifier"]
        self.call("Page.navigate", url=page.resolve().as_uri())
        self.wait("location.href !== 'about:blank' && document.documentElement?.dataset.drawn === 'true'")
        self.call("Page.removeScriptToEvaluateOnNewDocument", identifier=before)

    def evaluate(self, expression: str) -> Any:
        """Return what an expression gives in the page; raises AssertionError where it throws."""
        found = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def wait(self, expression: str) -> None:
        """Wait until an expression holds in the page."""
        deadline = time.monotonic() + _PATIENCE
        while not self.evaluate(expression):
            assert time.monotonic() < deadline, f"never came true: {expression}; {self.problems}"
            time.sleep(0.02)

    def click(self, x: float, y: float) -> None:
        """Press and release the mouse's left button at a place of the window."""
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def drag(self, x: float, y: float, to_x: float) -> None:
        """Draw the mouse along a line."""
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
        self.call("Input.dispatchMouseEvent", type="mousePressed", x=x, y=y, button="left", clickCount=1)
        for part in (0.3, 0.7, 1.0):
            self.call(
                "Input.dispatchMouseEvent", type="mouseMoved", x=x + part * (to_x - x), y=y, button="left", buttons=1
            )
        self.call("Input.dispatchMouseEvent", type="mouseReleased", x=to_x, y=y, button="left", clickCount=1)

    def press(self, key: str) -> None:
        """Press and release a key."""
        code = _CODES.get(key, ord(key[0]))
        text = {"text": "\r"} if key == "Enter" else {"text": key} if len(key) == 1 else {}
        self.call("Input.dispatchKeyEvent", type="keyDown", key=key, windowsVirtualKeyCode=code, **text)
        self.call("Input.dispatchKeyEvent", type="keyUp", key=key, windowsVirtualKeyCode=code)

    def screenshot(self, to: Path, *, height: int | None = None, top: int = 0) -> None:
        """Write what is seen as a PNG; of the whole page, or `height` CSS pixels of it from `top` on."""
        size = self.call("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": top, "width": size["width"], "height": height or size["height"] - top, "scale": 1}
        shot = self.call("Page.captureScreenshot", format="png", clip=clip, captureBeyondViewport=True)
        to.write_bytes(base64.b64decode(shot["data"]))

    def pdf(self, to: Path) -> None:
        """Print the page to a file."""
        to.write_bytes(base64.b64decode(self.call("Page.printToPDF", printBackground=False)["data"]))

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Return the answer to a command; raises AssertionError where there is none in a minute."""
        self._last += 1
        message = {"id": self._last, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        data = memoryview(json.dumps(message).encode() + b"\0")
        while data:
            data = data[os.write(self._to, data) :]
        for answer in self._messages():
            if answer.get("id") == self._last:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return dict(answer["result"])
            self._note(answer)
        raise AssertionError(f"{method}: Chromium has ended")

    def _messages(self) -> Iterator[dict[str, Any]]:
        deadline = time.monotonic() + _PATIENCE
        while True:
            while b"\0" in self._buffer:
                message, self._buffer = self._buffer.split(b"\0", 1)
                yield json.loads(message)
            ready, _, _ = select.select([self._from], [], [], max(deadline - time.monotonic(), 0.0))
            assert ready, "Chromium has not answered for a minute"
            part = os.read(self._from, 1 << 20)
            if not part:
                return
            self._buffer += part

    def _note(self, event: dict[str, Any]) -> None:
        """Keep what the page complained of, and what it asked for."""
        method, told = event.get("method"), event.get("params", {})
        if method == "Runtime.exceptionThrown":
            self.problems.append(json.dumps(told["exceptionDetails"]))
        elif method == "Runtime.consoleAPICalled" and told["type"] in ("error", "warning", "assert"):
            self.problems.append(json.dumps(told["args"]))
        elif method == "Log.entryAdded" and told["entry"]["level"] in ("error", "warning"):
            self.problems.append(told["entry"]["text"])
        elif method == "Network.requestWillBeSent" and told.get("documentURL") != told["request"]["url"]:
            self.requests.append(told["request"]["url"])


@contextmanager
def running(path: str) -> Iterator[Chromium]:
    """Start a Chromium, and end it with all that it has started."""
    # pipes out of the way of 3 and 4, which is where Chromium looks for them
    near_in, near_out = (tuple(fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 16) for end in _pipe()) for _ in range(2))
    # Chromium's sandbox cannot be set up by root, as whom containers run
    root = ("--no-sandbox",) if os.geteuid() == 0 else ()

    def at_their_places() -> None:
        os.dup2(near_in[0], 3)
        os.dup2(near_out[1], 4)

    with TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        process = subprocess.Popen(
            [path, f"--user-data-dir={profile}", *root, *_FLAGS],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            preexec_fn=at_their_places, pass_fds=(3, 4), start_new_session=True,
        )  # fmt: skip
        os.close(near_in[0])
        os.close(near_out[1])
        try:
            yield Chromium(near_in[1], near_out[0])
        finally:
            os.close(near_in[1])  # Chromium ends where its pipe does
            os.close(near_out[0])
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _pipe() -> Iterator[int]:
    """Yield both ends of a pipe, and close them when they have been copied."""
    ends = os.pipe()
    yield from ends
    for end in ends:
        os.close(end)
