"""A foreign page and another user of the machine attack the server of `make prefect`."""

import functools
import hashlib
import json
import re
import shlex
import signal
import socket
import subprocess
import sys
from base64 import b64encode
from pathlib import Path

import httpx
import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync import client as websocket

from actionzoo.report.page import write_page
from actionzoo.report.results import ZooReport
from flows.server.process import Answer, client_settings, local_server, own_origins, who_answers

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
RUN = {"name": "foreign", "state": {"type": "SCHEDULED"}, "job_variables": {"command": "touch flag"}}
FOREIGN = ["http://evil.example", "https://127.0.0.1:{port}", "http://127.0.0.1", "http://127.0.0.1:1", "null",
           "http://127.0.0.1:{port}.evil.example", "http://localhost.evil.example:{port}", "file://"]  # fmt: skip


@pytest.fixture
def url(with_server) -> httpx.URL:
    return httpx.URL(with_server["PREFECT_API_URL"])


@pytest.fixture
def key(with_server) -> tuple[str, str]:
    user, _, word = with_server["PREFECT_API_AUTH_STRING"].partition(":")
    return user, word


connect = functools.partial(websocket.connect, open_timeout=60)


def answer(url: httpx.URL, request: str) -> str:
    """The first line of the answer to a request, sent as it is: with headers that no client would send."""
    with socket.create_connection((url.host, url.port), timeout=60) as line:
        line.sendall(request.replace("\n", "\r\n").encode())
        return line.makefile("rb").readline().decode()


@pytest.mark.parametrize("origin", FOREIGN)
def test_foreign_pages_are_refused_even_with_the_key(http, url, key, origin):
    headers = {"Origin": origin.format(port=url.port)}
    ask = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "content-type"}
    preflight = http.options(f"{url}/deployments/filter", headers=headers | ask)
    assert preflight.status_code == 403
    assert "access-control-allow-origin" not in preflight.headers
    for kind in ("application/json", "text/plain", "application/x-www-form-urlencoded", ""):
        sent = headers | ({"Content-Type": kind} if kind else {})
        posted = http.post(f"{url}/deployments/filter", headers=sent, content="{}", auth=key)
        assert posted.status_code == 403
        assert "access-control-allow-origin" not in posted.headers
    assert http.get(f"{url}/health", headers=headers).status_code == 403


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:{port}", "127.0.0.1.evil.example:{port}", "127.0.0.1:1", "0.0.0.0:{port}",
     "localhost@evil.example", "evil.example\nHost: 127.0.0.1:{port}", "127.0.0.1:{port}\nHost: evil.example", ""],
)  # fmt: skip
def test_a_foreign_name_for_this_machine_is_refused(url, host):
    said = answer(url, f"GET /api/health HTTP/1.1\nHost: {host.format(port=url.port)}\nConnection: close\n\n")
    assert said.split()[1] in ("400", "403"), said


def test_a_request_without_a_host_is_refused(url):
    assert answer(url, "GET /api/health HTTP/1.0\n\n").split()[1] in ("400", "403")


@pytest.mark.parametrize("wrong", [None, ("actionzoo", "word"), ("", ""), ("admin", "pass")])
@pytest.mark.parametrize("kind", ["application/json", "text/plain", ""])
def test_nothing_is_told_or_done_without_the_key(http, url, wrong, kind):
    headers = {"Content-Type": kind} if kind else {}
    some = "00000000-0000-0000-0000-000000000000"
    for method, path, body in [
        ("POST", "deployments/filter", {}),
        ("POST", f"deployments/{some}/create_flow_run", RUN),
        ("PATCH", f"deployments/{some}", {"job_variables": RUN["job_variables"]}),
        ("PATCH", f"deployments/{some}", {"entrypoint": "evil.py:run", "pull_steps": []}),
        ("POST", "deployments/", {"name": "evil", "flow_id": some, "entrypoint": "evil.py:run"}),
        ("PATCH", "work_pools/actionzoo", {"base_job_template": {}}),
        ("POST", "work_pools/", {"name": "actionzoo", "type": "process"}),
        ("POST", "events", []),
        ("POST", "automations/", {}),
        ("GET", "admin/settings", None),
        ("GET", "admin/version", None),
        ("GET", "csrf-token?client=x", None),
    ]:
        content = None if body is None else json.dumps(body)
        said = http.request(method, f"{url}/{path}", headers=headers, content=content, auth=wrong)
        assert (said.status_code, "Unauthorized" in said.text) == (401, True), (method, path)


