"""The whole chain by real DVC, in a workspace of its own: small sizes, real networks, nothing replaced."""

import copy
import csv
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from actionzoo.kinetics.labels import kinetics400
from actionzoo.kinetics.manifest import count_states, label_map, read_manifest
from actionzoo.kinetics.serve import serve
from actionzoo.params import load_params
from actionzoo.run_files import RunFiles
from actionzoo.zoo import build_model

PROJECT = Path(__file__).resolve().parents[1]
SLOWFAST = "slowfast_r50_video_4x16x1_256e_kinetics400_rgb"
CSN = "ircsn_bnfrozen_r50_32x2x1_180e_kinetics400_rgb"
MINI = PROJECT.parent / "shared" / "k400-mini"

pytestmark = pytest.mark.slow


class Workspace:
    """A checkout without history, with a params.yaml of its own."""

    def __init__(self, root: Path, **environment: str):
        self.root = root
        root.mkdir(parents=True)
        for name in ("stages", "flows", "reproduction", ".dvc"):
            keep = shutil.ignore_patterns("__pycache__", "tmp", "cache", "dvc.lock", "results", "metrics", "report")
            shutil.copytree(PROJECT / name, root / name, ignore=keep)
        for name in ("dvc.yaml", ".dvcignore", ".gitignore", "prefect.yaml"):
            shutil.copy(PROJECT / name, root / name)
        self.params = yaml.safe_load((PROJECT / "params.yaml").read_text())
        self.params["recipes"] = {row: self.params["recipes"][row] for row in (SLOWFAST, CSN)}
        self.published = yaml.safe_load((PROJECT / "published.yaml").read_text())
        self.environment = {
            **os.environ,
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
            "PREFECT_HOME": str(root / ".prefect"),
            "PYTHONUNBUFFERED": "1",
            **environment,
        }
        for name in ("MLFLOW_TRACKING_URI", "ACTIONZOO_SOURCE", "PREFECT_API_URL"):
            if name not in environment:
                self.environment.pop(name, None)
        subprocess.run(["git", "init", "-q", root], check=True)
        self.save()

    def save(self) -> None:
        (self.root / "params.yaml").write_text(yaml.safe_dump(self.params, sort_keys=False))
        (self.root / "published.yaml").write_text(yaml.safe_dump(self.published, sort_keys=False))

    def run(self, *command: str, succeeds: bool = True) -> str:
        done = subprocess.run(
            [sys.executable, "-m", *command], cwd=self.root, env=self.environment, text=True, check=False,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT)  # fmt: skip
        assert (done.returncode == 0) == succeeds, done.stdout[-5000:]
        return done.stdout

    def repro(self, *targets: str) -> tuple[list[str], str]:
        """The stages that ran, and all that was printed."""
        printed = self.run("dvc", "repro", *targets)
        return re.findall(r"Running stage '(.+)'", printed), printed


def small(params: dict) -> None:
    """Sizes at which two rows take a minute: networks and code stay what they are."""
    params["datasets"]["demo"]["synthetic"] |= {"train_clips": 3, "val_clips": 2, "test_clips": 1, "parts": 1}
    params["datasets"]["demo"]["max_bad_share"] = 0.2
    for family in ("slowfast", "csn"):
        params["datasets"]["demo"]["overrides"][family]["schedule"] |= {"epochs": 1, "log_interval": 1}
    for row in (SLOWFAST, CSN):
        del params["datasets"]["demo"]["overrides"][row]


def a_rope_in_every_clip(workspace: Workspace) -> Path:
    """Weights of Kinetics-400's classes that give every clip the same one."""
    model = build_model(load_params(workspace.root / "params.yaml").recipes[SLOWFAST].model, 400)
    with torch.no_grad():
        model.cls_head.fc_cls.weight.zero_()
        model.cls_head.fc_cls.bias.zero_()[kinetics400().index("climbing a rope")] = 1
    return saved(workspace.root.parent, "slowfast", {"meta": {"epoch": 256}, "state_dict": model.state_dict()})


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    workspace = Workspace(tmp_path_factory.mktemp("demo") / "actionzoo")
    small(workspace.params)
    workspace.released = a_rope_in_every_clip(workspace)
    workspace.published[SLOWFAST]["ckpt"] = str(workspace.released)
    workspace.save()
    workspace.first = workspace.repro()
    return workspace


