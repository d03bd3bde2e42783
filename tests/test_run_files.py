"""Where the files of a run lie, and which logs belong to it."""

import json

import yaml

from actionzoo.run_files import RunFiles, logs_of, make_output_folders, newest_logs
from tests.test_structure import PROJECT


def test_files_lie_where_dvc_yaml_expects_them(tmp_path):
    stages = yaml.safe_load((PROJECT / "dvc.yaml").read_text())["stages"]
    files = RunFiles(tmp_path, "demo", "row")

    def outputs(stage):
        of_stage = stages[stage]["do"]
        for output in [*of_stage["outs"], *of_stage.get("plots", [])]:
            path = output if isinstance(output, str) else next(iter(output))
            yield tmp_path / path.replace("${data.name}", "demo").replace("${key}", "row")

    assert set(outputs("train")) == {
        *(files.best, files.latest, files.recipe, files.history, files.metrics("train").parent),
        *(files.plot(kind).parent for kind in ("loss", "top1")),
    }
    assert set(outputs("evaluate")) == {
        *(files.result, files.views, files.errors, files.metrics("evaluate").parent),
        *(files.plot(kind).parent for kind in ("classes", "confusion", "views")),
    }
    assert set(outputs("benchmark")) == {files.benchmark, files.metrics("benchmark").parent}


def test_every_output_can_be_restored_by_dvc():
    """One output that persists, or is not cached, switches the run cache off for its stage."""
    stages = yaml.safe_load((PROJECT / "dvc.yaml").read_text())["stages"]
    for name, stage in stages.items():
        stage = stage.get("do", stage)
        for output in [*stage["outs"], *stage.get("plots", [])]:
            settings = {} if isinstance(output, str) else next(iter(output.values()))
            assert not {"persist", "cache"} & settings.keys(), name


def test_a_work_dir_takes_all_files(tmp_path):
    files = RunFiles(tmp_path, "demo", "row", tmp_path / "work")
    assert {files.best.parent, files.metrics("train").parent, files.plot("loss").parent} == {tmp_path / "work"}


def test_folders_of_models_that_were_not_built_are_made_and_stay_empty(tmp_path):
    make_output_folders(tmp_path, "demo", ["a", "b"])
    for model in ("a", "b"):
        assert list((tmp_path / "metrics/demo/train" / model).iterdir()) == []
        assert list((tmp_path / "plots/demo/confusion" / model).iterdir()) == []


def test_a_folder_that_dvc_knows_is_left_to_dvc(tmp_path):
    (tmp_path / "dvc.lock").write_text("outs:\n- path: metrics/demo/train/a\n  hash: md5\n")
    make_output_folders(tmp_path, "demo", ["a"])
    assert not (tmp_path / "metrics/demo/train/a").exists() and (tmp_path / "metrics/demo/evaluate/a").is_dir()


def write_log(run, stamp, fingerprint=None):
    run.mkdir(exist_ok=True)
    (run / f"{stamp}.log").write_text("")
    first = {"seed": 0} | ({"fingerprint": fingerprint} if fingerprint else {})
    (run / f"{stamp}.log.json").write_text(json.dumps(first) + "\n{}\n")


def test_logs_are_those_of_the_training_that_is_there(tmp_path):
    run = tmp_path / "run"
    write_log(run, "20260101_120000")
    write_log(run, "20260102_120000", "mine")
    write_log(run, "20260103_120000", "another's")
    assert [path.name for path in logs_of(run, "mine")] == ["20260102_120000.log.json"]
    assert {kind: path.name for kind, path in newest_logs(run, "mine").items()} == {
        "json": "20260102_120000.log.json",
        "log": "20260102_120000.log",
    }


def test_logs_of_older_versions_are_those_of_their_trainings_alone(tmp_path):
    run = tmp_path / "run"
    write_log(run, "20260101_120000")
    write_log(run, "20260103_120000", "another's")
    assert [path.name for path in logs_of(run, "")] == ["20260101_120000.log.json"]
    assert logs_of(run, "mine") == []


def test_logs_of_an_experiment_outlive_its_temporary_folder(tmp_path):
    files = RunFiles(tmp_path / ".dvc/tmp/exps/one", "demo", "row", workspace=tmp_path)
    assert files.logs == RunFiles(tmp_path, "demo", "row").run


def test_without_a_log_there_is_none(tmp_path):
    (tmp_path / "zzz.log.json").write_text("no log of a training")
    assert newest_logs(tmp_path, "mine") == {}
