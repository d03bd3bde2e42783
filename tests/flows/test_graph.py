import subprocess
import sys

import pytest

from actionzoo.errors import UserError
from flows.graph import Stage, ask_dvc, read_graph

TWO_ROWS = """
    stages:
      resize:
        cmd: cp in.txt resized.txt
        deps: [in.txt]
        outs: [resized.txt]
      train:
        foreach: {a: {gpus: 1}, b: {gpus: 4}}
        do:
          cmd: cp resized.txt trained_${key}.txt
          deps: [resized.txt]
          outs: ["trained_${key}.txt"]
          meta: {gpus: "${item.gpus}"}
      evaluate:
        foreach: [a, b]
        do:
          cmd: cp trained_${item}.txt top1_${item}.txt
          deps: ["trained_${item}.txt"]
          outs: ["top1_${item}.txt"]
      report:
        cmd: cat top1_a.txt top1_b.txt > report.txt
        deps: [top1_a.txt, top1_b.txt]
        outs: [report.txt]
    """


@pytest.fixture
def two_rows(make_repository, monkeypatch):
    repository = make_repository(TWO_ROWS)
    monkeypatch.chdir(repository)
    return repository


def test_a_target_brings_what_it_needs_and_nothing_else(two_rows):
    root, stages = read_graph(["evaluate@b"])
    assert root == two_rows
    assert stages == [
        Stage("resize", gpus=0, needs=()),
        Stage("train@b", gpus=4, needs=("resize",)),
        Stage("evaluate@b", gpus=0, needs=("train@b",)),
    ]


def test_all_stages_come_after_what_they_need(two_rows):
    _, stages = read_graph()
    names = [stage.name for stage in stages]
    assert sorted(names) == ["evaluate@a", "evaluate@b", "report", "resize", "train@a", "train@b"]
    assert all(names.index(needed) < names.index(stage.name) for stage in stages for needed in stage.needs)


def test_the_name_of_a_group_means_all_its_stages(two_rows):
    _, stages = read_graph(["train"])
    assert {stage.name for stage in stages} == {"resize", "train@a", "train@b"}


def test_a_misspelt_target_is_told_with_what_may_be_meant(two_rows):
    with pytest.raises(UserError, match=r"dvc.yaml has no stage evalute@a; did you mean evaluate@a"):
        read_graph(["evalute@a"])
    with pytest.raises(UserError, match="did you mean report"):
        read_graph(["reprot"])


def test_gpus_that_are_no_number_are_told(make_repository, monkeypatch):
    monkeypatch.chdir(
        make_repository("stages: {train: {cmd: cp in.txt out.txt, deps: [in.txt], outs: [out.txt], meta: {gpus: two}}}")
    )
    with pytest.raises(UserError, match=r"dvc\.yaml: meta\.gpus of train is 'two'"):
        read_graph()


def test_commands_and_retries_are_read(make_repository, monkeypatch):
    monkeypatch.chdir(
        make_repository(
            """
            stages:
              one: {cmd: [cp in.txt a.txt, cp in.txt b.txt], deps: [in.txt], outs: [a.txt, b.txt], meta: {retries: 3}}
            """
        )
    )
    assert read_graph()[1] == [Stage("one", gpus=0, needs=(), commands=2, retries=3)]


def test_dvc_says_what_has_changed(two_rows):
    subprocess.run([sys.executable, "-m", "dvc", "repro", "-q", "train"], cwd=two_rows, check=True)
    (two_rows / "trained_b.txt").write_text("changed")
    root, stages, changes = ask_dvc(["evaluate@b"])
    assert root == two_rows
    assert [stage.name for stage in stages] == ["resize", "train@b", "evaluate@b"]
    assert (changes["resize"], changes["train@b"]) == (None, '{"changed outs": {"trained_b.txt": "modified"}}')
    assert "evaluate@b" in changes and changes["evaluate@b"] is not None


def test_a_stage_that_another_dvc_builds_counts_as_changed(make_repository, monkeypatch, start, wait_for):
    repository = make_repository(
        "stages: {slow: {cmd: touch begun; sleep 600; cp in.txt out.txt, deps: [in.txt], outs: [out.txt]}}"
    )
    dvc = start([sys.executable, "-m", "dvc", "repro"], cwd=repository)
    wait_for(lambda: (repository / "begun").exists() or dvc.poll() is not None)
    monkeypatch.chdir(repository)
    assert "is busy" in (ask_dvc()[2]["slow"] or "")


def test_a_folder_without_dvc_is_told(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="DVC cannot read its graph here"):
        read_graph()


def test_a_dvc_yaml_that_cannot_be_read_is_told(make_repository, monkeypatch):
    monkeypatch.chdir(make_repository("stages: {train: {outs: [out.txt]}}"))
    with pytest.raises(UserError, match="DVC cannot read its graph here"):
        read_graph()


@pytest.mark.parametrize("key", ["$(touch hacked)", "a; touch hacked", "../a", "a b"])
def test_a_recipe_whose_name_is_a_command_is_refused_before_a_stage_runs(make_repository, monkeypatch, key):
    graph = "stages: {train: {foreach: [KEY], do: {cmd: 'echo ${item} > out.txt', outs: [out.txt]}}}"
    repository = make_repository(graph.replace("KEY", f'"{key}"'))
    monkeypatch.chdir(repository)
    with pytest.raises(UserError, match=r"a key of params\.yaml has letters"):
        read_graph()
    assert not (repository / "hacked").exists()