@pytest.mark.parametrize(
    "path", ["events/in", "events/out", "logs/out", "task_runs/subscriptions/scheduled", "work_pools/x/workers/connect"]
)
def test_websockets_want_the_key_and_a_page_of_ours(url, path):
    address = f"ws://{url.host}:{url.port}/api/{path}"
    for origin in ("http://evil.example", "null"):
        with pytest.raises(InvalidStatus), connect(address, origin=origin, subprotocols=["prefect"]):
            pass
    with pytest.raises(InvalidStatus), connect(address, additional_headers={"Host": "evil.example"}):
        pass
    with pytest.raises(InvalidStatus), connect(address):
        pass
    for message in ({"type": "auth", "token": "actionzoo:word"}, {"type": "auth"}, {"type": "subscribe"}):
        with connect(address, subprotocols=["prefect"]) as line:
            line.send(json.dumps(message))
            with pytest.raises(Exception, match="1008"):  # policy violation
                line.recv(timeout=60)


def test_with_the_key_both_names_of_this_machine_are_answered(http, url, key):
    for origin in own_origins(url.port):
        ask = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,content-type"}
        preflight = http.options(f"{url}/deployments/filter", headers=ask | {"Origin": origin})
        assert preflight.status_code == 200
        said = http.post(f"{origin}/api/deployments/filter", headers={"Origin": origin}, json={}, auth=key)
        assert said.status_code == 200
        assert said.headers["access-control-allow-origin"] == origin
        assert said.headers["x-frame-options"] == "DENY"
    address, token = f"ws://localhost:{url.port}/api/events/out", ":".join(key)
    with connect(address, origin=own_origins(url.port)[1], subprotocols=["prefect"]) as line:
        line.send(json.dumps({"type": "auth", "token": token}))
        assert json.loads(line.recv(timeout=60)) == {"type": "auth_success"}


def test_the_key_is_on_no_command_line(with_server):
    key = with_server["PREFECT_API_AUTH_STRING"].encode()
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            assert key not in process.read_bytes(), process
        except OSError:  # it ended meanwhile
            continue


@pytest.fixture(scope="module")
def shown(checkout) -> Path:
    """The checkout whose files the server shows, with a report, a run, and files that it must not show."""
    for name, content in {
        "report/guarded/zoo.html": "<h1>zoo</h1>",
        "report/guarded/data/classes.jpg": "picture",
        "reproduction/report/guarded/reproduction.html": "<h1>published</h1>",
        "runs/guarded/row/20260101_120000.log": "epoch 1",
        "runs/guarded/row/best.pth": "weights",
        "report/guarded/.hidden": "hidden",
        ".prefect/key": "a:key",
        "prefect.toml": "# a:key",
        "data/guarded/archive.txt": "clips",
    }.items():
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        (checkout / name).write_text(content)
    (checkout / "report" / "guarded" / "key.txt").symlink_to(checkout / ".prefect" / "key")
    (checkout / "report" / "guarded" / "out.txt").symlink_to("/etc/hostname")
    (checkout / "report" / "guarded" / "inside.html").symlink_to("zoo.html")
    return checkout


@pytest.fixture
def files(url) -> str:
    return f"http://{url.host}:{url.port}/files"


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("report/guarded/zoo.html", "text/html; charset=utf-8"),
        ("report/guarded/inside.html", "text/html; charset=utf-8"),
        ("report/guarded/data/classes.jpg", "image/jpeg"),
        ("reproduction/report/guarded/reproduction.html", "text/html; charset=utf-8"),
        ("runs/guarded/row/20260101_120000.log", "text/plain; charset=utf-8"),
        ("runs/guarded/row/best.pth", "application/octet-stream"),
    ],
)
def test_reports_and_runs_are_shown_to_who_has_the_key(http, files, key, shown, name, kind):
    said = http.get(f"{files}/{name}", auth=key)
    assert (said.status_code, said.text, said.headers["content-type"]) == (200, (shown / name).read_text(), kind)
    assert said.headers["x-content-type-options"] == "nosniff"
    assert said.headers["cross-origin-resource-policy"] == "same-origin"
    policy = said.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy and "script-src 'self'" in policy
    assert "unsafe-inline" not in policy.partition("script-src")[2].partition(";")[0]
    head = http.head(f"{files}/{name}", auth=key)
    assert (head.status_code, head.text, head.headers["content-length"]) == (200, "", str(len(said.content)))


@pytest.mark.parametrize("wrong", [None, ("actionzoo", "word"), ("", "")])
def test_a_browser_is_asked_for_the_key_before_it_is_told_what_is_there(http, files, shown, wrong):
    for name in ("report/guarded/zoo.html", "report/guarded/nothing.html", ""):
        said = http.get(f"{files}/{name}", auth=wrong)
        assert said.status_code == 401
        assert said.headers["www-authenticate"] == 'Basic realm="actionzoo", charset="UTF-8"'
        assert "zoo" not in said.text


