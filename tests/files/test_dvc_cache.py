"""DVC's cache, found without DVC; compared with what DVC itself says."""

import json
import subprocess
import sys

import pytest

from actionzoo.files.dvc_cache import cache_folder, cached_file, cached_folder

CONTENT, MD5 = b"content", "9a0364b9e99bb480dd25e1f0284c8555"


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "home"))
    (tmp_path / "project/.dvc").mkdir(parents=True)
    return tmp_path / "project"


def test_without_settings_it_is_in_the_folder_of_dvc(project):
    (project / ".dvc/config").write_text("[core]\n    analytics = false\n['remote \"store\"']\n    url = /elsewhere\n")
    assert cache_folder(project) == project / ".dvc/cache/files/md5"


def test_the_local_settings_count_before_those_of_the_project_and_of_the_user(project, tmp_path):
    for folder, name in (
        (tmp_path / "home/dvc", "config"),
        (project / ".dvc", "config"),
        (project / ".dvc", "config.local"),
    ):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"[cache]\n    dir = ../{name}-cache\n")
        assert cache_folder(project).resolve() == folder.parent / f"{name}-cache/files/md5"


def test_settings_that_cannot_be_read_are_passed_over(project):
    (project / ".dvc/config").write_text("dir = no section\n")
    assert cache_folder(project) == project / ".dvc/cache/files/md5"


def test_a_cache_that_dvc_was_told_of_holds_what_dvc_added(project, tmp_path):
    def dvc(*words):
        subprocess.run([sys.executable, "-m", "dvc", *words], cwd=project, check=True, capture_output=True)

    (project / ".dvc").rmdir()
    dvc("init", "--no-scm", "-q")
    dvc("cache", "dir", "--local", str(tmp_path / "big disk"))
    (project / "file").write_bytes(CONTENT)
    (project / "folder").mkdir()
    (project / "folder/inner").write_bytes(CONTENT)
    dvc("add", "-q", "file", "folder")
    assert cached_file(project, MD5).read_bytes() == CONTENT
    assert cached_file(project, MD5).is_relative_to(tmp_path / "big disk")
    (listing,) = (tmp_path / "big disk/files/md5").glob("*/*.dir")
    found = cached_folder(project, listing.parent.name + listing.name)
    assert found == {"inner": cached_file(project, MD5)}


def test_what_is_not_there_is_none_and_a_folder_counts_as_a_whole(project):
    assert cached_file(project, MD5) is None
    listing = cache_folder(project) / "ab/cd.dir"
    listing.parent.mkdir(parents=True)
    listing.write_text(json.dumps([{"md5": MD5, "relpath": "inner"}]))
    assert cached_folder(project, "abcd.dir") == {}
