"""Headless Chromium, told what to do by its debugging protocol."""

import json
import os
import shutil
import subprocess
import time
from base64 import b64decode
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from websockets.sync.client import ClientConnection, connect

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

_MIDDLE = """(() => {
    let each = %s;
    if (each == null) return null;
    each.scrollIntoView({block: "nearest"});
    let box = each.getBoundingClientRect(), at = [box.x + box.width / 2, box.y + box.height / 2];
    let hit = document.elementFromPoint(...at);
    return hit != null && (each.contains(hit) || hit.contains(each)) ? at : null
})()"""
"""A script: the middle of an element on the screen; null while there is none, or another one lies over it."""


class Browser:
    """One tab."""

    def __init__(self, line: ClientConnection):
        self.line, self.sent = line, 0

    def call(self, method: str, **parameters: object) -> dict:
        said = self._answer(method, parameters)
        assert "result" in said, f"{method}: {said}"
        return said["result"]

    def value(self, script: str) -> object:
        """What a script gives; None if it throws, or the page is left at this moment."""
        said = self._answer("Runtime.evaluate", {"expression": script, "awaitPromise": True, "returnByValue": True})
        return said.get("result", {}).get("result", {}).get("value")

    def _answer(self, method: str, parameters: dict[str, object]) -> dict:
        self.sent += 1
        self.line.send(json.dumps({"id": self.sent, "method": method, "params": parameters}))
        while (said := json.loads(self.line.recv(timeout=60))).get("id") != self.sent:
            pass
        return said

    def opened(self, address: str) -> None:
        self.call("Page.navigate", url=address)

    def reloaded(self) -> None:
        self.value("window.isOld = true")
        self.call("Page.reload")
        self.wait_for("window.isOld == null && document.readyState == 'complete'")

    def wait_for(self, script: str, seconds: float = 60.0) -> None:
        deadline = time.monotonic() + seconds
        while self.value(script) is not True:
            assert time.monotonic() < deadline, f"{script} is not so: {self.value('document.body.innerText')}"
            time.sleep(0.1)

    def sees(self, words: str, seconds: float = 60.0) -> None:
        """Wait until the words are on the page."""
        self.wait_for(f"document.body != null && document.body.innerText.includes({json.dumps(words)})", seconds)

    def sees_when_loaded_anew(self, words: str, seconds: float = 90.0) -> None:
        """Load the page again and again until the words are on it: it does not ask for news of what has not begun."""
        deadline = time.monotonic() + seconds
        while True:
            try:
                self.sees(words, 5)
                return
            except AssertionError:
                if time.monotonic() > deadline:
                    raise
                self.reloaded()

    def click(self, words: str, of: str = "button, a, [role=menuitem], [role=option], [role=tab]") -> None:
        """Click, with the mouse, the first of the elements that has these words and no others, once it is there."""
        all_ = f"[...document.querySelectorAll({json.dumps(of)})]"
        self.click_on(f"{all_}.find(each => each.offsetParent != null && each.innerText.trim() == {json.dumps(words)})")

    def click_on(self, script: str, seconds: float = 60.0) -> None:
        """Click, with the mouse, the middle of the element that a script gives, once it is there and rests."""
        deadline, before = time.monotonic() + seconds, None
        while (at := self.value(_MIDDLE % script)) is None or at != before:
            assert time.monotonic() < deadline, f"{script} cannot be clicked: {self.value('document.body.innerText')}"
            before = at
            time.sleep(0.1)
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=at[0], y=at[1], button="left", clickCount=1)

    def press(self, key: str) -> None:
        """`Escape`, `Enter`, ..."""
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key)

    def typed(self, words: str) -> None:
        """Type into the field that has the focus."""
        self.call("Input.insertText", text=words)

    def resized(self, width: int, height: int) -> None:
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)

    def picture(self, path: Path) -> None:
        """Write what the tab shows to a PNG file."""
        path.write_bytes(b64decode(self.call("Page.captureScreenshot", format="png")["data"]))


@contextmanager
def chromium(folder: Path) -> Iterator[Browser]:
    """A tab of a new Chromium, which keeps its files in the folder."""
    as_root = ["--no-sandbox"] if os.geteuid() == 0 else []
    command = [CHROMIUM, "--headless=new", "--disable-gpu", "--disable-dev-shm-usage", *as_root]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(
        [*command, "--remote-debugging-port=0", f"--user-data-dir={folder}", "about:blank"], **quiet
    ) as process:
        try:
            deadline = time.monotonic() + 60
            ports = folder / "DevToolsActivePort"
            while not (ports.exists() and len(ports.read_text().splitlines()) == 2):
                assert process.poll() is None and time.monotonic() < deadline, "Chromium does not start"
                time.sleep(0.1)
            port, path = ports.read_text().splitlines()
            with connect(f"ws://127.0.0.1:{port}{path}", origin=None, max_size=None) as line:
                target = Browser(line).call("Target.createTarget", url="about:blank")["targetId"]
                with connect(f"ws://127.0.0.1:{port}/devtools/page/{target}", max_size=None) as tab:
                    yield Browser(tab)
        finally:
            process.terminate()
