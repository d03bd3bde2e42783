import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from flows.graph import read_graph

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def build(with_server):
    """Run the flow in a repository; gives the finished process, its output in one text."""

    def run(repository: Path, *arguments: str, **more: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, "-m", "flows.pipeline", *arguments],
            cwd=repository,
            env=with_server | more,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=300,
        )

    return run


def dvc_status(repository: Path) -> dict:
    said = subprocess.run(
        [sys.executable, "-m", "dvc", "status", "--json"], cwd=repository, check=True, capture_output=True, text=True
    )
    return json.loads(said.stdout)


def port_of(with_server: dict[str, str]) -> int:
    return httpx.URL(with_server["PREFECT_API_URL"]).port


CHAIN = """
    stages:
      resize:
        cmd: echo resizing for $ACTIONZOO_FLOW_RUN_ID && cp in.txt resized.txt && echo resize >> ran
        deps: [in.txt]
        outs: [resized.txt]
      train:
        foreach: [a, b]
        do:
          cmd: cp resized.txt trained_${item}.txt && echo train@${item} >> ran
          deps: [resized.txt]
          outs: ["trained_${item}.txt"]
          meta: {gpus: 1}
    """


def test_stages_are_built_once_and_found_up_to_date_after_that(build, make_repository, with_server, api):
    repository = make_repository(CHAIN)
    first = build(repository)
    assert first.returncode == 0, first.stdout
    assert "3 stages built, 0 were up to date" in first.stdout
    assert dvc_status(repository) == {}

    second = build(repository)
    assert second.returncode == 0, second.stdout
    assert "0 stages built, 3 were up to date" in second.stdout
    assert sorted((repository / "ran").read_text().split()) == ["resize", "train@a", "train@b"]
    assert "didn't change" not in second.stdout  # no DVC was started to find that out

    server = api(with_server)
    pages = server.post("/artifacts/filter", json={"sort": "CREATED_DESC", "limit": 2}).json()
    of_second, of_first = (page["data"] for page in pages)
    for stage in ("resize", "train@a", "train@b"):
        assert f"| {stage} | built |" in of_first and f"| {stage} | up to date |" in of_second

    runs = server.post("/flow_runs/filter", json={"sort": "START_TIME_DESC", "limit": 2}).json()
    assert f"resizing for {runs[1]['id']}" in first.stdout  # the stage could tag its record with it


def test_dvc_is_asked_again_only_below_what_was_built(build, make_repository):
    """`middle` makes the same of the new input, so what needs it stays as it is."""
    repository = make_repository(
        """
        stages:
          begin: {cmd: cp in.txt begin.txt, deps: [in.txt], outs: [begin.txt]}
          middle: {cmd: wc -l < begin.txt > middle.txt, deps: [begin.txt], outs: [middle.txt]}
          end: {cmd: cp middle.txt end.txt, deps: [middle.txt], outs: [end.txt]}
          after_end: {cmd: cp end.txt after.txt, deps: [end.txt], outs: [after.txt]}
        """
    )
    assert build(repository).returncode == 0
    (repository / "in.txt").write_text("two\n")
    changed = build(repository)
    assert "2 stages built, 2 were up to date" in changed.stdout
    assert "Stage 'end' didn't change" in changed.stdout
    assert "Stage 'after_end'" not in changed.stdout

    (repository / "in.txt").write_text("one\n")
    back = build(repository)
    assert "0 stages built, 2 restored from DVC's run cache, 2 were up to date" in back.stdout
    assert (repository / "begin.txt").read_text() == "one\n"

    (repository / "in.txt").write_text("three\n")
    would = build(repository, "--dry-run")
    assert "4 stages would be built: begin, middle, end, after_end" in would.stdout  # the last two perhaps
    assert (repository / "begin.txt").read_text() == "one\n"
    forced = build(repository, "--force", "end")
    assert "3 stages built, 0 were up to date" in forced.stdout


