"""Machines that share nothing but a DVC remote and a Prefect server, on PostgreSQL where that is installed.

Each machine is a clone with a home, a device and a folder of locks of its own; all are processes of this host.
"""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from flows import machine, machines, share
from flows.graph import read_graph
from flows.keys import new_key
from flows.server import client_settings, local_server
from tests import processes
from tests.ports import reserved_port
from tests.test_end_to_end import SLOWFAST, Workspace, small

ROOT = Path(__file__).resolve().parents[2]
PIPELINE = """
    stages:
      prepare:
        cmd: cp in.txt prepared.txt && echo prepare >> ran
        deps: [in.txt]
        outs: [prepared.txt]
      train:
        foreach: [a, b]
        do:
          cmd: cp prepared.txt trained_${item}.txt && echo train@${item} >> ran
          deps: [prepared.txt]
          outs: ["trained_${item}.txt"]
          meta: {gpus: 1}
    """


@pytest.fixture
def clones(make_repository, tmp_path) -> tuple[Path, Path]:
    """Two clones of a repository with a DVC remote; in the first one, everything is built."""
    first = make_repository(PIPELINE, "first")
    run("dvc", "remote", "add", "--default", "team", str(tmp_path / "remote"), cwd=first)
    second = tmp_path / "second"
    shutil.copytree(first, second)
    run("dvc", "repro", cwd=first)
    return first, second


def run(*words: str, cwd: Path, **options) -> str:
    done = subprocess.run(
        [sys.executable, "-m", *words], cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


ALL = ["prepare", "train@a", "train@b"]


def test_what_one_clone_has_pushed_another_restores_without_its_lock_file(clones, stop):
    first, second = clones
    assert share.push(first, ALL, stop, print)
    assert share.fetch(second, ALL, stop, print, commit=True) == ALL
    assert "up to date" in run("dvc", "status", cwd=second)
    assert not (second / "ran").exists()


def test_a_stage_whose_inputs_differ_is_not_restored(clones, stop):
    first, second = clones
    assert share.push(first, ALL, stop, print)
    (second / "in.txt").write_text("two\n")
    assert share.fetch(second, ALL, stop, print) == []


def test_what_could_not_be_pushed_is_said_and_pushed_later(clones, stop, monkeypatch, tmp_path):
    first, second = clones
    monkeypatch.setattr(share, "RETRY_SECONDS", (0.1,))
    (tmp_path / "remote").write_text("a file, where a folder should be")
    said: list[str] = []
    assert not share.push(first, ["train@a"], stop, said.append)
    assert share.kept_back(first) == ["train@a"]
    assert "trying again" in said[0] and "train@a: built, but other machines do not have it yet" in said[-1]
    (tmp_path / "remote").unlink()
    assert share.push_kept_back(first, stop, print) and share.kept_back(first) == []
    assert share.push(first, ["prepare"], stop, print)
    assert share.fetch(second, ["prepare", "train@a"], stop, print) == ["prepare", "train@a"]


def test_files_that_cannot_be_fetched_are_an_error_and_no_reason_to_build_again(clones, stop, monkeypatch, tmp_path):
    from actionzoo.errors import UserError

    first, second = clones
    monkeypatch.setattr(share, "RETRY_SECONDS", ())
    assert share.push(first, ["prepare"], stop, print)
    for path in (tmp_path / "remote" / "files").rglob("*"):
        if path.is_file():
            path.unlink()
            path.mkdir()  # it exists, and reading it fails
    with pytest.raises(UserError, match=r"DVC.s remote: IsADirectoryError"):
        share.fetch(second, ["prepare"], stop, print)


def test_models_are_the_keys_of_stages_with_gpus(clones, monkeypatch):
    monkeypatch.chdir(clones[0])
    _, stages = read_graph()
    assert machines.stages_of_models(stages) == {"a": ["train@a"], "b": ["train@b"]}


def test_a_checkout_that_differs_from_the_one_that_gives_models_away_is_refused(clones):
    from actionzoo.errors import UserError

    first, second = clones
    machine.check_project(second, machine.project_of(first))
    (second / "dvc.yaml").write_text(f"{(second / 'dvc.yaml').read_text()}\n# changed\n")
    with pytest.raises(UserError, match=r"dvc\.yaml in .* differ from those of the flow run"):
        machine.check_project(second, machine.project_of(first))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, "PREFECT_API_URL is not set: set it to the server's address"),
        ({"PREFECT_API_URL": "http://127.0.0.1:9/api"}, "no Prefect server answers at http://127.0.0.1:9/api"),
    ],
)
def test_a_worker_without_a_server_says_so_in_a_sentence(project, own_environment, settings, said):
    done = subprocess.run(
        [sys.executable, "-m", "flows.worker"], cwd=project, env=own_environment | settings, text=True,
        capture_output=True, timeout=120)  # fmt: skip
    assert done.returncode == 1 and said in done.stderr and "Traceback" not in done.stderr


