"""A test from prepared clips to its files: exact, resumed, refused."""

import dataclasses
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from actionzoo.engine import finished
from actionzoo.engine.checkpoint import save_checkpoint, trained_weights
from actionzoo.engine.distributed import World
from actionzoo.engine.metrics import mean_class_accuracy, top_k_accuracy
from actionzoo.engine.views import read_views
from actionzoo.errors import UserError
from actionzoo.job import Job
from actionzoo.jobs.evaluate import evaluate
from actionzoo.jobs.evaluated_clips import evaluated_clips
from actionzoo.jobs.measure import Request, Subject, measure
from actionzoo.jobs.view_scores import measure as measure_again
from actionzoo.params.settings import PublishedLists
from actionzoo.records import TestResult
from actionzoo.run_files import RunFiles
from actionzoo.zoo import build_model
from tests.processes import in_child
from tests.tiny_network import CLASSES, PROJECT, ROW, TinyNetwork, outcome_of, tiny_params, val_clips, with_manifest

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def root(tiny_project):
    return tiny_project


def test_a_test_says_of_which_clips_its_accuracies_are(root):
    outcome = outcome_of(root, root / "views.safetensors")
    clips = val_clips(root)
    usable = [clip for clip in clips if clip.is_usable]
    metrics, views = outcome.result.metrics.counts(), outcome.views
    assert metrics["clips"] == len(usable) == len(views.video_ids) and metrics["protocol"] == "2x1"
    assert metrics["listed"] == sum(clip.is_listed for clip in clips) > len(usable)
    assert metrics["missing"] == metrics["listed"] - len(usable) and metrics["undecodable"] == 0
    assert views.video_ids == [clip.video_id for clip in usable] and views.labels.tolist() == [c.label for c in usable]
    assert views.logits.shape == (len(usable), 2, 4) and views.about["list_sha256"] == metrics["list_sha256"]
    assert metrics["top1_low"] <= metrics["top1"] <= metrics["top1_high"]
    assert metrics["top1"] == top_k_accuracy(outcome.scores, views.labels, (1,))[0]
    assert metrics["mean_class"] == mean_class_accuracy(outcome.scores, views.labels)
    assert metrics["top5"] == 1.0 and torch.allclose(outcome.scores.sum(1), torch.ones(len(usable)))


def test_the_result_has_each_clip_once_by_its_id_and_its_head_in_the_first_line(root):
    outcome = outcome_of(root, root / "views.safetensors")
    outcome.write(root / "result.json")
    made = json.loads((root / "result.json").read_text())
    clips = made.pop("clips")
    assert list(clips) == outcome.views.video_ids and TestResult.read(root / "result.json") == outcome.result
    assert [clip["scores"] for clip in clips.values()] == outcome.scores.tolist()
    assert [clip["label"] for clip in clips.values()] == outcome.views.labels.tolist()
    assert made["metrics"]["top1"] == outcome.result.metrics.counts()["top1"]


def test_without_an_average_every_view_has_its_scores_and_there_is_no_accuracy(root):
    outcome = outcome_of(root, root / "views.safetensors", average_clips="none")
    assert outcome.scores is None and "top1" not in outcome.result.metrics.counts()
    outcome.write(root / "result.json")
    clips = json.loads((root / "result.json").read_text())["clips"]
    assert [clip["scores"] for clip in clips.values()] == outcome.views.logits.tolist()


@pytest.mark.parametrize("max_views", [1, 2, 7, 100])
def test_results_do_not_depend_on_how_many_views_pass_at_once(root, max_views):
    many = outcome_of(root, root / "many", params=tiny_params(max_views=max_views))
    few = outcome_of(root, root / "few", params=tiny_params(max_views=3))
    assert many.views.video_ids == few.views.video_ids
    torch.testing.assert_close(many.views.logits, few.views.logits)