def test_only_faults_that_may_pass_by_themselves_are_tried_again(make_repository, with_server):
    stage = "{{cmd: echo x >> {0}.tries; test $(wc -l < {0}.tries) = 2 || exit {1}; cp in.txt {0}.txt, {2}}}"
    stages = {
        "network": stage.format("network", 75, "deps: [in.txt], outs: [network.txt], meta: {retries: 3}"),
        "params": stage.format("params", 1, "deps: [in.txt], outs: [params.txt], meta: {retries: 3}"),
        "without": stage.format("without", 75, "deps: [in.txt], outs: [without.txt]"),
        "on_a_gpu": stage.format("on_a_gpu", 75, "deps: [in.txt], outs: [on_a_gpu.txt], meta: {retries: 3, gpus: 1}"),
    }
    repository = make_repository("stages:\n" + "".join(f"  {name}: {text}\n" for name, text in stages.items()))
    program = "from flows import pipeline, stage_run; stage_run.RETRY_SECONDS = (0.1, 0.1); pipeline.main()"
    said = subprocess.run(
        [sys.executable, "-c", program], cwd=repository, env=with_server, capture_output=True, text=True, timeout=300
    )
    assert "3 of 4 stages failed" in said.stdout
    tries = {name: len((repository / f"{name}.tries").read_text().split()) for name in stages}
    assert tries == {"network": 2, "params": 1, "without": 1, "on_a_gpu": 1}


# A stage that takes three seconds to save its work.
SAVES = """
import signal, sys, time
from pathlib import Path
def save(*_):
    Path("saving").touch()
    time.sleep(3)
    Path("saved").touch()
    sys.exit()
signal.signal(signal.SIGTERM, save)
Path("begun").touch()
time.sleep(600)
"""


def test_a_stage_that_is_stopped_has_the_grace_of_params_yaml_to_save(make_repository, with_server, start, wait_for):
    for grace in (0.5, 60):
        repository = make_repository("stages: {train: {cmd: python saves.py, outs: [out.txt]}}", f"grace {grace}")
        (repository / "saves.py").write_text(SAVES)
        (repository / "params.yaml").write_text(f"runtime:\n  grace_seconds: {grace}\n")
        flow = start([sys.executable, "-m", "flows.pipeline"], cwd=repository, env=with_server)
        wait_for(lambda: (repository / "begun").exists() or flow.poll() is not None)  # noqa: B023
        flow.send_signal(signal.SIGTERM)
        assert flow.wait(60) == 128 + signal.SIGTERM
        assert (repository / "saving").exists()
        assert (repository / "saved").exists() == (grace == 60)


def test_the_lock_file_is_the_one_that_dvc_repro_writes(build, make_repository):
    """Byte for byte, although stages finish in another order, and some were built before."""
    graph = """
        stages:
          resize:
            cmd: cp in.txt resized.txt
            deps: [in.txt]
            outs: [resized.txt]
          train:
            foreach: {c: {seconds: 2}, a: {seconds: 1}, b: {seconds: 0}}
            do:
              cmd: sleep ${item.seconds} && cp resized.txt trained_${key}.txt
              deps: [resized.txt]
              outs: ["trained_${key}.txt"]
              meta: {gpus: 1}
          evaluate:
            foreach: [c, a, b]
            do:
              cmd: cp trained_${item}.txt top1_${item}.txt
              deps: ["trained_${item}.txt"]
              outs: ["top1_${item}.txt"]
        """

    def lock_of(*ways) -> bytes:
        repository = make_repository(graph, f"built {len(ways)} {'flow' in ways}")
        for way in ways:
            if way == "flow":
                assert build(repository, "--cpu-slots", "3").returncode == 0
            else:
                subprocess.run([sys.executable, "-m", "dvc", "repro", *way], cwd=repository, check=True)
        return (repository / "dvc.lock").read_bytes()

    assert lock_of(["evaluate@b"], "flow") == lock_of(["evaluate@b"], [])


def test_a_failed_stage_keeps_back_what_needs_it_and_nothing_else(build, make_repository):
    repository = make_repository(
        """
        stages:
          bad:
            cmd: echo no weights here && test -e weights && cp in.txt bad.txt
            deps: [in.txt]
            outs: [bad.txt]
          after:
            cmd: cp bad.txt after.txt
            deps: [bad.txt]
            outs: [after.txt]
          apart:
            cmd: cp in.txt apart.txt
            deps: [in.txt]
            outs: [apart.txt]
        """
    )
    failed = build(repository)
    assert failed.returncode == 1
    assert "1 of 3 stages failed" in failed.stdout
    assert "\n  bad: no weights here\n" in failed.stdout
    assert "\n  not run, because they need these: after" in failed.stdout
    assert "Traceback" not in failed.stdout
    assert (repository / "apart.txt").exists() and not (repository / "after.txt").exists()

    (repository / "weights").touch()
    mended = build(repository)
    assert mended.returncode == 0, mended.stdout
    assert "2 stages built, 1 were up to date" in mended.stdout