def test_a_checkout_that_a_worker_of_another_machine_uses_is_refused(monkeypatch, tmp_path):
    from actionzoo.errors import UserError
    from flows import worker

    monkeypatch.setattr(worker, "ROOT", tmp_path)
    with worker._own_checkout(), worker._own_checkout():  # two workers of one machine
        (tmp_path / ".dvc/tmp/worker.host").write_text("elsewhere")
        with pytest.raises(UserError, match="a worker on elsewhere uses this checkout"), worker._own_checkout():
            pass


@pytest.mark.parametrize("name", ["work_pool.json", "templates/kubernetes.json"])
def test_no_flow_run_chooses_what_its_process_is(name):
    """Prefect replaces {{ names }} of a template by values of the flow run, where the template has such a variable."""
    template = json.loads((ROOT / "flows" / name).read_text())
    variables = template["variables"]
    assert variables["additionalProperties"] is False
    used = set(re.findall(r"{{ *(\w+) *}}", json.dumps(template["job_configuration"])))
    assert used == variables["properties"].keys() <= {"gpus", "namespace"}
    assert not {"command", "env", "image", "working_dir"} & template["job_configuration"].keys()


def test_prefect_kubernetes_makes_a_job_of_the_template():
    worker = pytest.importorskip("prefect_kubernetes.worker", reason="prefect-kubernetes is not installed")
    import asyncio

    template = json.loads((ROOT / "flows/templates/kubernetes.json").read_text())
    made = asyncio.run(worker.KubernetesWorkerJobConfiguration.from_template_and_values(template, {"gpus": 4}))
    (container,) = made.job_manifest["spec"]["template"]["spec"]["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 4
    assert made.job_manifest["metadata"]["namespace"] == "actionzoo"


def test_the_script_for_slurm_is_one_for_bash():
    subprocess.run(["bash", "-n", ROOT / "flows/templates/slurm.sbatch"], check=True)


@pytest.fixture
def stop():
    import threading

    return threading.Event()


@pytest.fixture(scope="module")
def postgres(tmp_path_factory) -> Iterator[str | None]:
    """The connection string of a database on PostgreSQL; None if that is not installed."""
    if not (shutil.which("initdb") and shutil.which("pg_ctl")):
        yield None
        return
    folder = Path("/tmp") / f"actionzoo-postgres-{os.getpid()}"  # its user may not see pytest's folders
    user = {"user": "postgres", "group": "postgres"} if os.geteuid() == 0 else {}
    folder.mkdir(mode=0o700)
    try:
        if user:
            shutil.chown(folder, "postgres", "postgres")
        quiet = {"check": True, "capture_output": True, "cwd": "/tmp", **user}
        (data := folder / "data")
        subprocess.run(["initdb", "-D", data, "-A", "trust", "-U", "prefect", "--no-sync"], **quiet)
        with reserved_port() as port:
            options = f"-c listen_addresses=127.0.0.1 -c port={port} -c unix_socket_directories={folder} -c fsync=off"
            control = ["pg_ctl", "-D", str(data), "-l", str(folder / "log"), "-w"]
            subprocess.run([*control, "-o", options, "start"], **quiet | {"capture_output": False})
            try:
                subprocess.run(["createdb", "-h", "127.0.0.1", "-p", str(port), "-U", "prefect", "prefect"], **quiet)
                yield f"postgresql+asyncpg://prefect@127.0.0.1:{port}/prefect"
            finally:
                subprocess.run([*control, "-m", "immediate", "stop"], **quiet)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def server(environment, postgres) -> Iterator[dict[str, str]]:
    """The environment of a client of a server of these tests."""
    key = new_key()
    with pytest.MonkeyPatch.context() as patch, reserved_port() as port:
        if postgres:
            patch.setenv("PREFECT_API_DATABASE_CONNECTION_URL", postgres)
        with local_server(port, key, with_ui=False):
            yield client_settings(port, key)


class Machine:
    """A clone of the project with a home, a device and locks of its own."""

    def __init__(self, folder: Path, origin: Path, environment: dict[str, str]):
        self.name, self.root = folder.name, folder / "actionzoo"
        subprocess.run(["git", "clone", "-q", origin, self.root], check=True)
        own = {name: folder / name.lower() for name in ("HOME", "TMPDIR", "ACTIONZOO_SLOTS", "PREFECT_HOME")}
        for path in own.values():
            path.mkdir(mode=0o700)
        self.environment = environment | {name: str(path) for name, path in own.items()}
        self.environment |= {"CUDA_VISIBLE_DEVICES": "0", "MACHINE": f"{folder}", "PYTHONPATH": str(ROOT / "src")}
        self.log = folder / "worker.log"

    def start(self, *arguments: str) -> subprocess.Popen:
        with self.log.open("w") as output:
            return subprocess.Popen(
                [sys.executable, "-m", "flows.worker", "--name", self.name, *arguments],
                cwd=self.root, env=self.environment, stdout=output, stderr=subprocess.STDOUT)  # fmt: skip

    def run(self, *words: str) -> str:
        return run(*words, cwd=self.root, env=self.environment)

    def die(self) -> None:
        """Kill all processes of the machine, as a power cut does."""
        mark = f"MACHINE={self.environment['MACHINE']}\0".encode()
        while found := [process for process in Path("/proc").glob("[0-9]*") if _has(process, mark)]:
            for process in found:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(process.name), signal.SIGKILL)
            time.sleep(0.05)