def test_several_videos_pass_together_where_they_have_few_views(root):
    passes = []
    outcome_of(root, root / "views", on_pass=passes.append, params=tiny_params(max_views=4))
    usable = [clip for clip in val_clips(root) if clip.is_usable]
    assert len(passes) == -(-len(usable) // 2)  # two views each


def test_killed_again_and_again_it_goes_on_and_ends_with_the_same_bytes(root, monkeypatch):
    """SIGKILL at every second pass; each start does two more clips, and none again."""
    params = tiny_params(max_views=2)
    whole = outcome_of(root, root / "whole", params=params)
    shutil.rmtree(whole.scratch)
    monkeypatch.setattr(finished, "SAVE_CLIPS", 1)

    def die(number):
        if number == 3:
            os.kill(os.getpid(), signal.SIGKILL)

    starts = 0
    while in_child(lambda: (outcome_of(root, root / "cut", on_pass=die, params=params), os._exit(0))):
        starts += 1
        assert len(list(whole.scratch.glob("part-*"))) == 2 * starts
        assert not (root / "cut").exists()
    assert starts == (len(whole.views.video_ids) - 1) // 2 > 1
    shutil.rmtree(whole.scratch)
    assert (root / "cut").read_bytes() == (root / "whole").read_bytes()


def test_what_is_finished_is_not_looked_at_again(root):
    outcome_of(root, root / "first")
    passes = []
    outcome_of(root, root / "second", on_pass=passes.append)
    assert passes == [] and (root / "first").read_bytes() == (root / "second").read_bytes()


def test_another_precision_or_chunk_goes_on_with_nothing(root):
    scratches = {outcome_of(root, root / "v", params=tiny_params(max_views=size)).scratch for size in (2, 4)}
    scratches.add(outcome_of(root, root / "v", params=tiny_params(precision="bf16")).scratch)
    assert len(scratches) == 3


def test_sigterm_saves_what_is_finished_and_leaves(root):
    def ask_to_stop(number):
        if number == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    params = tiny_params(max_views=2)
    with pytest.raises(SystemExit) as left:
        outcome_of(root, root / "views", on_pass=ask_to_stop, params=params)
    assert left.value.code == 128 + signal.SIGTERM
    passes = []
    outcome = outcome_of(root, root / "views", on_pass=passes.append, params=params)
    assert len(passes) == len(outcome.views.video_ids) - 2


def test_an_undecodable_clip_is_counted_named_and_tried_again(root):
    usable = [clip for clip in val_clips(root) if clip.is_usable]
    victim = usable[1].video_id

    def harm(clip):  # bytes that are no video
        return dataclasses.replace(clip, offset=clip.offset + 1000, size=2000) if clip.video_id == victim else clip

    harmed = outcome_of(with_manifest(root, harm), root / "harmed")
    metrics = harmed.result.metrics.counts()
    assert (metrics["clips"], metrics["undecodable"]) == (len(usable) - 1, 1)
    assert metrics["clips"] + metrics["missing"] + metrics["undecodable"] == metrics["listed"]
    assert victim in harmed.result.undecodable[0] and victim not in harmed.views.video_ids
    passes = []
    again = outcome_of(root, root / "again", on_pass=passes.append)
    assert passes == [1]  # its group alone
    assert (root / "again").read_bytes() == (root / "harmed").read_bytes() and again.result == harmed.result


def test_a_clip_that_hung_one_process_is_not_tried_by_another_after_a_restart(root):
    whole = outcome_of(root, root / "whole", params=tiny_params(max_views=2))
    victim = whole.views.video_ids[2]
    shutil.rmtree(whole.scratch)
    whole.scratch.mkdir()
    known = {f"val/{victim}": {"reason": f"{victim}: took longer than 120 s", "timeout_seconds": 120.0}}
    (whole.scratch / "quarantine-3.json").write_text(json.dumps(known))
    without = outcome_of(root, root / "without", params=tiny_params(max_views=2))
    assert without.result.undecodable == (f"{victim}: took longer than 120 s",)
    assert without.views.video_ids == [name for name in whole.views.video_ids if name != victim]


def test_scores_that_are_no_numbers_stop_a_test_and_name_the_clip(root):
    def poison(number):
        if number == 2:
            model.layer.weight.data.fill_(float("nan"))

    model = TinyNetwork(poison)
    usable = [clip for clip in val_clips(root) if clip.is_usable]
    job = Job.of(tiny_params(max_views=2), ROW, root)
    subject = Subject(network=model, classes=CLASSES, checkpoint_md5="6b")
    request = Request(
        clips=evaluated_clips(job, "val"), scratch=root / "scratch", average_clips="prob", views=root / "v"
    )
    with pytest.raises(UserError, match=f"^{usable[1].video_id}: scores are NaN"):
        measure(job, subject, request, World())


def test_a_shorter_precision_is_compared_with_fp32_on_the_first_clips(root, capsys):
    outcome = outcome_of(root, root / "views", params=tiny_params(precision="bf16"))
    beside = outcome.result.fp32_comparison
    assert outcome.result.precision == outcome.result.metrics.precision == "bf16"
    assert beside.clips == min(8, len(outcome.views.video_ids))
    exact = outcome_of(root, root / "exact")
    first = slice(0, beside.clips)
    difference = (outcome.scores[first] - exact.scores[first]).abs().max().item()
    assert beside.largest_probability_difference == pytest.approx(difference, rel=1e-3) and difference > 0
    assert (
        f"fp32 comparison: on {beside.clips} clips, bf16 changes" in capsys.readouterr().out
        and exact.result.fp32_comparison is None
    )


def test_labels_may_have_other_numbers_in_the_network(root):
    outcome = outcome_of(root, root / "views", label_mapping=[3, 2, 1, 0])
    usable = [clip for clip in val_clips(root) if clip.is_usable]
    assert outcome.views.labels.tolist() == [3 - clip.label for clip in usable]


def test_a_split_without_labels_has_scores_and_no_accuracies(root):
    def forget(clip):
        return dataclasses.replace(clip, label=-1, class_name="") if clip.split == "val" else clip

    outcome = outcome_of(with_manifest(root, forget), root / "views")
    assert (
        "top1" not in outcome.result.metrics.counts()
        and len(outcome.scores) == outcome.result.metrics.counts()["clips"]
    )
    assert set(outcome.views.labels.tolist()) == {-1}


@pytest.fixture
def trained(root, monkeypatch):
    """A row's finished training, of random weights."""
    shutil.copy(PROJECT / "params.yaml", root)
    shutil.copy(PROJECT / "published.yaml", root)
    monkeypatch.chdir(root)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    torch.manual_seed(0)
    files = RunFiles(root, "demo", ROW)
    save_checkpoint(files.best, trained_weights(build_model(tiny_params().recipes[ROW].model, 4), 3, 0.5))
    return files


def test_an_evaluation_is_written_and_recorded(trained, root):
    from mlflow import MlflowClient

    said = evaluate(Job.of(tiny_params(), ROW, root))
    made = json.loads(trained.result.read_text())
    metrics = made["metrics"]
    assert metrics["epoch"] == 3 and metrics["top5"] == 1
    assert f"top-1 {metrics['top1']:.4f} (95 %: {metrics['top1_low']:.4f}-" in said
    views = read_views(trained.views)
    assert list(made["clips"]) == views.video_ids and made["classes"] == views.classes
    assert made["fingerprint"] == views.about["fingerprint"]
    assert measure_again([trained.views]).metrics.top1 == metrics["top1"]

    client = MlflowClient(f"sqlite:///{root / 'mlflow.db'}")
    (run,) = client.search_runs([client.get_experiment_by_name("demo").experiment_id])
    assert run.data.metrics["test/top1:2x1"] == metrics["top1"]
    assert run.data.metrics["test/top1"] == metrics["top1"] and "test/top1_gap" not in run.data.metrics
    assert run.data.tags["protocol"] == "2x1" and run.data.tags["test.list_sha256"] == metrics["list_sha256"]
    assert "result.json" in {item.path for item in client.list_artifacts(run.info.run_id)}
    page = Path(client.download_artifacts(run.info.run_id, "report.html")).read_text()
    assert "not comparable (on demo)" in page and "Worst clips" in page and "data:image/jpeg;base64" in page
    analysis = {Path(item.path).name for item in client.list_artifacts(run.info.run_id, "error_analysis")}
    assert {"classes.csv", "confusion.csv", "views.csv", "errors.json", "confusion.svg"} <= analysis


def test_the_table_for_dvc_holds_a_few_short_keys(trained, root):
    evaluate(Job.of(tiny_params(), ROW, root))
    metrics = json.loads(trained.result.read_text())["metrics"]
    table = json.loads((root / "metrics/demo/evaluate" / ROW / "test.json").read_text())
    assert list(table) == ["top1", "top5", "protocol", "clips"]
    assert table["top1"] == round(metrics["top1"], 4) and table["clips"] == metrics["clips"]
    assert table["protocol"] == "2x1"


def outputs(files: RunFiles) -> dict[Path, bytes]:
    folders = [files.run, files.root / "metrics", files.root / "plots"]
    paths = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    return {path: path.read_bytes() for path in paths if not path.name.endswith(".run.json")}


def test_an_evaluation_whose_files_dvc_deleted_before_it_had_them_is_published_again(trained, root):
    """DVC deletes outputs before it starts a stage again, also those of a stage that was killed before the commit."""
    evaluate(Job.of(tiny_params(), ROW, root))
    before = outputs(trained)
    for path in before:
        if path != trained.best:
            path.unlink()
    assert "its files were published again" in evaluate(Job.of(tiny_params(), ROW, root))
    assert outputs(trained) == before


def test_an_evaluation_that_dvc_has_in_its_cache_is_done_anew(trained, root):
    """`dvc repro -f` asks for it."""
    evaluate(Job.of(tiny_params(), ROW, root))
    before = outputs(trained)
    for content in before.values():
        md5 = hashlib.md5(content).hexdigest()
        cached = root / ".dvc/cache/files/md5" / md5[:2] / md5[2:]
        cached.parent.mkdir(parents=True, exist_ok=True)
        cached.write_bytes(content)
    assert "published again" not in evaluate(Job.of(tiny_params(), ROW, root))
    assert outputs(trained) == before


@pytest.mark.slow
def test_two_processes_killed_then_one_give_the_bytes_of_one_undisturbed(root):
    whole = outcome_of(root, root / "whole", params=tiny_params(max_views=2))
    shutil.rmtree(whole.scratch)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(PROJECT), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]

    def started(*arguments):
        return subprocess.run(
            [*command, "-m", "tests.tiny_network", str(root), *map(str, arguments)], cwd=PROJECT, env=environment,
            text=True, capture_output=True, check=False)  # fmt: skip

    killed = started(root / "cut", 1)
    assert killed.returncode != 0 and not (root / "cut").exists()
    assert list(whole.scratch.glob("part-*"))
    passes = []
    alone = outcome_of(root, root / "alone", on_pass=passes.append, params=tiny_params(max_views=2))
    assert 0 < len(passes) < len(whole.views.video_ids)
    assert (root / "alone").read_bytes() == (root / "whole").read_bytes() and alone.result == whole.result

    shutil.rmtree(whole.scratch)
    two = started(root / "two")
    assert two.returncode == 0, two.stderr[-3000:]
    assert (root / "two").read_bytes() == (root / "whole").read_bytes()
    assert json.loads((root / "two.json").read_text()) == whole.result.as_json()