def test_dvc_repro_builds_every_stage_down_to_the_report(demo):
    ran, printed = demo.first
    stages = ["settings", "download", "resize@256", "resize@320", "frames@256", "frames@320", "report"]
    stages += [f"{stage}@{row}" for stage in ("train", "evaluate", "benchmark") for row in (SLOWFAST, CSN)]
    assert sorted(ran) == sorted(stages), printed[-3000:]
    for row in (SLOWFAST, CSN):
        assert {path.name for path in (demo.root / "runs/demo" / row).glob("*.pth")} == {"best.pth", "latest.pth"}
    assert sorted(path.name for path in (demo.root / "report/demo").iterdir()) == [
        "runs.js", "zoo.html", "zoo.json", "zoo.md", "zoo.zh.md"]  # fmt: skip


def test_a_second_dvc_repro_runs_nothing_and_the_status_is_clean(demo):
    ran, _ = demo.repro()
    assert ran == []
    assert "up to date" in demo.run("dvc", "status")


def test_published_weights_are_tested_by_a_graph_of_their_own(demo):
    demo.run("dvc", "--cd", "reproduction", "repro", f"evaluate@{SLOWFAST}")
    made = yaml.safe_load((demo.root / "reproduction/results/demo" / SLOWFAST / "reproduction.json").read_text())[
        "ckpt"
    ]
    result = yaml.safe_load((demo.root / "runs/demo" / SLOWFAST / "result.json").read_text())
    clips = list(result["clips"].values())
    assert made["verdict"] == "different data" and made["clips"] == len(clips) and made["published_top1"] == 73.95
    label = label_map(read_manifest(demo.root / "data/demo/videos_256/manifest.csv")).index("climbing a rope")
    assert made["top1"] == sum(clip["label"] == label for clip in clips) / len(clips) > 0
    assert made["top1_low"] < made["top1"] < made["top1_high"]
    assert made["file"] == demo.released.name and made["sha256"][:8] == demo.released.stem[-8:]

    assert "didn't change" in demo.run("dvc", "--cd", "reproduction", "repro", f"evaluate@{SLOWFAST}")
    demo.run("dvc", "--cd", "reproduction", "repro", "-s", "report")
    table = (demo.root / "reproduction/report/demo/reproduction.md").read_text()
    assert "demo is not Kinetics-400" in table and table.count("not run yet") == 1
    assert "up to date" in demo.run("dvc", "status")  # that graph is not this one


def test_metrics_and_plots_show_both_rows(demo):
    table = demo.run("dvc", "metrics", "show")
    assert all(f"{row}/{name}.json" in table for row in (SLOWFAST, CSN) for name in ("train", "test", "speed"))
    assert demo.run("dvc", "plots", "show").strip().endswith(".html")
    assert "evaluate@" in demo.run("dvc", "dag", "--mermaid")


def test_mlflow_holds_one_run_per_row_with_curves_logs_and_checkpoints(demo):
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{demo.root / 'mlflow.db'}")
    (experiment,) = [found for found in client.search_experiments() if found.name == "demo"]
    runs = {run.data.tags["model"]: run for run in client.search_runs([experiment.experiment_id])}
    assert sorted(runs) == sorted([SLOWFAST, CSN])
    for row, run in runs.items():
        assert run.info.status == "FINISHED"
        assert {"train/loss", "val/top1", "test/top1:2x1"} <= run.data.metrics.keys()
        assert run.data.params["optim.lr"] == str(demo.params["recipes"][row]["optim"]["lr"])
        files = [artifact.path for artifact in client.list_artifacts(run.info.run_id)]
        assert {"best.pth", "latest.pth", "result.json"} <= set(files)
        assert any(name.endswith(".log") for name in files) and any(name.endswith(".log.json") for name in files)
        analysis = {Path(artifact.path).name for artifact in client.list_artifacts(run.info.run_id, "error_analysis")}
        assert {"classes.csv", "confusion.csv", "errors.json", "confusion.svg"} <= analysis
        with open(demo.root / "plots/demo/classes" / row / "classes.csv", newline="") as file:
            right = sum(int(line["right"]) for line in csv.DictReader(file))
        tested = json.loads((demo.root / "runs/demo" / row / "result.json").read_text())["metrics"]
        assert right == round(tested["top1"] * tested["clips"])