MEETING = """
    stages:
      left:
        cmd: {meet} left right
        deps: [in.txt]
        outs: [left.txt]
        meta: {{gpus: 1}}
      right:
        cmd: {meet} right left
        deps: [in.txt]
        outs: [right.txt]
        meta: {{gpus: 1}}
    """

# Each says that it is there and waits for the other: one after the other, neither would end well.
MEET = """
import os, sys, time
from pathlib import Path
me, other = sys.argv[1:]
Path(me + ".here").touch()
deadline = time.monotonic() + 60
while not Path(other + ".here").exists():
    if time.monotonic() > deadline:
        sys.exit(f"{me} waited for {other} in vain")
    time.sleep(0.05)
Path(me + ".txt").write_text(os.environ.get("CUDA_VISIBLE_DEVICES", "not set"))
"""


def test_stages_that_do_not_need_each_other_run_at_once_each_on_its_own_gpu(build, make_repository):
    repository = make_repository(MEETING.format(meet=f"{sys.executable} meet.py"))
    (repository / "meet.py").write_text(MEET)
    done = build(repository, CUDA_VISIBLE_DEVICES="5,7")
    assert done.returncode == 0, done.stdout
    assert {(repository / "left.txt").read_text(), (repository / "right.txt").read_text()} == {"5", "7"}


def test_no_more_stages_run_at_once_than_there_are_slots(build, make_repository):
    one_at_a_time = "mkdir busy && sleep 0.5 && rmdir busy && cp in.txt"  # mkdir fails if another stage is inside
    repository = make_repository(
        f"""
        stages:
          train:
            foreach: [a, b, c]
            do:
              cmd: {one_at_a_time} ${{item}}.txt
              deps: [in.txt]
              outs: ["${{item}}.txt"]
        """
    )
    done = build(repository, "--cpu-slots", "1")
    assert done.returncode == 0, done.stdout


