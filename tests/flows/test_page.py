"""The page of `make prefect` in a real browser: what people do there, and what a foreign page cannot."""

import http.server
import json
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from PIL import Image

from actionzoo.params import load_params
from flows.server.process import client_settings, own_origins
from tests.browser import CHROMIUM, Browser, chromium
from tests.flows.pretended_zoo import make_zoo

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here; `apt-get install chromium` brings one"),
]

PICTURES = os.environ.get("ACTIONZOO_PICTURES")
"""A folder for the pictures of docs/prefect.md; without it, none are taken."""

SLOWFAST = "slowfast_r50_video_4x16x1_256e_kinetics400_rgb"
CSN = "ircsn_bnfrozen_r50_32x2x1_180e_kinetics400_rgb"


@pytest.fixture
def browser(tmp_path) -> Iterator[Browser]:
    with chromium(tmp_path / "browser") as tab:
        tab.resized(1280, 800)
        yield tab


@pytest.fixture
def project(tmp_path) -> Path:
    """A small project, with a report of an earlier day."""
    folder = make_zoo(tmp_path / "actionzoo")
    (folder / "report" / "demo").mkdir(parents=True)
    (folder / "report" / "demo" / "zoo.html").write_text("<h1>the zoo</h1>")
    return folder


def log_in(browser: Browser, key: str) -> None:
    browser.wait_for("location.pathname.endsWith('/login') && document.querySelector('input[type=password]') != null")
    browser.value("document.querySelector('input[type=password]').focus()")
    browser.typed(key)
    browser.click("Login")
    browser.wait_for("!location.pathname.endsWith('/login')")


def picture(browser: Browser, name: str, height: int = 800) -> None:
    if PICTURES:
        browser.resized(1280, height)
        time.sleep(2)  # until all is drawn
        path = Path(PICTURES) / f"prefect-{name}.png"
        browser.picture(path)
        Image.open(path).quantize(64).save(path, optimize=True)
        browser.resized(1280, 800)


def test_models_are_chosen_on_the_page_which_shows_what_waits_what_came_out_and_what_was_cancelled(
    project, serve, own_environment, key_of, api, wait_for, left_running, browser, port
):
    """One server for the whole story, because a start takes many seconds."""
    own_environment["CUDA_VISIBLE_DEVICES"] = "0"
    serve(port)
    page, key = f"http://127.0.0.1:{port}", key_of(project)
    server = api(client_settings(port, key))

    browser.opened(page)
    browser.sees("Login")
    picture(browser, "login")
    log_in(browser, key)

    # The form has menus of the models and data sets of params.yaml.
    browser.click("Deployments")
    browser.sees("reproduce")
    picture(browser, "deployments")

    def open_form(deployment: str) -> None:
        browser.click("Deployments")
        browser.click(deployment)
        browser.click("Run")
        browser.click("Custom run")

    open_form("train")
    browser.click("Select")
    params = load_params(project / "params.yaml")
    options = "[...document.querySelectorAll('[role=option]')].map(each => each.innerText)"
    assert browser.value(options) == list(params.recipes)
    browser.click(SLOWFAST)
    browser.click(CSN)
    browser.press("Escape")
    browser.sees(f"{SLOWFAST}\n{CSN}")
    browser.click_on("[...document.querySelectorAll('[role=tab]')].filter(each => each.innerText == 'choose')[1]")
    browser.click_on("[...document.querySelectorAll('main button')].filter(each => each.innerText == 'Select').at(-1)")
    browser.wait_for(f"{options}.length > 0")
    assert browser.value(options) == list(params.datasets)
    browser.click("demo")
    picture(browser, "form", 1100)
    browser.click("Submit")

    # There is one GPU: one model trains, and the other is seen waiting for it.
    wait_for(lambda: [*project.glob("begun_*")], 120)
    running, waiting = (SLOWFAST, CSN) if (project / f"begun_{SLOWFAST}").exists() else (CSN, SLOWFAST)
    name = f"train {CSN.removesuffix('_kinetics400_rgb')}… and 1 more · demo"
    browser.reloaded()  # the page asks for news every half minute only
    browser.click(name)
    browser.click("Task Runs")
    browser.sees("1 Waiting For 1 GPU")
    browser.sees("1 Running")
    picture(browser, "waiting", 1000)
    browser.click(f"train@{waiting}")
    browser.sees_when_loaded_anew(f"waits for 1 GPU: 0 is used by train@{running} of flow run {name}")
    browser.click(name)
    browser.click("Task Runs")
    wait_for(lambda: {"progress"} & {each["type"] for each in server.post("/artifacts/filter", json={}).json()}, 120)
    browser.click(f"train@{running}")
    browser.sees("Duration")
    browser.reloaded()
    browser.click("Artifacts")
    browser.sees("epoch 4 of 196, 41 min left")
    picture(browser, "progress", 500)
    browser.click(name)
    (project / "go").touch()

    # The run ends with a page, whose link leads to the report.
    browser.sees("Completed")
    browser.reloaded()
    browser.click("Artifacts")
    browser.click_on("[...document.querySelectorAll('a')].find(each => each.innerText.includes('zoo-demo-train'))")
    browser.sees("Created zoo-demo-train")  # the list of its versions
    browser.click_on("document.querySelector('a[href*=\"/artifacts/artifact/\"]')")
    browser.sees(f"train@{waiting}")
    browser.sees("5 built, of 5 stages on the data set demo")
    picture(browser, "result")
    report = browser.value("document.querySelector('a[href*=\"/files/\"]').href")
    assert report == f"{page}/files/report/demo/zoo.html"
    assert httpx.get(report).status_code == 401
    browser.opened(report.replace("//", f"//{key}@"))  # what the browser asks for
    browser.wait_for("location.pathname == '/files/report/demo/zoo.html' && document.body?.innerText == 'the zoo'")

    # A run is cancelled in the middle of a training.
    (project / "go").unlink()
    browser.opened(page)
    open_form("evaluate")
    browser.click("type names or patterns")
    browser.click("Add item")
    browser.click_on("document.querySelector('main textarea')")
    browser.typed("slowfast_r50_256p_4*")
    browser.click("Submit")
    third = "slowfast_r50_256p_4x16x1_256e"
    wait_for(lambda: [*project.glob(f"begun_{third}*")], 120)
    browser.reloaded()
    browser.click(f"evaluate {third}… · demo")
    browser.click_on("document.querySelector('main button[aria-haspopup=menu]')")
    browser.click("Cancel")
    browser.click("Cancel Flow Run")
    browser.sees("Cancelled")
    run = server.post("/flow_runs/filter", json={"sort": "EXPECTED_START_TIME_DESC", "limit": 1}).json()[0]
    assert run["state_type"] == "CANCELLED"

    def states() -> dict[str, str]:
        tasks = server.post("/task_runs/filter", json={"flow_runs": {"id": {"any_": [run["id"]]}}}).json()
        return {task["name"].partition("@")[0]: task["state_type"] for task in tasks}

    built, ended = dict.fromkeys(("resize", "frames"), "COMPLETED"), dict.fromkeys(("train", "evaluate"), "CANCELLED")
    wait_for(lambda: states() == built | ended)
    browser.reloaded()
    browser.click("Task Runs")
    browser.sees("1 Stopped")
    picture(browser, "cancelled")
    wait_for(lambda: not [command for command in left_running(seconds=0) if "begun_" in command])


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