def test_every_row_has_its_plots_in_dvc(demo):
    printed = demo.run("dvc", "plots", "show", "--json")
    plots, _ = json.JSONDecoder().raw_decode(printed[printed.index('{"data"') :])
    plots = plots["data"]
    for row in (SLOWFAST, CSN):
        for kind in ("loss", "top1", "classes", "confusion", "views"):
            (name,) = [name for name in plots if name.endswith(f"plots/demo/{kind}/{row}/{kind}.csv")]
            assert plots[name], name


def test_the_report_leads_to_the_runs_and_shows_where_the_rows_err(demo):
    page = (demo.root / "report/demo/zoo.html").read_text()
    links = (demo.root / "report/demo/runs.js").read_text()
    assert links.count("http://127.0.0.1:5000/#/experiments/") == 2 and "127.0.0.1:5000/#" not in page
    assert page.count('class="confusion"') == 2 and "Worst clips" in page


def test_the_flow_finds_everything_up_to_date_without_a_server(demo):
    printed = demo.run("flows.pipeline", f"evaluate@{SLOWFAST}")
    assert f"evaluate@{SLOWFAST} is up to date" in printed


def test_switching_the_data_set_there_and_back_repeats_no_training_and_loses_no_file(demo):
    demo.params["datasets"]["other"] = {**demo.params["datasets"]["demo"]}
    demo.params["datasets"]["other"]["synthetic"] = {**demo.params["datasets"]["demo"]["synthetic"], "seed": 1}
    before = contents(demo.root)
    made = [*demo.root.glob("data/demo/*/*/*.tar"), *demo.root.glob("runs/demo/*/*.pth")]
    times = {path: path.stat().st_mtime_ns for path in made}

    demo.params["data"]["name"] = "other"
    demo.save()
    ran, _ = demo.repro(f"evaluate@{SLOWFAST}")
    assert f"train@{SLOWFAST}" in ran
    assert (demo.root / "runs/other" / SLOWFAST / "best.pth").is_file()

    demo.params["data"]["name"] = "demo"
    demo.save()
    _, printed = demo.repro()
    assert f"Stage 'train@{SLOWFAST}' is cached - skipping run" in printed
    assert "Epoch [" not in printed
    assert contents(demo.root) == before
    assert {path: path.stat().st_mtime_ns for path in made} == times
    assert "up to date" in demo.run("dvc", "status")


def contents(root: Path) -> dict[Path, str]:
    paths = [path for kind in ("data", "runs", "metrics", "plots") for path in (root / kind / "demo").rglob("*")]
    return {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths if path.is_file()}


def without_clocks(log: Path) -> list[dict]:
    clocks = ("time", "data_time", "work_dir", "env_info")
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    return [{key: line[key] for key in line if key not in clocks} for line in lines]


