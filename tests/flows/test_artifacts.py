"""What a flow run shows on Prefect's page: the page that it ends with, and how far a long stage is.

One build for all tests: its stages count their work, leave links to runs in MLflow, and one of them fails.
"""

import re
import subprocess
import sys
import textwrap
from pathlib import Path

import httpx
import pytest

from tests import processes
from tests.flows.conftest import make_repository_in

pytestmark = pytest.mark.slow

GRAPH = f"""
    stages:
      train:
        foreach: [m_long, m_b]
        do:
          cmd: {sys.executable} stage.py train ${{item}}
          deps: [in.txt]
          outs: ["trained_${{item}}.txt"]
      evaluate:
        foreach: [m_long, m_b]
        do:
          cmd: {sys.executable} stage.py evaluate ${{item}}
          deps: ["trained_${{item}}.txt"]
          outs: ["metrics/demo/evaluate/${{item}}"]
      report:
        cmd: {sys.executable} stage.py report -
        deps: [metrics/demo/evaluate]
        outs: [report/demo/zoo.md, report/demo/zoo.html]
      bad:
        cmd: {sys.executable} stage.py bad -
        deps: [in.txt]
        outs: [bad.txt]
      after:
        cmd: cp bad.txt after.txt
        deps: [bad.txt]
        outs: [after.txt]
    """

STAGE = """
    import json, os, sys, time
    from pathlib import Path
    from actionzoo.process.progress import progress
    from actionzoo.process.stage import stage
    from actionzoo.errors import UserError
    from actionzoo.tracking.run_link import RunLink, leave_link

    name, model = sys.argv[1:]

    def train():
        is_served = model == "m_long"
        base = "https://mlflow.example" if is_served else "http://127.0.0.1:5000"
        leave_link(RunLink(model, "train", f"{base}/#/experiments/1/runs/{model}", is_served))
        with progress("steps", lines=False, per_epoch=10) as on_progress:
            done, deadline = 20, time.monotonic() + 240
            while model == "m_long" and not Path("seen").exists():
                assert time.monotonic() < deadline, "the test has not seen the progress"
                on_progress(model, done, 100_000)
                done += 1
                time.sleep(0.2)
        Path(f"trained_{model}.txt").write_text(os.environ["ACTIONZOO_FLOW_RUN_URL"])

    def evaluate():
        path = Path("metrics/demo/evaluate", model, "test.json")
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps({"top1": 0.25, "top5": 1.0, "protocol": "2x1", "clips": 8}))

    def report():
        out = Path("report/demo")
        out.mkdir(parents=True, exist_ok=True)
        row = "| [m_long](<zoo.html#m_long>) | ResNet50 \\\\| x | **25.00**\\u2020 | [ckpt](<https://example.org/x.pth>) / [ours](<../../runs/demo/m_long/best.pth>) |"
        (out / "zoo.md").write_text(f"# Model zoo on demo\\n\\n> **This is not Kinetics-400.**\\n\\n| config | backbone | top1 | ckpt |\\n| --- | --- | --- | --- |\\n{row}\\n")
        (out / "zoo.html").write_text("<h1>the zoo</h1>")

    def bad():
        print("resizing", flush=True)
        raise UserError("https://me:pass-word@host is full ```<img src=x>; free some space | and start again")

    with stage(name):
        {"train": train, "evaluate": evaluate, "report": report, "bad": bad}[name]()
    """  # noqa: E501


@pytest.fixture(scope="module")
def client(with_server) -> httpx.Client:
    auth = tuple(with_server["PREFECT_API_AUTH_STRING"].split(":"))
    with httpx.Client(base_url=with_server["PREFECT_API_URL"], auth=auth, timeout=60) as client:
        yield client


def artifacts(client: httpx.Client, **wanted: str) -> list[dict]:
    """The newest first."""
    kept = client.post("/artifacts/filter", json={"sort": "CREATED_DESC", "limit": 100}).json()
    return [each for each in kept if all(each[name] == value for name, value in wanted.items())]


def run_flow(checkout: Path, environment: dict[str, str], *targets: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "flows.pipeline", "--cpu-slots", "4", *targets],
        cwd=checkout,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.fixture(scope="module")
def built(checkout, with_server, client) -> tuple[str, dict]:
    """The page of a build of everything, and the progress of a stage while it ran."""
    make_repository_in(checkout, GRAPH)
    (checkout / "stage.py").write_text(textwrap.dedent(STAGE))
    (checkout / "params.yaml").write_text("data:\n  name: demo\n")
    flow = run_flow(checkout, with_server)
    try:
        processes.wait_for(lambda: artifacts(client, type="progress") or flow.poll() is not None, 240)
        (seen,) = artifacts(client, type="progress")
        (checkout / "seen").touch()
        output = flow.communicate(timeout=240)[0]
    finally:
        flow.kill()
    pages = artifacts(client, key="zoo-demo-all")
    assert flow.returncode == 1 and pages, output
    return pages[0]["data"], seen


