"""Small DVC repositories, one Prefect server for all tests of a worker, and the processes that a test leaves.

Nothing is shared with other workers of pytest-xdist or with the user: ports and PREFECT_HOME are a session's own.
"""

import functools
import os
import shutil
import subprocess
import sys
import textwrap
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from flows.server.keys import new_key
from flows.server.process import client_settings, local_server
from tests import processes
from tests.ports import reserved_port

ROOT = Path(__file__).resolve().parents[2]
ROW = "slowfast_r50_video_4x16x1_256e_kinetics400_rgb"


@pytest.fixture(scope="session")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """This environment without Prefect's settings, with a PREFECT_HOME of its own and a mark that children inherit."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    own.pop("CUDA_VISIBLE_DEVICES", None)
    return own | {
        "PREFECT_HOME": str(tmp_path_factory.mktemp("prefect")),
        "ACTIONZOO_SLOTS": str(tmp_path_factory.mktemp("slots")),
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "src")]),
        processes.MARK: uuid.uuid4().hex,
    }


@pytest.fixture(scope="session", autouse=True)
def own_prefect_home(environment: dict[str, str]) -> Iterator[None]:
    """For what the tests import of Prefect themselves."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PREFECT_HOME", environment["PREFECT_HOME"])
        yield


@pytest.fixture(scope="session")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder whose reports and runs the server shows."""
    return tmp_path_factory.mktemp("checkout")


@pytest.fixture(scope="session")
def with_server(environment: dict[str, str], checkout: Path) -> Iterator[dict[str, str]]:
    """The environment, with a Prefect server to report to."""
    key = new_key()
    with reserved_port() as port, local_server(port, key, with_ui=True, files=checkout):
        yield environment | client_settings(port, key)


@pytest.fixture
def port() -> Iterator[int]:
    """A port for a server of this test."""
    with reserved_port() as number:
        yield number


class _Patient(httpx.HTTPTransport):
    """Repeats requests that are answered with 503, as while SQLite is locked. Prefect's own clients do so too."""

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        for _ in range(20):
            response = super().handle_request(request)
            if response.status_code != httpx.codes.SERVICE_UNAVAILABLE:
                break
            response.close()
            time.sleep(1)
        return response


@pytest.fixture
def api() -> Iterator[Callable[[dict[str, str]], httpx.Client]]:
    """A client of the server that an environment names, with its key."""
    clients: list[httpx.Client] = []

    def connect(environment: dict[str, str]) -> httpx.Client:
        auth = tuple(environment["PREFECT_API_AUTH_STRING"].split(":"))
        base = environment["PREFECT_API_URL"]
        clients.append(httpx.Client(transport=_Patient(), base_url=base, auth=auth, timeout=60))
        return clients[-1]

    yield connect
    for client in clients:
        client.close()


@pytest.fixture
def http() -> Iterator[httpx.Client]:
    """A client without a key."""
    with httpx.Client(transport=_Patient(), timeout=60) as client:
        yield client


def make_repository_in(repository: Path, dvc_yaml: str) -> Path:
    """A new DVC repository in that folder."""
    repository.mkdir(exist_ok=True)
    run = {"cwd": repository, "check": True, "env": {**os.environ, "DVC_NO_ANALYTICS": "1"}}
    subprocess.run(["git", "init", "-q"], **run)
    subprocess.run([sys.executable, "-m", "dvc", "init", "-q"], **run)
    (repository / "dvc.yaml").write_text(textwrap.dedent(dvc_yaml))
    (repository / "in.txt").write_text("one\n")
    return repository


@pytest.fixture
def make_repository(tmp_path: Path) -> Callable[[str], Path]:
    """A function: text of a dvc.yaml -> the folder of a new DVC repository with it and a file in.txt."""

    return lambda dvc_yaml, folder="repository": make_repository_in(tmp_path / folder, dvc_yaml)


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen]]:
    """subprocess.Popen; all that it starts is ended with the test."""
    started: list[subprocess.Popen] = []

    def popen(*arguments, **options) -> subprocess.Popen:
        started.append(subprocess.Popen(*arguments, **options))
        return started[-1]

    yield popen
    for process in started:
        process.terminate()
        process.wait(60)


@pytest.fixture
def left_running(environment: dict[str, str]) -> Callable[..., list[str]]:
    """See `tests.processes.left_running`."""
    return functools.partial(processes.left_running, environment)


@pytest.fixture
def wait_for() -> Callable[..., None]:
    return processes.wait_for


@pytest.fixture
def project(make_repository):
    """A small project: the real flows and prefect.yaml over a graph with one model."""
    repository = make_repository(
        f"""
        stages:
          train:
            foreach: [{ROW}]
            do:
              cmd: echo learning from $(cat in.txt); touch begun; sleep $(cat nap) && cp in.txt trained_${{item}}.txt
              deps: [in.txt]
              outs: ["trained_${{item}}.txt"]
              meta: {{gpus: 1}}
          evaluate:
            foreach: [{ROW}]
            do:
              cmd: cp trained_${{item}}.txt top1_${{item}}.txt
              deps: ["trained_${{item}}.txt"]
              outs: ["top1_${{item}}.txt"]
        """,
        folder="a project",
    )
    shutil.copytree(ROOT / "flows", repository / "flows", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "prefect.yaml", repository)
    return repository


@pytest.fixture
def own_environment(environment):
    """No settings for Prefect, and flows are imported from the working directory, as for a user."""
    own = {name: value for name, value in environment.items() if name != "PREFECT_HOME"}
    return own | {"PYTHONPATH": str(ROOT / "src")}


@pytest.fixture
def serve(project, own_environment, start, wait_for, tmp_path):
    """A function: starts `python -m flows.local` on a port; returns it and its log once its worker has started."""

    def run(port: int) -> tuple[subprocess.Popen, Path]:
        log = tmp_path / "local.log"
        with log.open("w") as output:
            local = start(
                [sys.executable, "-m", "flows.local", "--port", str(port)],
                cwd=project,
                env=own_environment,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        wait_for(lambda: "started!" in log.read_text() or local.poll() is not None, 300)
        assert local.poll() is None, log.read_text()
        return local, log

    return run


@pytest.fixture
def order(project, own_environment, tmp_path):
    """A function: runs the line that flows.local has printed, in the project's folder, for one of the deployments."""

    def run(log: Path, deployment: str, *options: str) -> subprocess.CompletedProcess:
        home = {"PREFECT_HOME": str(tmp_path / "home of the other terminal")}
        line = next(line for line in log.read_text().splitlines() if "deployment run" in line)
        line = line.replace("zoo/row", deployment).replace(" --watch", f" {' '.join(options)}")
        return subprocess.run(
            line, shell=True, cwd=project, env=own_environment | home, capture_output=True, text=True, timeout=300
        )

    return run


@pytest.fixture
def key_of() -> Callable[[Path], str]:
    """A function: project -> the key of the server that flows.local runs for it, as a user reads it."""
    return lambda project: (project / ".prefect" / "key").read_text().strip()
