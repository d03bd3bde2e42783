"""A foreign page and another user of the machine attack the server of `make prefect`."""

import functools
import json
import shlex
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync import client as websocket

from flows.server import Answer, client_settings, own_origins, who_answers

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
