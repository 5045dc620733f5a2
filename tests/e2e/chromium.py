"""Driving a headless Chromium by the DevTools protocol over a pipe (`--remote-debugging-pipe`), standard library alone.

https://chromedevtools.github.io/devtools-protocol: messages are JSON that ends in a zero byte; the browser reads them
from descriptor 3 and writes to 4.
"""

import base64
import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

_FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--mute-audio")
_BUTTONS = {"left": 1, "right": 2}
# Moves the pipes to the numbers that Chromium expects, by way of numbers that nothing has.
_START = """
import os, sys
moves = [(int(sys.argv[1]), 100), (int(sys.argv[2]), 101), (100, 3), (101, 4)]
for source, target in moves:
    os.dup2(source, target)
os.execv(sys.argv[3], sys.argv[3:])
"""


class Chromium:
    """One browser with one page."""

    def __init__(self, executable: str, profile: Path) -> None:
        (browser_reads, self._write), (self._read, browser_writes) = os.pipe(), os.pipe()
        command = [executable, *_FLAGS, f"--user-data-dir={profile}", "--remote-debugging-pipe", "about:blank"]
        self._process = subprocess.Popen(
            [sys.executable, "-c", _START, str(browser_reads), str(browser_writes), *command],
            pass_fds=(browser_reads, browser_writes),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(browser_reads)
        os.close(browser_writes)
        self._numbers = itertools.count(1)
        self._received = b""
        self._session: str | None = None
        self.requests: list[str] = []  # URLs that the page and its workers asked for
        self.messages: list[str] = []  # errors and warnings on the console
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.send(f"{domain}.enable")

    def __enter__(self) -> "Chromium":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._write)  # Chromium ends with its pipe
        try:
            self._process.wait(20)
        finally:
            self._process.kill()
            os.close(self._read)

    def send(self, method: str, **parameters: Any) -> Any:
        """Call a method and wait for its result."""
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == number:
                assert "error" not in answer, answer
                return answer["result"]
            self._note(answer.get("method", ""), answer.get("params", {}))

    def _receive(self) -> Any:
        while b"\0" not in self._received:
            data = os.read(self._read, 1 << 20)
            assert data, "Chromium has ended"
            self._received += data
        message, _, self._received = self._received.partition(b"\0")
        return json.loads(message)

    def _note(self, event: str, given: Any) -> None:
        if event == "Network.requestWillBeSent":
            self.requests.append(given["request"]["url"])
        elif event == "Runtime.exceptionThrown":
            self.messages.append(given["exceptionDetails"].get("exception", {}).get("description", str(given)))
        elif event == "Log.entryAdded" and given["entry"]["level"] in {"error", "warning"}:
            self.messages.append(given["entry"]["text"])

    def evaluate(self, expression: str) -> Any:
        """The value of an expression on the page, awaited."""
        answer = self.send("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def wait(self, condition: str, describe: Callable[[], Any], seconds: float = 120) -> None:
        """Until an expression is true."""
        end = time.monotonic() + seconds
        while not self.evaluate(condition):
            assert time.monotonic() < end, describe()
            time.sleep(0.1)

    def drag(self, start: tuple[float, float], end: tuple[float, float], button: str = "left") -> None:
        """Press at one place and release at another, or click where both are the same; in pixels of the window."""
        held = {"button": button, "buttons": _BUTTONS[button], "clickCount": 1}
        for kind, (x, y) in (("Pressed", start), ("Moved", end), ("Released", end)):
            self.send("Input.dispatchMouseEvent", type=f"mouse{kind}", x=x, y=y, **held)

    def press(self, key: str, text: str = "") -> None:
        """Press and release a key of the keyboard; `text` is what it writes."""
        for kind in ("keyDown", "keyUp"):
            self.send("Input.dispatchKeyEvent", type=kind, key=key, code=key, text=text if kind == "keyDown" else "")

    def type(self, text: str) -> None:
        """Write into what has the focus, and press Enter."""
        self.send("Input.insertText", text=text)
        self.press("Enter", "\r")

    def screenshot(self, path: Path) -> None:
        """What is seen, as a PNG."""
        path.write_bytes(base64.b64decode(self.send("Page.captureScreenshot", format="png")["data"]))
