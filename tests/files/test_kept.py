"""Finished work between the end of a stage and DVC's commit."""

import hashlib

import pytest

from actionzoo.files.dvc_cache import cache_folder
from actionzoo.files.kept import drop_cached, is_due, keep, publish_again


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "home"))
    root = tmp_path / "project"
    (root / "runs/errors").mkdir(parents=True)
    (root / "runs/best.pth").write_text("weights")
    (root / "runs/errors/01.jpg").write_text("a strip")
    scratch = root / ".scratch/key"
    scratch.mkdir(parents=True)
    (scratch / "state-00001-0000000.pth").write_text("state")
    (scratch / "parts").mkdir()
    keep(scratch, root, [root / "runs/best.pth", root / "runs/errors"])
    return root


@pytest.fixture
def scratch(project):
    return project / ".scratch/key"


def cache(project, *contents: str) -> None:
    """As DVC's commit does."""
    for content in contents:
        md5 = hashlib.md5(content.encode()).hexdigest()
        path = cache_folder(project) / md5[:2] / md5[2:]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)


def test_only_the_finished_files_stay_in_the_scratch_folder(scratch):
    assert [path.name for path in scratch.iterdir()] == ["finished"]


def test_they_take_no_space(project, scratch):
    assert (project / "runs/best.pth").stat().st_nlink == 2


def test_deleted_by_dvc_they_are_published_again(project, scratch):
    (project / "runs/best.pth").unlink()
    (project / "runs/errors/01.jpg").unlink()
    (project / "runs/errors").rmdir()
    assert is_due(scratch, project)
    publish_again(scratch, project)
    assert (project / "runs/best.pth").read_text() == "weights"
    assert (project / "runs/errors/01.jpg").read_text() == "a strip"
    assert is_due(scratch, project)  # until DVC has them


def test_a_commit_that_was_cut_off_leaves_them_due(project, scratch):
    cache(project, "weights")
    assert is_due(scratch, project)
    drop_cached(project / ".scratch", project)
    assert scratch.exists()


def test_once_dvc_has_all_of_them_they_are_dropped(project, scratch):
    cache(project, "weights", "a strip")
    assert not is_due(scratch, project)
    drop_cached(project / ".scratch", project)
    assert not scratch.exists()


def test_half_of_them_are_not_published(project, scratch):
    next((scratch / "finished").glob("[0-9a-f]*[0-9a-f]")).unlink()
    assert not is_due(scratch, project)


def test_nothing_kept_is_nothing_due(project):
    assert not is_due(project / ".scratch/other", project)
