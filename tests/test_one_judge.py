"""DVC and the fingerprints agree on what makes a training or an evaluation another one, for every value of params.yaml.

DVC judges by the params that the shipped dvc.yaml names for a stage, the fingerprint by what a Job holds.
"""

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import actionzoo.job
from actionzoo.errors import UserError
from actionzoo.job import Job
from actionzoo.jobs.settings import settings_of
from actionzoo.kinetics.manifest import Manifest
from actionzoo.params import Params, load_params
from actionzoo.params import read as params_module

PROJECT = Path(__file__).resolve().parents[1]
CSN = "ircsn_ig65m_pretrained_bnfrozen_r50_32x2x1_58e_kinetics400_rgb"
VIDEO = "slowfast_r50_video_4x16x1_256e_kinetics400_rgb"
MODELS = [CSN, VIDEO]
GRAPH = yaml.safe_load((PROJECT / "dvc.yaml").read_text())["stages"]
STAGES = ["train", "evaluate"]


@pytest.fixture
def raw(monkeypatch, tmp_path) -> dict[str, Any]:
    """The values of params.yaml, with a published list for each data set; both files are read once."""
    files = {name: yaml.safe_load((PROJECT / name).read_text()) for name in ("params.yaml", "published.yaml")}
    for dataset in files["params.yaml"]["datasets"].values():
        dataset["published_lists"] = {split: {"list": "a.txt", "label_map": "b.txt"} for split in ("val", "test")}
    monkeypatch.setattr(params_module, "read_yaml", lambda path, remedy: copy.deepcopy(files[path.name]))
    monkeypatch.delenv("ACTIONZOO_SOURCE", raising=False)

    def fetch_list(address: str, *_) -> Path:
        (tmp_path / address).write_text(address)
        return tmp_path / address

    monkeypatch.setattr(actionzoo.job, "fetch_list", fetch_list)
    return files["params.yaml"]


def leaves(values: dict[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, (*path, key))
        else:
            yield (*path, key)


def at(values: Any, path: tuple[str, ...]) -> Any:
    for key in path:
        values = values[key]
    return values


def others(value: Any) -> Iterator[Any]:
    """Values of which one may stand in the place of this one."""
    match value:
        case bool():
            yield not value
        case int():
            yield from (value + 1, value - 1, 50, 101, 152, 256, 320, 3, 1)
        case float():
            yield from (value / 2, value + 0.25)
        case str():
            yield from (
                "sync",
                "upload",
                "fp16",
                "ip",
                "frames",
                "videos",
                "score",
                "medium",
                "film",
                "cpu",
                "0",
                "kinetics400",
                3,
                "c.txt",
            )
        case [str(), *_]:
            yield value[:1]
        case [first, *rest]:
            yield from ([other, *rest] for other in others(first))
        case None:
            yield from ("c.pth", "tcp://10.0.0.1:8786")
        case dict():  # overrides: {}
            yield {VIDEO: {"schedule": {"epochs": 5}, "test": {"num_clips": 3}}}


def judgements(raw: dict[str, Any], params: Params) -> dict[tuple[str, str], tuple[Any, str]]:
    """Stage and model -> what DVC compares, and the fingerprint."""
    settings, made = settings_of(params), {}
    for model in MODELS:
        job = Job.of(params, model)
        vars(job)["manifest"] = Manifest((), Path("manifest.csv"), "m", None)
        for stage in STAGES:
            seen = []
            for entry in GRAPH[stage]["do"]["params"]:
                keys = entry["data/${data.name}/settings.yaml"] if isinstance(entry, dict) else [entry]
                source = settings if isinstance(entry, dict) else raw
                seen += [at(source, tuple(key.replace("${key}", model).split("."))) for key in keys]
            fingerprint = job.training_fingerprint() if stage == "train" else job.evaluation_fingerprint("5a")
            made[stage, model] = copy.deepcopy(seen), fingerprint
    return made


@pytest.mark.parametrize("dataset", ["demo", "kinetics400"])
def test_a_value_makes_a_stage_stale_if_and_only_if_it_changes_the_fingerprint(raw, dataset):
    raw["data"]["name"] = dataset
    before, without_another, changed = judgements(raw, load_params(PROJECT / "params.yaml")), [], {}
    # data.name is of other clips; the values of other models are tried by the data set's overrides
    paths = [path for path in leaves(raw) if path[0] != "data" and (path[0] != "recipes" or path[1] in MODELS)]
    for path in paths:
        section, value = at(raw, path[:-1]), at(raw, path)
        for other in (other for other in others(value) if other != value):
            section[path[-1]] = other
            try:
                params = load_params(PROJECT / "params.yaml")
                break
            except UserError:
                section[path[-1]] = value
        else:
            without_another.append(path[-1])
            continue
        after = judgements(raw, params)
        section[path[-1]] = value
        for key, (seen, fingerprint) in after.items():
            is_stale, is_other = seen != before[key][0], fingerprint != before[key][1]
            assert is_stale == is_other, (path, key)
            if is_stale:
                changed.setdefault(key, set()).add(path)
    assert set(without_another) == {"family", "policy"}  # others have other keys
    for (stage, model), by in changed.items():
        sections = {"train": {"init", "optim", "schedule"}, "evaluate": {"test"}}[stage] | {"model", "clips", "augment"}
        of_recipe = {path for path in paths if path[:2] == ("recipes", model) and path[2] in sections | {"seed"}}
        assert by - of_recipe <= {path for path in paths if path[0] == "datasets" and path[1] == dataset}
        missing = of_recipe - by - {path for path in of_recipe if path[-1] in without_another}
        assert missing == (set() if stage == "train" else {("recipes", model, "seed")})
    assert len(changed) == 4 and len(paths) > 150