def test_a_training_killed_again_and_again_leaves_the_files_of_an_undisturbed_one(demo, tmp_path):
    """Weights, curves and log.json; the loop alone is killed ten times in tests/engine/test_train.py."""
    before = demo.params["datasets"]["demo"]["overrides"]["slowfast"], demo.params["runtime"]
    slowfast = copy.deepcopy(before[0])
    slowfast["optim"]["videos_per_gpu"], slowfast["schedule"]["epochs"] = 4, 2
    demo.params["datasets"]["demo"]["overrides"]["slowfast"] = slowfast
    demo.params["runtime"] = {**before[1], "save_minutes": 0.0001, "deterministic": True}
    demo.save()
    try:
        demo.run("actionzoo.cli", "train", SLOWFAST, "--work-dir", str(tmp_path), "--validate")
        files, finished = RunFiles(demo.root, "demo", SLOWFAST), set(demo.root.glob("runs/demo/*/*.log.json"))
        printed = [
            killed(demo, "Epoch [1][2/3]", everything=False),
            killed(demo, "Epoch [2][2/3]", everything=True),
            demo.repro(f"train@{SLOWFAST}")[1],
        ]
    finally:
        demo.params["datasets"]["demo"]["overrides"]["slowfast"], demo.params["runtime"] = before
        demo.save()
    assert ["resuming an interrupted training" in text for text in printed] == [False, True, True]
    assert "after epoch 1" in printed[-1] and "Epoch [1]" not in printed[-1]
    (log,), (other,) = tmp_path.glob("*.log.json"), set(files.run.glob("*.log.json")) - finished
    assert without_clocks(other) == without_clocks(log)
    for path in (files.best, files.latest, files.plot("loss"), files.plot("top1"), files.metrics("train")):
        assert path.read_bytes() == (tmp_path / path.name).read_bytes(), path.name


def killed(demo, line: str, *, everything: bool) -> str:
    """What DVC and its training print until that line, and SIGKILL: for DVC, with which its stage ends, or for all."""
    with subprocess.Popen(
        [sys.executable, "-m", "dvc", "repro", f"train@{SLOWFAST}"], cwd=demo.root, env=demo.environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True) as process:  # fmt: skip
        printed = ""
        for text in process.stdout:
            printed += text
            if text.startswith(line):
                break
        else:
            raise AssertionError(printed[-3000:])
        (os.killpg if everything else os.kill)(process.pid, signal.SIGKILL)
        return printed + process.stdout.read()  # which ends with the last process


def test_two_processes_train_and_test_a_row_together(demo):
    """Started by the stages themselves; one log, one run in MLflow, every clip tested once."""
    from mlflow import MlflowClient

    before = demo.params["runtime"]
    demo.params["runtime"] = before | {"gpus": 2}
    optim = demo.params["datasets"]["demo"]["overrides"]["slowfast"]["optim"]
    optim |= {"videos_per_gpu": 3, "batch_norm": "sync"}
    demo.save()
    try:
        ran, printed = demo.repro(f"evaluate@{SLOWFAST}")
        assert {f"train@{SLOWFAST}", f"evaluate@{SLOWFAST}"} <= set(ran)
        assert "batch      6 = 2 processes x 3 videos x 1 accumulated" in printed and "2 x cpu" in printed
    finally:
        demo.params["runtime"] = before
        del optim["videos_per_gpu"], optim["batch_norm"]
        demo.save()
    result = json.loads((demo.root / "runs/demo" / SLOWFAST / "result.json").read_text())
    assert len(result["clips"]) == result["metrics"]["clips"] == result["metrics"]["listed"]
    client = MlflowClient(f"sqlite:///{demo.root / 'mlflow.db'}")
    (experiment,) = [found for found in client.search_experiments() if found.name == "demo"]
    runs = client.search_runs([experiment.experiment_id], f"tags.model = '{SLOWFAST}'")
    md5 = hashlib.md5((demo.root / "runs/demo" / SLOWFAST / "best.pth").read_bytes()).hexdigest()
    (run,) = [run for run in runs if run.data.tags.get("checkpoint.md5") == md5]
    logs = [file.path for file in client.list_artifacts(run.info.run_id) if file.path.endswith(".log.json")]
    assert len(logs) == 1 and run.data.metrics["train/loss"] > 0


