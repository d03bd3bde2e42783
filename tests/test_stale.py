"""Which stages DVC takes for stale after an edit of params.yaml or published.yaml: by real DVC, on the shipped files
with four of their recipes."""

import contextlib
import copy
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from actionzoo.jobs.settings import settings
from actionzoo.params import load_params

PROJECT = Path(__file__).resolve().parents[1]
CSN = "ircsn_bnfrozen_r50_32x2x1_180e_kinetics400_rgb"
VIDEO = "slowfast_r50_video_4x16x1_256e_kinetics400_rgb"
R101 = "slowfast_r101_8x8x1_256e_kinetics400_rgb"
SLOWFAST = [VIDEO, R101]
CSNS = [CSN, "ircsn_ig65m_pretrained_bnfrozen_r50_32x2x1_58e_kinetics400_rgb"]


class Zoo:
    """A project in which every stage is up to date: its outputs are tiny files that DVC has committed."""

    def __init__(self, root: Path, dataset: str):
        self.root = root
        for name in ("dvc.yaml", ".dvcignore", ".gitignore", "published.yaml"):
            shutil.copy(PROJECT / name, root / name)
        self.params = yaml.safe_load((PROJECT / "params.yaml").read_text())
        self.params["recipes"] = {model: self.params["recipes"][model] for model in SLOWFAST + CSNS}
        self.published = yaml.safe_load((PROJECT / "published.yaml").read_text())
        self.params["data"]["name"] = dataset
        for command in (["git", "init", "-q"], ["dvc", "init", "-q"]):
            subprocess.run(command, cwd=root, check=True)
        self.save(self.params, self.published)
        self._commit()

    def save(self, params: dict[str, Any], published: dict[str, Any]) -> None:
        """Write both files, and settings.yaml as the stage of that name would."""
        for name, content in (("params.yaml", params), ("published.yaml", published)):
            (self.root / name).write_text(yaml.safe_dump(content, sort_keys=False, allow_unicode=True))
        settings(load_params(self.root / "params.yaml"))

    def _commit(self) -> None:
        from dvc.repo import Repo

        with contextlib.chdir(self.root), Repo() as repo:
            outs = [Path(out.fs_path) for out in repo.index.outs]
            used = [Path(dep.fs_path) for dep in repo.index.deps]
            for out in outs:
                inside = [path for path in used if out in path.parents]
                files = inside or ([out] if out.suffix else [out / "file"])
                for file in files:
                    file.parent.mkdir(parents=True, exist_ok=True)
                    if not file.exists():
                        file.write_text(str(file.relative_to(self.root)))
            repo.commit(force=True)

    def stale(self, edit: Callable[[dict[str, Any]], object] = len, of_published: Callable = len) -> set[str]:
        """Names of the stages that something they depend on has changed for, after the edit."""
        from dvc.repo import Repo

        params, published = copy.deepcopy(self.params), copy.deepcopy(self.published)
        edit(params)
        of_published(published)
        self.save(params, published)
        with contextlib.chdir(self.root), Repo() as repo:
            status = repo.status()
        self.save(self.params, self.published)
        return {
            name.removeprefix("dvc.yaml:")
            for name, changes in status.items()
            if any("changed deps" in change for change in changes)
        }


@pytest.fixture(scope="module")
def demo(tmp_path_factory, monkeypatch_module):
    return Zoo(tmp_path_factory.mktemp("demo"), "demo")


@pytest.fixture(scope="module")
def mirror(tmp_path_factory, monkeypatch_module):
    return Zoo(tmp_path_factory.mktemp("mirror"), "mirror")


@pytest.fixture(scope="module")
def monkeypatch_module():
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("ACTIONZOO_SOURCE", raising=False)
        yield patch


def of(models: list[str], *stages: str) -> set[str]:
    return {f"{stage}@{model}" for stage in stages for model in models}


def override(dataset: str, key: str, section: str, **values):
    """An edit: values of a section that a data set replaces, for a family or a model."""

    def edit(params):
        overrides = params["datasets"][dataset].setdefault("overrides", {})
        overrides.setdefault(key, {}).setdefault(section, {}).update(values)

    return edit


def test_without_an_edit_nothing_is_stale(demo):
    assert demo.stale() == set()