@pytest.mark.parametrize("sent", ["Basic", "Basic %%%", "Basic YQ==", "Bearer word", "\xff"])
def test_a_damaged_key_is_no_key(http, files, shown, sent):
    said = http.get(f"{files}/report/guarded/zoo.html", headers={"Authorization": sent.encode("latin-1")})
    assert said.status_code == 401


@pytest.mark.parametrize(
    "path",
    ["", "/", "/report", "/report/", "/report/guarded", "/report/guarded/", "/.prefect/key", "/prefect.toml",
     "/data/guarded/archive.txt", "/report/../.prefect/key", "/report/%2e%2e/.prefect/key", "/report/..%2f.prefect/key",
     "/report/guarded/..%5c..%5c.prefect/key", "//etc/hostname", "/report//etc/hostname", "/%2fetc/hostname",
     "/report/guarded/key.txt", "/report/guarded/out.txt", "/report/guarded/.hidden", "/report/guarded/zoo.html%00",
     "/report/guarded/zoo.html/", "/report/" + "x" * 5000, "/reports/guarded/zoo.html", "/RUNS/guarded/row/best.pth"],
)  # fmt: skip
def test_nothing_else_of_the_checkout_is_shown_and_no_folder_is_listed(url, key, shown, path):
    login = b64encode(":".join(key).encode()).decode()
    headers = f"Host: {url.host}:{url.port}\nAuthorization: Basic {login}\nConnection: close\n\n"
    said = answer(url, f"GET /files{path} HTTP/1.1\n{headers}")
    assert said.split()[1] == ("200" if path.endswith("zoo.html/") else "404"), said


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
def test_files_are_for_reading_only(http, files, key, shown, method):
    said = http.request(method, f"{files}/report/guarded/zoo.html", auth=key)
    assert said.status_code == 405
    assert (shown / "report/guarded/zoo.html").read_text() == "<h1>zoo</h1>"


def test_foreign_pages_read_no_files_even_with_the_key(http, files, key, shown):
    for headers in ({"Origin": "http://evil.example"}, {"Origin": "null"}, {"Host": "evil.example"}):
        said = http.get(f"{files}/report/guarded/zoo.html", headers=headers, auth=key)
        assert said.status_code == 403


def test_a_server_without_a_checkout_shows_no_files(tmp_path, monkeypatch, http, port):
    """That of a flow that runs without `make prefect`."""
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path))
    with local_server(port, "some:key", with_ui=False):
        assert http.get(f"http://127.0.0.1:{port}/files/README.md", auth=("some", "key")).status_code == 404


def test_the_script_of_a_report_may_run_and_no_other(tmp_path, http, files, key, shown):
    write_page(ZooReport(dataset="guarded", models=[]), tmp_path)
    inline = re.findall(r"<script>(.*?)</script>", (tmp_path / "zoo.html").read_text(), re.DOTALL)
    hashes = [b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in inline]
    policy = http.get(f"{files}/report/guarded/zoo.html", auth=key).headers["content-security-policy"]
    assert re.findall(r"'sha256-([^']*)'", policy) == hashes and len(hashes) == 1


def local(project: Path, environment: dict[str, str], port: int) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "flows.local", "--port", str(port)]
    return subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, timeout=300)


def test_a_server_that_wants_another_key_is_not_used(project, own_environment, url):
    none = local(project, own_environment, url.port)
    assert none.returncode == 1
    assert f"the Prefect server on port {url.port} wants a key. Set PREFECT_API_AUTH_STRING to it" in none.stderr
    wrong = local(project, own_environment | {"PREFECT_API_AUTH_STRING": "some:word"}, url.port)
    assert wrong.returncode == 1
    assert "wants a key, and not the one in PREFECT_API_AUTH_STRING" in wrong.stderr
    assert "some:word" not in wrong.stdout + wrong.stderr
    assert not (project / "prefect.toml").exists()


def test_a_server_that_asks_for_no_key_is_not_used(project, own_environment, start, wait_for, tmp_path, port):
    start(
        [sys.executable, "-m", "prefect", "server", "start", "--port", str(port), "--no-ui"],
        env=own_environment | {"PREFECT_HOME": str(tmp_path / "open")},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.STDOUT,
    )
    wait_for(lambda: who_answers(port) is not Answer.NONE, 300)
    said = local(project, own_environment, port)
    assert said.returncode == 1
    assert f"the Prefect server on port {port} asks for no key, so any web page" in said.stderr


