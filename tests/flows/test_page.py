"""Prefect's page on the local server, in a real browser: ours opens with the key, a foreign one gets nowhere."""

import http.server
import json
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator

import pytest
from websockets.sync.client import ClientConnection, connect

from flows.server.keys import new_key
from flows.server.process import client_settings, local_server, own_origins
from tests.ports import reserved_port

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here; `apt-get install chromium` brings one"),
]


class Browser:
    """One tab of Chromium, told what to do by its debugging protocol."""

    def __init__(self, line: ClientConnection):
        self.line, self.sent = line, 0

    def call(self, method: str, **parameters: object) -> dict:
        self.sent += 1
        self.line.send(json.dumps({"id": self.sent, "method": method, "params": parameters}))
        while (said := json.loads(self.line.recv(timeout=60))).get("id") != self.sent:
            pass
        return said["result"]

    def value(self, script: str) -> object:
        return self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)["result"].get(
            "value"
        )

    def opened(self, address: str) -> None:
        self.call("Page.navigate", url=address)

    def wait_for(self, script: str, seconds: float = 120.0) -> None:
        deadline = time.monotonic() + seconds
        while self.value(script) is not True:
            assert time.monotonic() < deadline, f"{script} is not so: {self.value('document.body.innerText')}"
            time.sleep(0.1)


@pytest.fixture
def browser(tmp_path) -> Iterator[Browser]:
    folder = tmp_path / "browser"
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


@pytest.fixture(scope="module")
def served(tmp_path_factory) -> Iterator[dict[str, str]]:
    """A server with its pages; gives the environment of its clients."""
    key = new_key()
    with pytest.MonkeyPatch.context() as patch, reserved_port() as port:
        patch.setenv("PREFECT_HOME", str(tmp_path_factory.mktemp("prefect")))
        with local_server(port, key, with_ui=True):
            yield client_settings(port, key)


@pytest.fixture
def deployment(served, api) -> str:
    server = api(served)
    flow = server.post("/flows/", json={"name": "zoo"}).json()["id"]
    return server.post("/deployments/", json={"name": "a-row-to-see", "flow_id": flow}).json()["id"]


def port_of(served: dict[str, str]) -> int:
    return int(served["PREFECT_API_URL"].split(":")[2].split("/")[0])


@pytest.mark.parametrize("name", ["127.0.0.1", "localhost"])
def test_the_page_asks_for_the_key_and_then_shows_the_deployments(served, deployment, browser, name):
    page = next(origin for origin in own_origins(port_of(served)) if name in origin)
    browser.opened(page)
    browser.wait_for("location.pathname.endsWith('/login') && document.querySelector('input[type=password]') != null")
    browser.value("document.querySelector('input[type=password]').focus()")
    browser.call("Input.insertText", text=served["PREFECT_API_AUTH_STRING"])
    browser.value("document.querySelector('form button').click()")
    browser.wait_for("!location.pathname.endsWith('/login')")
    browser.opened(f"{page}/deployments")
    browser.wait_for("document.body != null && document.body.innerText.includes('a-row-to-see')")


@pytest.fixture
def foreign_page() -> Iterator[str]:
    """A page of another origin; gives its address."""

    class Page(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(b"<title>foreign</title><body></body>")

        def log_message(self, *_) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Page) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def test_a_foreign_page_starts_nothing_and_reads_nothing(served, deployment, browser, foreign_page, api):
    browser.opened(foreign_page)
    browser.wait_for("document.title == 'foreign'")
    run = json.dumps({"name": "foreign", "job_variables": {"command": "touch flag"}})
    order = f"{served['PREFECT_API_URL']}/deployments/{deployment}/create_flow_run"

    def asked(how: str) -> object:
        answer = "a => a.type == 'opaque' ? 'hidden' : 'read ' + a.status, e => 'refused'"
        return browser.value(f"fetch({order!r}, {how}).then({answer})")

    post = f"method: 'POST', body: {run!r}"
    assert asked(f"{{{post}, headers: {{'Content-Type': 'application/json'}}}}") == "refused"
    assert asked(f"{{{post}, headers: {{'Content-Type': 'text/plain'}}}}") == "refused"
    assert asked(f"{{{post}, mode: 'no-cors'}}") in ("hidden", "refused")
    socket = served["PREFECT_API_URL"].replace("http", "ws") + "/events/out"
    opens = f"new Promise(done => {{ let s = new WebSocket({socket!r}, 'prefect'); s.onopen = () => done('open');"
    assert browser.value(f"{opens} s.onerror = () => done('refused'); }})") == "refused"
    assert api(served).post("/flow_runs/filter", json={}).json() == []