def _has(process: Path, mark: bytes) -> bool:
    try:
        return mark in (process / "environ").read_bytes() and processes.is_running(int(process.name))
    except OSError:
        return False


TEMPLATE = ("--base-job-template", "flows/work_pool.json")
MODELS = [SLOWFAST.replace("slowfast", f"slowfast{number}") for number in (1, 2, 3, 4)]


@pytest.fixture(scope="module")
def origin(tmp_path_factory) -> Path:
    """A repository with three models that train for some seconds."""
    folder = tmp_path_factory.mktemp("machines")
    workspace = Workspace(folder / "origin")
    small(workspace.params)
    params, recipe = workspace.params, workspace.params["recipes"][SLOWFAST]
    params["datasets"]["demo"]["synthetic"] |= {"train_clips": 2, "val_clips": 1}  # one step an epoch
    params["datasets"]["demo"]["max_bad_share"] = 0.5
    del params["datasets"]["demo"]["overrides"]["csn"]
    params["recipes"] = {model: recipe | {"seed": seed} for seed, model in enumerate(MODELS)}
    params["datasets"]["demo"]["demo_recipes"] = MODELS[:1]
    params["datasets"]["demo"]["overrides"]["slowfast"]["schedule"] |= {"epochs": 5, "val_interval": 2}
    params["runtime"] |= {"workers": 1, "jobs": 1, "save_minutes": 0.01, "share_minutes": 0.001}
    workspace.published = {model: workspace.published[SLOWFAST] for model in MODELS}
    workspace.save()
    run("dvc", "remote", "add", "--default", "team", str(folder / "remote"), cwd=workspace.root)
    git = ["git", "-C", workspace.root, "-c", "user.name=x", "-c", "user.email=x@example.org"]
    subprocess.run([*git, "add", "-A"], check=True)
    subprocess.run([*git, "commit", "-qm", "all"], check=True)
    return workspace.root


class Hosts:
    """A coordinator and two machines, which a server knows."""

    def __init__(self, folder: Path, origin: Path, environment: dict[str, str]):
        self.remote = origin.parent / "remote"
        self.all = {name: Machine(folder / name, origin, environment) for name in ("coordinator", "left", "right")}
        self.coordinator, self.left, self.right = self.all.values()
        self.coordinator.run(*["prefect", "work-pool", "create", "actionzoo", "--type", "process"], *TEMPLATE)
        self.coordinator.run("prefect", "--no-prompt", "deploy", "--all")

    @contextlib.contextmanager
    def working(self) -> Iterator[dict[str, subprocess.Popen]]:
        """Workers on all machines, by name; nothing is left of them after the block."""
        workers = {"coordinator": self.coordinator.start("--queue", "default", "--limit", "1")}
        workers |= {name: self.all[name].start() for name in ("left", "right")}
        try:
            yield workers
            for worker in workers.values():
                worker.send_signal(signal.SIGINT)
            for worker in workers.values():
                worker.wait(120)
        finally:
            for machine in self.all.values():
                machine.die()

    def order(self, *parameters: str) -> str:
        """Start a flow run of zoo/train; returns its id."""
        words = [word for parameter in ("machines=true", *parameters) for word in ("-p", parameter)]
        ordered = self.coordinator.run("prefect", "deployment", "run", "zoo/train", *words)
        return re.search(r"[0-9a-f]{8}-[0-9a-f-]{27}", ordered)[0]

    def states(self, model: str) -> list[Path]:
        """States of an unfinished training in the remote."""
        return sorted((self.remote / "actionzoo").rglob(f"{model}/*/state-*.pth"))

    def status(self, *models: str) -> dict:
        """What `dvc status` says of the coordinator's trainings."""
        return json.loads(self.coordinator.run("dvc", "status", "--json", *(f"train@{model}" for model in models)))