def test_a_foreign_page_starts_nothing_and_reads_nothing(with_server, browser, foreign_page, api):
    """Though the browser knows the key, which was typed on the page under its other name, localhost."""
    port = httpx.URL(with_server["PREFECT_API_URL"]).port
    own = own_origins(port)[1]
    browser.opened(own)
    log_in(browser, with_server["PREFECT_API_AUTH_STRING"])
    browser.sees("Dashboard")
    server = api(with_server)
    flow = server.post("/flows/", json={"name": "foreign"}).json()["id"]
    deployment = server.post("/deployments/", json={"name": "a-row", "flow_id": flow}).json()["id"]
    browser.opened(foreign_page)
    browser.wait_for("document.title == 'foreign'")
    run = json.dumps({"name": "foreign", "job_variables": {"command": "touch flag"}})
    order = f"{with_server['PREFECT_API_URL']}/deployments/{deployment}/create_flow_run"

    def asked(how: str) -> object:
        answer = "a => a.type == 'opaque' ? 'hidden' : 'read ' + a.status, e => 'refused'"
        return browser.value(f"fetch({order!r}, {how}).then({answer})")

    post = f"method: 'POST', body: {run!r}"
    assert asked(f"{{{post}, headers: {{'Content-Type': 'application/json'}}}}") == "refused"
    assert asked(f"{{{post}, headers: {{'Content-Type': 'text/plain'}}}}") == "refused"
    assert asked(f"{{{post}, mode: 'no-cors'}}") in ("hidden", "refused")
    socket = with_server["PREFECT_API_URL"].replace("http", "ws") + "/events/out"
    opens = f"new Promise(done => {{ let s = new WebSocket({socket!r}, 'prefect'); s.onopen = () => done('open');"
    assert browser.value(f"{opens} s.onerror = () => done('refused'); }})") == "refused"
    of_flow = {"flows": {"id": {"any_": [flow]}}}
    assert server.post("/flow_runs/filter", json=of_flow).json() == []
