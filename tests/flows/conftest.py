"""Small DVC repositories made on the spot, one Prefect server for all tests, and a way to see what was left running."""

import os
import subprocess
import sys
import textwrap
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from flows.server import api_url, free_port, local_server

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Ours, less any Prefect settings, with a PREFECT_HOME of its own and a mark that every child inherits."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    ours.pop("CUDA_VISIBLE_DEVICES", None)
    return ours | {
        "PREFECT_HOME": str(tmp_path_factory.mktemp("prefect")),
        "PYTHONPATH": str(ROOT),
        "ACTIONZOO_TEST_MARK": uuid.uuid4().hex,
    }


@pytest.fixture(scope="session")
def with_server(environment: dict[str, str]) -> Iterator[dict[str, str]]:
    """The environment, with a Prefect server to report to."""
    port = free_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PREFECT_HOME", environment["PREFECT_HOME"])
        with local_server(port, with_ui=False):
            yield environment | {"PREFECT_API_URL": api_url(port)}


@pytest.fixture
def make_repository(tmp_path: Path) -> Callable[[str], Path]:
    """Give it the text of a dvc.yaml; gives the folder of a DVC repository with it and a file in.txt."""

    def make(dvc_yaml: str, folder: str = "repository") -> Path:
        repository = tmp_path / folder
        repository.mkdir()
        run = {"cwd": repository, "check": True, "env": {**os.environ, "DVC_NO_ANALYTICS": "1"}}
        subprocess.run(["git", "init", "-q"], **run)
        subprocess.run([sys.executable, "-m", "dvc", "init", "-q"], **run)
        (repository / "dvc.yaml").write_text(textwrap.dedent(dvc_yaml))
        (repository / "in.txt").write_text("one\n")
        return repository

    return make


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen]]:
    """subprocess.Popen, and nothing it started outlives the test, however the test ends."""
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
    """Command lines of the processes that the tests have started, once there are none or some seconds have passed;
    those excepted that hold `apart_from`."""

    def look(seconds: float = 5.0, apart_from: str = "prefect server start") -> list[str]:
        mark = f"ACTIONZOO_TEST_MARK={environment['ACTIONZOO_TEST_MARK']}".encode()
        deadline = time.monotonic() + seconds
        while True:
            found = []
            for process in Path("/proc").glob("[0-9]*"):
                try:
                    if mark in (process / "environ").read_bytes():
                        found.append((process / "cmdline").read_bytes().replace(b"\0", b" ").decode())
                except OSError:  # it ended meanwhile, or is not ours
                    continue
            found = [command for command in found if command and apart_from not in command]
            if not found or time.monotonic() > deadline:
                return found
            time.sleep(0.1)

    return look


@pytest.fixture
def wait_for() -> Callable[..., None]:
    def wait(condition: Callable[[], object], seconds: float = 60.0) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"nothing happened in {seconds} s"
            time.sleep(0.05)

    return wait