def test_unknown_rows_keys_and_data_sets_are_told_in_a_sentence(demo):
    written = (demo.root / "params.yaml").read_text()
    try:
        for find, put, said in [
            ("name: demo", "name: dmeo", "data.name is 'dmeo'.*did you mean demo"),
            ("frame_interval:", "frame_intervall:", "frame_intervall is unknown; did you mean frame_interval"),
            ("momentum: 0.9", "momentum: high", "momentum is 'high'"),
        ]:
            (demo.root / "params.yaml").write_text(written.replace(find, put))
            printed = demo.run("actionzoo.cli", "params", succeeds=False)
            assert re.search(said, printed) and "Traceback" not in printed
    finally:
        (demo.root / "params.yaml").write_text(written)
    printed = demo.run("actionzoo.cli", "params", SLOWFAST.replace("video", "vidoe"), succeeds=False)
    assert f"did you mean {SLOWFAST}" in printed and "Traceback" not in printed


def test_a_training_starts_from_the_weights_that_its_recipe_names(demo, tmp_path):
    model = build_model(load_params(demo.root / "params.yaml").recipes[CSN].model, 4)
    state = {name.removeprefix("backbone."): tensor for name, tensor in model.state_dict().items() if "fc" not in name}
    path = saved(tmp_path, "ircsn_from_scratch_r50", {"state_dict": state})
    init = demo.params["datasets"]["demo"]["overrides"]["csn"]["init"]
    with serve(tmp_path) as url:
        init["weights"] = f"{url}/{path.name}"
        demo.save()
        ran, printed = demo.repro(f"train@{CSN}")
    assert f"train@{CSN}" in ran and "backbone weights" in printed
    assert f"matched    {len(state)} of" in printed and "head       fresh, for 4 classes" in printed
    record = json.loads((demo.root / "runs/demo" / CSN / "recipe.json").read_text())
    assert record["init_sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()

    init["weights"] = str(tmp_path / "nowhere.pth")
    demo.save()
    printed = demo.run("dvc", "repro", f"train@{CSN}", succeeds=False)
    assert f"recipes.{CSN}.init.weights" in printed and "nowhere.pth is no file" in printed
    init["weights"] = None
    demo.save()


def saved(folder: Path, name: str, content: dict) -> Path:
    """A checkpoint with its hash in its name, as they are published."""
    torch.save(content, folder / name)
    digest = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    return (folder / name).rename(folder / f"{name}_20200826-{digest[:8]}.pth")


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    if not MINI.is_dir():
        pytest.skip(f"no real footage: {MINI.name} is not in the folder shared beside the checkout")
    with serve(MINI) as url:
        workspace = Workspace(tmp_path_factory.mktemp("real") / "actionzoo", ACTIONZOO_SOURCE=url)
        small(workspace.params)
        # the parts that hold eight of its clips of train and six of val: other clips are missing
        workspace.params["data"]["name"] = "mirror"
        workspace.params["datasets"]["mirror"] |= {"splits": ["train", "val"], "parts": "0", "max_bad_share": 0.8}
        workspace.save()
        workspace.repro(f"evaluate@{SLOWFAST}", f"evaluate@{CSN}")
        yield workspace


def test_real_video_runs_from_archives_to_results_for_both_rows(real):
    for row in (SLOWFAST, CSN):
        result = yaml.safe_load((real.root / "runs/mirror" / row / "result.json").read_text())
        assert len(result["clips"]) == result["metrics"]["clips"] == 6 and result["metrics"]["listed"] == 12
        assert all(abs(sum(clip["scores"]) - 1) < 1e-4 for clip in result["clips"].values())


@pytest.mark.parametrize("form", ["videos_256", "frames_320"])
def test_what_the_real_mirror_lacks_is_in_the_manifest_with_its_reason(real, form):
    """All its flaws: tests/kinetics/test_resize.py."""
    clips = read_manifest(real.root / "data/mirror" / form / "manifest.csv")
    by_id = {clip.video_id[:11]: clip for clip in clips}
    assert by_id["0Hfz6CHyh9t"].state == "replaced" and by_id["0Hfz6CHyh9t"].reason
    assert by_id["5_4HeUgqvfS"].state == by_id["AAAAAAAAAAA"].state == "missing"
    counts = count_states(clips)
    assert {split: sum(states.values()) for split, states in counts.items()} == {"train": 33, "val": 12}
    assert (counts["train"]["ok"], counts["val"]["ok"]) == (7, 6)