@pytest.fixture(scope="module")
def page(built) -> str:
    return built[0]


def test_a_long_stage_shows_how_far_it_is_while_it_runs(built, client):
    """From the first artifact on: the stage goes on only when the test has seen it."""
    seen = built[1]
    assert 0 < seen["data"] < 1
    assert re.match(r"epoch \d+ of 10,000(, .+ left)?: m_long; ", seen["description"]), seen["description"]
    assert "[train m_long in MLflow](<https://mlflow.example/#/experiments/1/runs/m_long>)" in seen["description"]
    task = client.get(f"/task_runs/{seen['task_run_id']}").json()
    assert task["name"] == "train@m_long"
    (last,) = artifacts(client, type="progress")  # the other stages were short
    assert ", ended: m_long" in last["description"] and " left" not in last["description"]


def test_the_page_says_what_became_of_every_stage(page):
    assert page.startswith("**1 failed, 1 not run, 5 built**, of 7 stages on the data set **demo** in ")
    for stage in ("train@m_long", "train@m_b", "evaluate@m_long", "evaluate@m_b", "report"):
        assert f"| {stage} | built | " in page
    assert "| bad | failed | " in page and "| after | not run |  |  |" in page


def test_a_failure_stands_there_with_its_remedy_and_without_secrets(page, client):
    block = "````\nbad: error: https://***@host is full ```<img src=x>; free some space | and start again\n````"
    assert block in page
    assert "Not run, because they need these: after." in page
    task = client.post("/task_runs/filter", json={"task_runs": {"name": {"any_": ["bad"]}}}).json()[0]
    assert task["state"]["message"] == block.splitlines()[1]


def test_the_zoos_table_is_a_part_of_the_page_and_its_links_lead_somewhere(page, with_server, client):
    files = f"{with_server['PREFECT_API_URL'].removesuffix('/api')}/files"
    assert "## Model zoo on demo" in page and "> **This is not Kinetics-400.**" in page
    zoo = f"{files}/report/demo/zoo.html"
    assert f"| [m_long](<{zoo}#m_long>) | **25.00**† | [ckpt](<https://example.org/x.pth>)" in page
    assert f"[ours](<{files}/runs/demo/m_long/best.pth>)" in page
    assert f"- [zoo.html](<{zoo}>): " in page and "not made by this run" not in page
    assert client.get(zoo).text == "<h1>the zoo</h1>"


def test_the_page_links_to_the_runs_in_mlflow(page):
    assert "- [train m_long in MLflow](<https://mlflow.example/#/experiments/1/runs/m_long>)\n" in page
    local = "- [train m_b in MLflow](<http://127.0.0.1:5000/#/experiments/1/runs/m_b>) (after `make ui`)"
    assert local in page


def test_a_stage_can_record_the_address_of_its_flow_run(built, checkout, with_server):
    server = with_server["PREFECT_API_URL"].removesuffix("/api")
    address = f"{server}/runs/flow-run/{built[1]['flow_run_id']}"
    assert (checkout / "trained_m_b.txt").read_text() == address


def test_without_the_report_the_page_shows_the_accuracies_of_the_run(page, checkout, with_server, client):
    flow = run_flow(checkout, with_server, "evaluate@m_b")
    output = flow.communicate(timeout=240)[0]
    assert flow.returncode == 0, output
    other = artifacts(client, key="zoo-demo-evaluate")[0]
    assert other["description"] == "evaluate on demo: 2 up to date"
    assert "| m_b | 25.00 | 100.00 | 2x1 | 8 | up to date |  |" in other["data"]
    assert "This is not Kinetics-400" in other["data"] and "Model zoo on demo" not in other["data"]
    assert "zoo.html" in other["data"] and "not made by this run" in other["data"]


def test_on_a_server_that_shows_no_files_the_page_names_the_path(checkout, page, with_server, client, monkeypatch):
    """The report of another checkout: the server has no such file."""
    elsewhere = make_repository_in(checkout.with_name("elsewhere"), GRAPH)
    (elsewhere / "params.yaml").write_text("data:\n  name: demo\n")
    (elsewhere / "report" / "demo").mkdir(parents=True)
    (elsewhere / "report" / "demo" / "zoo.html").write_text("<h1>another zoo</h1>")
    (elsewhere / "stage.py").write_text(textwrap.dedent(STAGE))
    flow = run_flow(elsewhere, with_server, "bad")
    output = flow.communicate(timeout=240)[0]
    assert flow.returncode == 1, output
    shown = artifacts(client, key="zoo-demo-bad")[0]["data"]
    assert f"at {elsewhere}/report/demo/zoo.html" in shown and "/files/" not in shown