def test_a_published_list_says_which_clips_a_test_is_of(tiny_project, tmp_path):
    clips = [clip for clip in val_clips(tiny_project) if clip.is_usable]
    kept = clips[::2]
    list_path = tmp_path / "list.txt"
    list_path.write_text("".join(f"{clip.video_id} {clip.num_frames} {(clip.label + 1) % 4}\n" for clip in kept))
    params = tiny_params()
    lists = {"val": PublishedLists(list=str(list_path))}
    params = dataclasses.replace(params, dataset=dataclasses.replace(params.dataset, published_lists=lists))
    outcome = outcome_of(tiny_project, tmp_path / "views.safetensors", params=params)
    assert outcome.views.video_ids == [clip.video_id for clip in kept]
    assert outcome.views.labels.tolist() == [(clip.label + 1) % 4 for clip in kept]
    metrics = outcome.result.metrics.counts()
    assert (metrics["clips"], metrics["listed"], metrics["missing"]) == (len(kept), len(kept), 0)
    assert metrics["other_label"] == len(outcome.result.published_list.other_label) == len(kept)
    whole = outcome_of(tiny_project, tmp_path / "whole.safetensors").result.metrics.counts()
    assert whole["list_sha256"] != metrics["list_sha256"] and "published_list_sha256" not in whole