def test_two_flows_at_once_share_the_work(make_repository, with_server):
    repository = make_repository(CHAIN)
    command = [sys.executable, "-m", "flows.pipeline"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    flows = [subprocess.Popen(command, cwd=repository, env=with_server, **pipes) for _ in range(2)]
    outputs = [flow.communicate(timeout=300)[0] for flow in flows]
    assert [flow.returncode for flow in flows] == [0, 0], "\n".join(outputs)
    assert sorted((repository / "ran").read_text().split()) == ["resize", "train@a", "train@b"]


def test_a_misspelt_target_is_one_sentence(build, make_repository):
    said = build(make_repository(CHAIN), "trian@a")
    assert (said.returncode, said.stdout) == (
        1,
        "dvc.yaml has no stage trian@a; did you mean train@a or train@b or train?\n",
    )


def test_gpus_that_are_not_there_are_told(build, make_repository):
    said = build(make_repository(CHAIN), "--gpus", "4", CUDA_VISIBLE_DEVICES="0,1")
    assert said.returncode == 1
    assert "gpus names 4, but this machine shows 0, 1; leave it out to use all" in said.stdout
    assert "Traceback" not in said.stdout


def test_help_names_the_arguments_and_gives_an_example(build, tmp_path):
    said = build(tmp_path, "--help")
    assert said.returncode == 0
    assert all(
        word in said.stdout for word in ("targets", "--gpus", "--cpu-slots", "examples:\n  python -m flows.pipeline")
    )


def test_passwords_in_addresses_are_shown_nowhere(build, make_repository, with_server, api):
    repository = make_repository(
        """
        stages:
          fetch:
            cmd: echo from https://me:pass-word@host/k?X-Amz-Signature=0feed && echo s3://me:pass-word@host >&2 && false
            deps: [in.txt]
            outs: [out.txt]
        """
    )
    failed = build(repository)
    assert failed.returncode == 1
    assert "https://***@host/k?***" in failed.stdout
    assert "pass-word" not in failed.stdout and "0feed" not in failed.stdout
    server = api(with_server)
    kept = "".join(
        server.post(f"/{kind}/filter", json={"limit": 100, "sort": sort}).text
        for kind, sort in [("logs", "TIMESTAMP_DESC"), ("flow_runs", "START_TIME_DESC"), ("artifacts", "CREATED_DESC"),
                           ("task_runs", "ID_DESC")]
    )  # fmt: skip
    assert "***@host" in kept
    assert "pass-word" not in kept and "0feed" not in kept


def test_stages_do_not_get_the_keys_of_prefect(build, make_repository):
    repository = make_repository(
        """
        stages:
          look:
            cmd: "env | sed -n 's/=.*//p' > names.txt"
            deps: [in.txt]
            outs: [names.txt]
        """
    )
    done = build(repository, PREFECT_API_KEY="word")
    assert done.returncode == 0, done.stdout
    names = (repository / "names.txt").read_text().split()
    assert "ACTIONZOO_FLOW_RUN_ID" in names
    assert [name for name in names if name.startswith("PREFECT_") and name.endswith(("_KEY", "_STRING"))] == []


@pytest.mark.parametrize(
    "address", ["tcp://me:pass-word@127.0.0.1:1?sig=pass-word", "me:pass-word@host:1", "loacl", "x"]
)
def test_what_is_no_address_of_a_scheduler_is_told_before_anything_starts(build, make_repository, address):
    said = build(make_repository(CHAIN), "--dask", address)
    assert said.returncode == 1
    assert said.stdout.startswith("dask is ") and said.stdout.count("\n") == 1
    assert "pass-word" not in said.stdout
    assert ("did you mean local?" in said.stdout) == (address == "loacl")


@pytest.mark.parametrize("address", ["http://me:pass-word@127.0.0.1:1/api", "http://127.0.0.1:1/api?sig=pass-word"])
def test_a_server_that_does_not_answer_is_one_sentence(build, make_repository, address):
    said = build(make_repository(CHAIN), PREFECT_API_URL=address)
    assert said.returncode == 1
    assert "no Prefect server answers at http://" in said.stdout
    assert "Traceback" not in said.stdout and "pass-word" not in said.stdout


def test_a_server_that_wants_another_key_is_one_sentence(build, make_repository):
    said = build(make_repository(CHAIN), PREFECT_API_AUTH_STRING="some:pass-word")
    assert said.returncode == 1
    assert "refuses our key: set PREFECT_API_AUTH_STRING" in said.stdout
    assert "Traceback" not in said.stdout and "pass-word" not in said.stdout


def test_flows_know_nothing_of_the_networks(environment):
    program = """
import sys, flows.pipeline, flows.local, flows.runs
print([name for name in sys.modules if name.split(".")[0] == "torch" or name.startswith("actionzoo.models")])
"""
    said = subprocess.run([sys.executable, "-c", program], env=environment, check=True, capture_output=True, text=True)
    assert said.stdout == "[]\n"


def test_the_graph_of_this_project_can_be_read(monkeypatch):
    monkeypatch.chdir(ROOT)
    root, stages = read_graph(["evaluate@slowfast_r50_video_4x16x1_256e_kinetics400_rgb"])
    assert root == ROOT
    gpus = {stage.name: stage.gpus for stage in stages}
    assert gpus["train@slowfast_r50_video_4x16x1_256e_kinetics400_rgb"] >= 1
    assert gpus["download"] == 0


SLOW_TRAINING = """
    stages:
      resize:
        cmd: cp in.txt resized.txt
        deps: [in.txt]
        outs: [resized.txt]
      train:
        foreach: [a, b]
        do:
          cmd: touch ${item}.begun; sleep $(cat nap) && cp resized.txt trained_${item}.txt
          deps: [resized.txt]
          outs: ["trained_${item}.txt"]
    """


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_flow_that_is_stopped_leaves_nothing_running_and_can_be_started_again(
    number, make_repository, environment, with_server, start, left_running, wait_for
):
    """`a` runs, `b` waits for its slot and must not get it. A server that the flow started for itself has to go too."""
    repository = make_repository(SLOW_TRAINING)
    (repository / "nap").write_text("600")
    command = [sys.executable, "-m", "flows.pipeline", "--cpu-slots", "1"]
    flow = start(
        command,
        cwd=repository,
        env=with_server if number == signal.SIGKILL else environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.STDOUT,
        process_group=0,
    )
    wait_for(lambda: list(repository.glob("*.begun")) or flow.poll() is not None)
    if number == signal.SIGINT:
        os.killpg(flow.pid, signal.SIGINT)  # Ctrl-C is for all processes of the terminal
    else:
        flow.send_signal(number)
    assert flow.wait(120) == (-number if number == signal.SIGKILL else 128 + number)
    assert left_running(apart_from=f"--port {port_of(with_server)}") == []
    assert len(list(repository.glob("*.begun"))) == 1

    (repository / "nap").write_text("0")
    again = subprocess.run(command, cwd=repository, env=with_server, capture_output=True, text=True, timeout=300)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "2 stages built, 1 were up to date" in again.stdout