@pytest.fixture(scope="module")
def hosts(tmp_path_factory, origin, server, environment) -> Hosts:
    own = {name: value for name, value in environment.items() if name not in ("PREFECT_HOME", "PYTHONPATH")} | server
    own |= {"ACTIONZOO_LOST_SECONDS": "40", "OMP_NUM_THREADS": "1"}
    own["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), own["PATH"]])
    return Hosts(tmp_path_factory.mktemp("hosts"), origin, own)


@pytest.mark.slow
def test_models_train_on_two_machines_of_which_one_dies_and_the_other_is_stopped(hosts, server, wait_for, api):
    client, models = api(server), MODELS[:3]

    def children() -> list[dict]:
        return client.post("/flow_runs/filter", json={"flow_runs": {"tags": {"all_": ["machine"]}}}).json()

    def of(name: str) -> dict | None:
        return next((run for run in children() if run["labels"].get("prefect.worker.name") == name), None)

    def start(number: int) -> dict | None:
        """The flow run to which the model of the killed machine was given."""
        return next((run for run in children() if run["name"] == f"{killed['name']} · start {number}"), None)

    with hosts.working() as workers:
        parent = hosts.order(f"models={json.dumps(models)}")
        wait_for(lambda: (run := of("left")) and hosts.states(run["name"]) and of("right"), 600)
        assert sorted(run["state_type"] for run in children()) == ["RUNNING", "RUNNING", "SCHEDULED"]
        killed = of("left")
        hosts.left.die()

        wait_for(lambda: (run := start(2)) and run["state_type"] == "RUNNING", 300)
        shutil.rmtree(hosts.left.root / ".scratch")  # it comes back without its own states
        workers["left"] = hosts.left.start()
        workers["right"].send_signal(signal.SIGINT)  # it hands the model back, as before a maintenance
        wait_for(lambda: client.get(f"/flow_runs/{parent}").json()["state_type"] in ("COMPLETED", "FAILED"), 600)

    state = client.get(f"/flow_runs/{parent}").json()["state"]
    assert state["type"] == "COMPLETED", state["message"]
    crashed = client.get(f"/flow_runs/{killed['id']}").json()
    assert crashed["state"]["type"] == "CRASHED" and "heartbeat" in crashed["state"]["message"]
    assert [(run["labels"]["prefect.worker.name"], run["state_type"]) for run in (start(2), start(3))] == [
        ("right", "CANCELLED"),
        ("left", "COMPLETED"),
    ]
    of_starts = {"logs": {"flow_run_id": {"any_": [start(2)["id"], start(3)["id"]]}}, "limit": 200}
    lines = [line["message"] for line in client.post("/logs/filter", json=of_starts).json()]
    assert any("going on from state-" in line for line in lines), lines
    assert hosts.status(*models) == {}
    assert not any(hosts.states(model) for model in models)


@pytest.mark.slow
def test_two_machines_train_a_model_together_and_a_cancel_reaches_both(hosts, server, wait_for, api):
    """Also the machine that has died before."""
    client, model = api(server), MODELS[3]

    def ended(run: str) -> dict | None:
        state = client.get(f"/flow_runs/{run}").json()["state"]
        return state if state["type"] in ("COMPLETED", "FAILED", "CANCELLED", "CRASHED") else None

    def children() -> dict[str, str]:
        """Worker -> state of its newest flow run."""
        tags = {"tags": {"all_": ["machine", f"model:{model}"]}}
        found = client.post("/flow_runs/filter", json={"flow_runs": tags, "sort": "START_TIME_ASC"}).json()
        workers = [(run["labels"].get("prefect.worker.name"), run["state_type"]) for run in found]
        return {worker: state for worker, state in workers if worker}

    with hosts.working():
        parent = hosts.order(f"models={json.dumps([model])}", "nodes=2")
        wait_for(lambda: children() == dict.fromkeys(["left", "right"], "RUNNING"), 120)
        client.post(f"/flow_runs/{parent}/set_state", json={"state": {"type": "CANCELLING"}})
        wait_for(lambda: ended(parent) and children() == dict.fromkeys(["left", "right"], "CANCELLED"), 120)

        parent = hosts.order(f"models={json.dumps([model])}", "nodes=2")
        wait_for(lambda: ended(parent), 600)
    assert ended(parent)["type"] == "COMPLETED", ended(parent)["message"]
    assert children() == dict.fromkeys(["left", "right"], "COMPLETED")
    record = json.loads((hosts.coordinator.root / "runs/demo" / model / "recipe.json").read_text())
    assert (record["circumstances"]["nodes"], record["circumstances"]["processes"]) == (2, 2)
    assert hosts.status(model) == {}