@pytest.mark.parametrize(
    ("section", "values", "stages"),
    [
        ("init", {"backbone_lr": 0.5}, ["train"]),
        ("init", {"frozen_stages": 1}, ["train", "benchmark"]),
        ("optim", {"max_grad_norm": 11.0}, ["train"]),
        ("optim", {"videos_per_gpu": 6}, ["train", "benchmark"]),
        ("schedule", {"epochs": 12}, ["train"]),
        ("augment", {"flip": 0.0}, ["train", "evaluate", "benchmark"]),
        ("test", {"num_clips": 3}, ["evaluate", "benchmark"]),
    ],
)
def test_an_override_of_one_model_is_of_that_model_and_of_the_stages_that_read_the_section(
    demo, section, values, stages
):
    assert demo.stale(override("demo", CSN, section, **values)) == {"settings", "report"} | of([CSN], *stages)


def test_an_override_of_a_family_is_of_its_models(demo):
    edit = override("demo", "slowfast", "schedule", epochs=3)
    others = [model for model in SLOWFAST if model != VIDEO]  # whose own override of it stays
    assert demo.stale(edit) == {"settings", "report"} | of(others, "train")


def test_a_learning_rate_is_of_the_training_of_its_model(demo):
    edit = lambda params: params["recipes"][VIDEO]["optim"].update(lr=0.2)  # noqa: E731
    assert demo.stale(edit) == {"settings", "report"} | of([VIDEO], "train")


@pytest.mark.parametrize(
    ("path", "value", "stages"),
    [
        ("datasets.demo.max_bad_share", 0.5, {"settings"}),
        ("datasets.demo.demo_recipes", [CSN], {"settings"}),
        ("datasets.kinetics400.source", "https://other.org/kinetics", {"settings"}),
        ("datasets.demo.parts", "0", {"settings", "download"}),
        ("datasets.demo.synthetic.seed", 1, {"settings", "download"}),
        ("datasets.demo.published_lists", {"test": {"list": "a.txt"}}, {"settings"}),
        ("prepare.jpeg.qscale", 3, {"frames@256", "frames@320"}),
        ("prepare.encode.crf", 22, {"resize@256", "resize@320"}),
        ("prepare.min_frames", 2, {"resize@256", "resize@320"}),
        ("runtime.gpus", 8, set()),
        ("runtime.precision", "bf16", set()),
        ("runtime.deterministic", True, set()),
    ],
)
def test_a_setting_is_of_the_stages_that_read_it(demo, path, value, stages):
    def edit(params):
        *sections, key = path.split(".")
        for section in sections:
            params = params[section]
        params[key] = value

    assert demo.stale(edit) == stages


def test_a_published_list_of_val_is_of_all_evaluations(demo):
    edit = lambda params: params["datasets"]["demo"].update(published_lists={"val": {"list": "val.txt"}})  # noqa: E731
    assert demo.stale(edit) == {"settings"} | of(SLOWFAST + CSNS, "evaluate")


def test_a_published_number_is_of_the_report(demo):
    assert demo.stale(of_published=lambda published: published[R101].update(top1=["1.5"])) == {"report"}


def test_a_new_recipe_is_of_its_own_stages(demo):
    edit = lambda params: params["recipes"].update(mine=params["recipes"][CSN])  # noqa: E731
    assert demo.stale(edit) == {"settings", "report"} | of(["mine"], "train", "evaluate", "benchmark")


def test_overrides_that_come_from_another_data_set_are_followed_there(mirror):
    edit = override("demo", "csn", "optim", max_grad_norm=6.0)
    others = [model for model in CSNS if model != CSN]  # whose own override of it stays
    assert mirror.stale(edit) == {"settings", "report"} | of(others, "train")
    assert mirror.stale(override("mirror", CSN, "optim", lr=0.5)) == {"settings", "report"} | of([CSN], "train")


def test_the_source_in_the_environment_makes_nothing_stale(demo, monkeypatch):
    monkeypatch.setenv("ACTIONZOO_SOURCE", "https://user:secret@mirror.org")
    assert demo.stale() == set()
    assert "mirror.org" not in (demo.root / "data/demo/settings.yaml").read_text()