def test_the_readmes_command_runs_a_row_and_no_variable_of_a_run_changes_what_runs(
    project, serve, own_environment, key_of, api, wait_for, tmp_path, port
):
    """After a start with the pool of an older release, whose template took a command."""
    flag, library = tmp_path / "flag", tmp_path / "library"
    library.mkdir()
    (library / "sitecustomize.py").write_text(f"open({str(flag)!r}, 'w')")
    command, paths = f"touch {shlex.quote(str(flag))}", {"PYTHONPATH": str(library)}
    variables = {"command": command, "env": paths, "env.PYTHONPATH": str(library), "working_dir": str(library)}
    (project / "nap").write_text("0")
    (project / ".venv" / "bin").mkdir(parents=True)
    (project / ".venv" / "bin" / "prefect").symlink_to(Path(sys.executable).with_name("prefect"))

    first, _ = serve(port)
    old_key = key_of(project)
    server = api(client_settings(port, old_key))
    older = {
        "job_configuration": {"command": "{{ command }}", "env": {}, "working_dir": "{{ working_dir }}"},
        "variables": {"type": "object", "properties": {"command": {"type": "string"}, "working_dir": {}}},
    }
    older_pool = {"base_job_template": older, "concurrency_limit": 3}
    assert server.patch("/work_pools/actionzoo", json=older_pool).status_code == 204
    row = server.get("/deployments/name/zoo/row").json()["id"]
    later = {"type": "SCHEDULED", "state_details": {"scheduled_time": "2100-01-01T00:00:00Z"}}
    planted = server.post(
        f"/deployments/{row}/create_flow_run", json={"name": "planted", "job_variables": variables, "state": later}
    )
    assert planted.is_success, planted.text
    first.terminate()
    first.wait(120)
    assert not (project / "prefect.toml").exists() and not (project / ".prefect" / "key").exists()

    _, log = serve(port)
    assert key_of(project) != old_key
    assert key_of(project) not in log.read_text()
    assert "cat .prefect/key" in log.read_text()
    server = api(client_settings(port, key_of(project)))
    pool = server.get("/work_pools/actionzoo").json()
    assert pool["concurrency_limit"] == 3
    assert pool["base_job_template"] == json.loads((ROOT / "flows" / "work_pool.json").read_text())
    for name, value in variables.items():
        ordered = {"job_variables": {name: value}, "state": {"type": "SCHEDULED"}}
        refused = server.post(f"/deployments/{row}/create_flow_run", json=ordered)
        assert refused.status_code == 422 and f"'{name}' was unexpected" in refused.text
    now = {"state": {"type": "SCHEDULED"}, "force": True}
    run = f"/flow_runs/{planted.json()['id']}"
    assert server.post(f"{run}/set_state", json=now).is_success
    wait_for(lambda: server.get(run).json()["state_type"] in ("COMPLETED", "FAILED", "CRASHED"), 180)
    assert server.get(run).json()["state_type"] == "COMPLETED", log.read_text()
    assert list(project.glob("top1_*.txt")) != []  # the planted run has built the row, and nothing else was done
    assert not flag.exists()

    line = next(line.strip() for line in (ROOT / "README.md").read_text().splitlines() if "run 'zoo/row'" in line)
    assert line == "PREFECT_API_URL=http://127.0.0.1:4200/api .venv/bin/prefect deployment run 'zoo/row' --watch"
    line = line.replace("4200", str(port))
    home = {"PREFECT_HOME": str(tmp_path / "home of the other terminal")}
    typed = {"shell": True, "env": own_environment | home, "capture_output": True, "text": True, "timeout": 300}
    elsewhere = subprocess.run(line.replace(".venv", shlex.quote(str(project / ".venv"))), cwd=tmp_path, **typed)
    assert elsewhere.returncode != 0 and "401" in elsewhere.stdout + elsewhere.stderr
    ran = subprocess.run(line, cwd=project, **typed)
    assert ran.returncode == 0, ran.stdout + ran.stderr + log.read_text()


def test_who_has_the_key_of_a_server_that_runs_may_use_it(project, own_environment, with_server, url, start, wait_for):
    log = project.parent / "local.log"
    with log.open("w") as output:
        ours = start(
            [sys.executable, "-m", "flows.local", "--port", str(url.port)],
            cwd=project,
            env=own_environment | {"PREFECT_API_AUTH_STRING": with_server["PREFECT_API_AUTH_STRING"]},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    wait_for(lambda: "started!" in log.read_text() or ours.poll() is not None, 300)
    ours.send_signal(signal.SIGINT)
    assert ours.wait(120) == 0, log.read_text()
    assert "using the Prefect server that runs" in log.read_text()
    assert with_server["PREFECT_API_AUTH_STRING"] not in log.read_text()
    assert who_answers(url.port, with_server["PREFECT_API_AUTH_STRING"]) is Answer.OURS
