"""Chromium, driven over its DevTools protocol: what a page loads, says in the console, looks like and prints as.

https://chromedevtools.github.io/devtools-protocol/
"""

from __future__ import annotations

import base64
import io
import json
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import pytest
from PIL import Image
from websockets.sync.client import ClientConnection, connect

from tests.components import DEADLINE_SECONDS, until

_NAMES = ("chromium", "chromium-browser", "google-chrome")
_OPTIONS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--no-first-run",
    "--hide-scrollbars",
    "--remote-debugging-port=0",
    # Whatever slips past the interception finds no host.
    "--host-resolver-rules=MAP * ~NOTFOUND",
)


class Tab:
    """One page. `requested` are the addresses that it asked for, `complaints` what it said in the console."""

    def __init__(self, wire: ClientConnection) -> None:
        self._wire, self._last = wire, 0
        self.requested: list[str] = []
        self.complaints: list[str] = []
        self._loaded = 0
        target = self._ask("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.ask(f"{domain}.enable")
        self.ask("Fetch.enable", patterns=[{"urlPattern": "*"}])

    def visit(self, page: Path) -> None:
        """Load the file, and wait until every picture in it is drawn. A picture that cannot be is a complaint."""
        before = self._loaded
        self.ask("Page.navigate", url=page.absolute().as_uri())
        until(lambda: self.ask("Runtime.evaluate", expression="0") and self._loaded > before, "the page is loaded")
        broken = self.run(
            "Promise.all([...document.images].map(i => i.decode().then(() => '', () => i.alt || 'a picture')))"
        )
        self.complaints += [f"not drawn: {name}" for name in broken if name]

    def run(self, script: str) -> Any:
        """The value of a script in the page; a promise is waited for."""
        told = self.ask("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in told, told
        return told["result"].get("value")

    def show(self, scheme: Literal["light", "dark"] = "light", *, media: Literal["screen", "print"] = "screen") -> None:
        """As a reader with this scheme, or a printer, sees it."""
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.ask("Emulation.setEmulatedMedia", media=media, features=features)

    def widen(self, width: int, height: int = 1000) -> None:
        """The window's size in pixels."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.ask("Emulation.setDeviceMetricsOverride", **size)

    def picture(self, selector: str) -> Image.Image:
        """The first element that `selector` finds, as it is seen."""
        box = self.run(
            f"(() => {{ const b = document.querySelector({json.dumps(selector)}).getBoundingClientRect();"
            " return {x: b.x + scrollX, y: b.y + scrollY, width: b.width, height: b.height} })()"
        )
        clip = {**box, "scale": 1}
        told = self.ask("Page.captureScreenshot", clip=clip, captureBeyondViewport=True)
        return Image.open(io.BytesIO(base64.b64decode(told["data"])))

    def printed(self) -> bytes:
        """The page as PDF."""
        return base64.b64decode(self.ask("Page.printToPDF", preferCSSPageSize=True, printBackground=True)["data"])

    def ask(self, method: str, **parameters: Any) -> Mapping[str, Any]:
        """One command of the protocol, and its answer."""
        return self._ask(method, self._session, **parameters)

    def _ask(self, method: str, session: str | None = None, **parameters: Any) -> Mapping[str, Any]:
        number = self._send(method, session, parameters)
        end = time.monotonic() + DEADLINE_SECONDS
        while time.monotonic() < end:
            told = json.loads(self._wire.recv(timeout=DEADLINE_SECONDS))
            if told.get("id") == number:
                assert "error" not in told, (method, told["error"])
                return dict(told["result"])
            if "method" in told:
                self._happened(told["method"], told["params"])
        pytest.fail(f"Chromium does not answer {method}")

    def _send(self, method: str, session: str | None, parameters: Mapping[str, Any]) -> int:
        self._last += 1
        told = {"id": self._last, "method": method, "params": parameters}
        self._wire.send(json.dumps(told if session is None else {**told, "sessionId": session}))
        return self._last

    def _happened(self, event: str, what: Mapping[str, Any]) -> None:
        if event == "Page.loadEventFired":
            self._loaded += 1
        elif event == "Network.requestWillBeSent":
            self.requested.append(what["request"]["url"])
        elif event == "Fetch.requestPaused":
            mine = what["request"]["url"].startswith("file:")
            answer = {"requestId": what["requestId"]}
            if mine:
                self._send("Fetch.continueRequest", self._session, answer)
            else:
                self._send("Fetch.failRequest", self._session, {**answer, "errorReason": "BlockedByClient"})
        elif event == "Log.entryAdded":
            self.complaints.append(what["entry"]["text"])
        elif event == "Runtime.exceptionThrown":
            self.complaints.append(str(what["exceptionDetails"]))
        elif event == "Runtime.consoleAPICalled":
            self.complaints.append(str([said.get("value") for said in what["args"]]))


@contextmanager
def a_tab(folder: Path) -> Iterator[Tab]:
    """A Chromium with one empty page; its profile lies in `folder`. Skips the test where there is none."""
    program = next(filter(None, map(shutil.which, _NAMES)), None)
    if program is None:
        pytest.skip(f"not installed: {_NAMES[0]}")
    address = folder / "DevToolsActivePort"
    with (folder / "log").open("wb") as log:
        command = [program, *_OPTIONS, f"--user-data-dir={folder}", "about:blank"]
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:

        def ready() -> list[str]:
            if process.poll() is not None:
                pytest.fail(f"Chromium ended: {(folder / 'log').read_text()[-2000:]}")
            # The port, and below it the path; the file may be there before both lines are.
            lines = address.read_text().split() if address.is_file() else []
            return lines if len(lines) == 2 else []

        port, path = until(ready, "Chromium listens")
        # It answers in one message, however large: a printed page has megabytes.
        with connect(f"ws://127.0.0.1:{port}{path}", max_size=None, proxy=None, open_timeout=60) as wire:
            yield Tab(wire)
    finally:
        process.terminate()
        try:
            process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
