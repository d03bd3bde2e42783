"""What DVC does not see of a training: versions, and the bytes behind init.weights."""

import dataclasses
import hashlib
from pathlib import Path

import pytest

from actionzoo.job import Job
from actionzoo.params import Params, load_params
from actionzoo.weights import download
from actionzoo.weights.provenance import Provenance, versions

ROW = "slowfast_r50_video_4x16x1_256e_kinetics400_rgb"
OTHER = "slowfast_r50_4x16x1_256e_kinetics400_rgb"
PROJECT = Path(__file__).resolve().parents[2]


@pytest.fixture
def params(monkeypatch) -> Params:
    monkeypatch.delenv("ACTIONZOO_WEIGHTS", raising=False)
    monkeypatch.setattr(download, "_fetch_one", lambda *_: pytest.fail("nothing may be downloaded"))
    return load_params(PROJECT / "params.yaml")


def starting_from(params: Params, source: str, root: Path) -> Job:
    return Job.of(params.changed(ROW, init={"weights": source}), ROW, root)


def trained_on(content: bytes, source: str) -> Provenance:
    return Provenance(versions(), source, hashlib.sha256(content).hexdigest())


def test_each_program_of_another_version_is_a_line_with_the_way_to_train_anew(params, tmp_path):
    known = Provenance({"actionzoo": "0.0.9", "torch": versions()["torch"]})
    (line,) = Job.of(params, ROW, tmp_path).notes_on(known)
    assert line == (
        f"DVC does not see that {ROW} was trained with actionzoo 0.0.9, and {versions()['actionzoo']} is installed; "
        f"`dvc repro -f train@{ROW}` trains it anew"
    )
    assert len(Job.of(params, ROW, tmp_path).notes_on(Provenance({"actionzoo": "0.0.9", "torch": "1.0"}))) == 2


def test_nothing_is_said_of_what_is_the_same_or_was_not_recorded(params, tmp_path):
    assert Job.of(params, ROW, tmp_path).notes_on(Provenance(versions())) == []
    (tmp_path / "mine.pth").write_bytes(b"now")
    assert starting_from(params, str(tmp_path / "mine.pth"), tmp_path).notes_on(Provenance()) == []


def test_a_file_whose_bytes_have_changed_is_named(params, tmp_path):
    source = tmp_path / "mine.pth"
    source.write_bytes(b"then")
    job, known = starting_from(params, str(source), tmp_path), trained_on(b"then", str(source))
    assert job.notes_on(known) == []
    source.write_bytes(b"now")
    (line,) = job.notes_on(known)
    assert f"{ROW} started from weights with sha256 {known.init_sha256[:8]}…, and {source} has" in line
    source.unlink()
    assert job.notes_on(known) == []


def test_of_a_url_the_downloaded_file_is_compared(params, tmp_path):
    url = "https://example.org/mine.pth"
    job, known = starting_from(params, url, tmp_path), trained_on(b"then", url)
    assert job.notes_on(known) == []
    cached = tmp_path / "weights" / f"from-{hashlib.sha256(url.encode()).hexdigest()[:8]}" / "mine.pth"
    cached.parent.mkdir(parents=True)
    cached.write_bytes(b"now")
    assert str(cached) in job.notes_on(known)[0]


def test_of_a_model_its_published_file_is_compared(params, tmp_path):
    published = {OTHER: dataclasses.replace(params.published[OTHER], ckpt=str(tmp_path / "published.pth"))}
    params = dataclasses.replace(params, published={**params.published, **published})
    (tmp_path / "published.pth").write_bytes(b"now")
    assert "published.pth has" in starting_from(params, OTHER, tmp_path).notes_on(trained_on(b"then", OTHER))[0]


def test_a_recipe_that_names_another_file_by_now_is_for_dvc_to_see(params, tmp_path):
    (tmp_path / "mine.pth").write_bytes(b"now")
    job = starting_from(params, str(tmp_path / "mine.pth"), tmp_path)
    assert job.notes_on(trained_on(b"then", str(tmp_path / "another.pth"))) == []
