"""A real browser without a window, for tests of pages.

It is Debian's chromium, spoken to in the DevTools protocol over a pipe
(``--remote-debugging-pipe``): JSON messages with a NUL after each, on two file
descriptors. That needs the browser and nothing else. Selenium would need a
driver of the same version and ten packages, Playwright a browser of its own,
and both would hide what is asked here: every message of the console, every
request that leaves the page.

A test that takes the fixture `browser` is skipped where there is no browser.
"""

from __future__ import annotations

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
TIMEOUT = 60.0

#: Schemes of what a page holds itself, or that stays on the machine.
LOCAL = ("data:", "blob:", "about:", "chrome:", "chrome-extension:", "devtools:")


#: The protocol's descriptors are 3 and 4 of the browser, whatever they are here.
_START = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.dup2(int(sys.argv[2]), 4)
os.execv(sys.argv[3], sys.argv[3:])
"""


def _pipe() -> tuple[int, int]:
    """A pipe whose descriptors are neither 3 nor 4, nor near."""
    ends = os.pipe()
    moved = tuple(fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in ends)
    for end in ends:
        os.close(end)
    return moved


def executable() -> str | None:
    """Where a browser is, if there is one."""
    return next((found for name in NAMES if (found := shutil.which(name))), None)


@dataclass
class Opened:
    """What happened while a page was opened."""

    #: What the console was told, and exceptions: level and text.
    console: list[tuple[str, str]] = field(default_factory=list)
    #: Addresses that were asked for, other than the page and what it holds.
    requests: list[str] = field(default_factory=list)

    @property
    def errors(self) -> list[str]:
        """Errors and warnings of the console."""
        return [text for level, text in self.console if level in ("error", "warning")]


class Browser:
    """A running browser with one page."""

    def __init__(self, program: str, profile: Path) -> None:
        to_browser, self._send = _pipe()
        self._receive, from_browser = _pipe()
        command = [
            sys.executable, "-c", _START, str(to_browser), str(from_browser),
            program, "--headless", "--remote-debugging-pipe", f"--user-data-dir={profile}",
            "--no-first-run", "--disable-gpu", "--disable-dev-shm-usage",
            "--disable-background-networking", "--disable-component-update", "--disable-sync",
            "--window-size=1100,900",
            *(["--no-sandbox"] if os.geteuid() == 0 else []), "about:blank",
        ]  # fmt: skip
        self._log = (profile / "browser.log").open("wb")
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            pass_fds=(to_browser, from_browser),
        )
        os.close(to_browser)
        os.close(from_browser)
        self._buffer = b""
        self._number = 0
        self._events: list[dict[str, Any]] = []
        try:
            target = self._call("Target.createTarget", url="about:blank")["targetId"]
            attached = self._call("Target.attachToTarget", targetId=target, flatten=True)
            self._session = attached["sessionId"]
            for domain in ("Page", "Runtime", "Log", "Network"):
                self.call(f"{domain}.enable")
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End it."""
        os.close(self._send)
        self._process.terminate()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._receive)
        self._log.close()

    def _said(self) -> str:
        return Path(self._log.name).read_text(errors="replace")[-2000:]

    def _message(self, deadline: float) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            ready, _, _ = select.select(
                [self._receive], [], [], max(0, deadline - time.monotonic())
            )
            chunk = os.read(self._receive, 1 << 16) if ready else b""
            if not chunk:
                what = "ended" if ready else f"said nothing for {TIMEOUT} s"
                raise RuntimeError(f"the browser {what}:\n{self._said()}")
            self._buffer += chunk
        message, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(message)

    def _call(self, method: str, session: str | None = None, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if session is not None:
            message["sessionId"] = session
        data = json.dumps(message).encode() + b"\0"
        try:
            while data:
                data = data[os.write(self._send, data) :]
        except BrokenPipeError:
            raise RuntimeError(f"the browser ended:\n{self._said()}") from None
        deadline = time.monotonic() + TIMEOUT
        while (answer := self._message(deadline)).get("id") != self._number:
            self._events.append(answer)
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']}")
        return answer["result"]

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call a method of the DevTools protocol on the page."""
        return self._call(method, self._session, **parameters)

    def open(self, path: Path) -> Opened:
        """Open a file; return when it is loaded and painted."""
        self._events.clear()
        self.call("Page.navigate", url=path.resolve().as_uri())
        deadline = time.monotonic() + TIMEOUT
        while not any(event["method"] == "Page.loadEventFired" for event in self._events):
            message = self._message(deadline)
            if "method" in message:
                self._events.append(message)
        # Two frames later everything has been laid out and drawn once.
        self.evaluate(
            "new Promise(r => requestAnimationFrame(() => requestAnimationFrame(() => r(1))))"
        )
        opened = Opened()
        for event in self._events:
            about = event.get("params", {})
            match event["method"]:
                case "Runtime.consoleAPICalled":
                    text = " ".join(str(a.get("value", a)) for a in about["args"])
                    opened.console.append((about["type"], text))
                case "Runtime.exceptionThrown":
                    opened.console.append(("error", about["exceptionDetails"]["text"]))
                case "Log.entryAdded":
                    entry = about["entry"]
                    opened.console.append((entry["level"], entry["text"]))
                case "Network.requestWillBeSent":
                    url = about["request"]["url"]
                    if not url.startswith(LOCAL) and url != path.resolve().as_uri():
                        opened.requests.append(url)
        return opened

    def evaluate(self, expression: str) -> Any:
        """Return what an expression of JavaScript is, in the page."""
        answer = self.call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        if "exceptionDetails" in answer:
            raise RuntimeError(f"{expression}: {answer['exceptionDetails']}")
        return answer["result"].get("value")

    def screenshot(self, path: Path) -> None:
        """Save what is seen of the whole page as a PNG."""
        data = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(data["data"]))


def running(profile: Path) -> Iterator[Browser]:
    """Start a browser, and end it; skips the test where there is none."""
    program = executable()
    if program is None:
        pytest.skip(f"no browser: none of {', '.join(NAMES)} is installed")
    browser = Browser(program, profile)
    try:
        yield browser
    finally:
        browser.close()
