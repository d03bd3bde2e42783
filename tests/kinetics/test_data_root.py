"""Shards lie under a data root that settings, experiments and clones share: none is made twice, none overwritten."""

import hashlib
import json
import os
import re
import shutil
from pathlib import Path

import pytest
import yaml

from actionzoo.errors import UserError
from actionzoo.files.locks import locked
from actionzoo.jobs import prepare
from actionzoo.kinetics.check import check_data, delete_shards, unused_shards, unused_text
from actionzoo.kinetics.manifest import read_manifest
from actionzoo.kinetics.part_records import load_record, save_record
from actionzoo.kinetics.shard_list import read_shards
from actionzoo.params import Params, load_params
from tests.kinetics.files import contents, file_of, hashes, without_key

PROJECT = Path(__file__).resolve().parents[2]
SMALL = ("manifest.csv", "shards.csv", "classes.txt")


class Work:
    """Counts what a stage does: files fetched, clips encoded, clips whose frames were extracted."""

    def __init__(self, monkeypatch) -> None:
        self.counts = {"fetched": 0, "encoded": 0, "extracted": 0}
        for name, place in (
            ("fetched", "download._fetch"),
            ("encoded", "resize.transcode"),
            ("extracted", "frames.to_jpegs"),
        ):
            self._count(monkeypatch, name, f"actionzoo.kinetics.{place}")

    def _count(self, monkeypatch, name: str, place: str) -> None:
        module, _, function = place.rpartition(".")
        original = getattr(__import__(module, fromlist=["_"]), function)

        def counted(*arguments, **options):
            self.counts[name] += 1
            return original(*arguments, **options)

        monkeypatch.setattr(place, counted)

    def since(self) -> tuple[int, int, int]:
        """(fetched, encoded, extracted) since the last call."""
        found = tuple(self.counts.values())
        self.counts = dict.fromkeys(self.counts, 0)
        return found


@pytest.fixture
def work(monkeypatch) -> Work:
    for name in ("ACTIONZOO_SOURCE", "ACTIONZOO_DATA"):
        monkeypatch.delenv(name, raising=False)
    return Work(monkeypatch)


def write_project(root: Path, mirror: Path, **encode) -> Params:
    root.mkdir(parents=True, exist_ok=True)
    params = yaml.safe_load((PROJECT / "params.yaml").read_text())
    params["data"]["name"] = "own"
    params["prepare"]["encode"] |= {"preset": "ultrafast", "crf": 30} | encode
    params["prepare"]["jpeg"]["qscale"] = 20
    params["datasets"]["own"] = {"source": str(mirror), "splits": ["val"], "max_bad_share": 1.0}
    (root / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    shutil.copy(PROJECT / "published.yaml", root)
    return load_params(root / "params.yaml")


def build(params: Params) -> None:
    prepare.download(params)
    prepare.resize(params, 256)
    prepare.frames(params, 256)


@pytest.fixture(scope="module")
def built(tiny_mirror, tmp_path_factory) -> Path:
    """A project with download, resize@256 and frames@256 done."""
    root = tmp_path_factory.mktemp("built") / "zoo"
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("ACTIONZOO_DATA", raising=False)
        build(write_project(root, tiny_mirror))
    return root


@pytest.fixture
def project(built, tmp_path) -> Path:
    return Path(shutil.copytree(built, tmp_path / "zoo"))


def of(root: Path) -> Params:
    return load_params(root / "params.yaml")


def tracked(root: Path) -> dict[str, bytes]:
    files = contents(root / "data")
    return {name: data for name, data in files.items() if name.endswith((*SMALL, "inventory.json")) and name[0] != "."}


def forget_outs(root: Path) -> None:
    """As DVC does before it runs a stage."""
    for path in (root / "data").rglob("*"):
        if path.name in (*SMALL, "inventory.json"):
            path.unlink()


# one data root


def test_without_its_outs_a_stage_still_knows_what_is_finished(project, work):
    before = tracked(project)
    forget_outs(project)
    build(of(project))
    assert work.since() == (0, 0, 0)
    assert tracked(project) == before


def test_what_an_older_version_made_is_taken_over(project, work):
    new, manifest = hashes(project / "data"), tracked(project)
    for path in [*(project / "data/own").glob("*_256/*/*")]:
        path.rename(path.with_name(without_key(path.name)))
    scratch = project / ".scratch/download/own"
    scratch.parent.mkdir(parents=True)
    (project / "data/.scratch/download/own").rename(scratch)
    shutil.rmtree(project / "data/.scratch")
    forget_outs(project)
    build(of(project))
    assert work.since() == (0, 0, 0)
    assert tracked(project) == manifest
    assert {name: sha256 for name, sha256 in hashes(project / "data").items() if ".lock" not in name} == {
        name: sha256 for name, sha256 in new.items() if ".lock" not in name
    }
    assert not scratch.exists()


@pytest.mark.parametrize("scratch", ["data/.scratch/download/own", ".scratch/download/own"])
def test_data_that_moved_to_another_root_are_found_there(project, tmp_path, work, monkeypatch, scratch):
    """Moved by hand, as out of data/ or from behind a link; what is known of the archives stayed in the project."""
    before = tracked(project)
    (tmp_path / "disk").mkdir()
    shutil.move(project / "data/own", tmp_path / "disk/own")
    if scratch.startswith("."):
        (project / scratch).parent.mkdir(parents=True)
        (project / "data/.scratch/download/own").rename(project / scratch)
    monkeypatch.setenv("ACTIONZOO_DATA", str(tmp_path / "disk"))
    build(of(project))
    assert work.since() == (0, 0, 0)
    assert tracked(project) == before


def test_a_link_behind_which_dvc_tracks_nothing_is_refused_before_the_work(project, tmp_path, work):
    shutil.move(project / "data", tmp_path / "disk")
    (project / "data").symlink_to(tmp_path / "disk")
    for stage in (
        prepare.download,
        lambda params: prepare.resize(params, 256),
        lambda params: prepare.frames(params, 256),
    ):
        with pytest.raises(
            UserError, match=r"data is a symbolic link to .*/disk, and DVC .* set data\.root in .*params"
        ):
            stage(of(project))
    assert work.since() == (0, 0, 0)


def test_killed_while_it_takes_over_a_stage_finishes_that_next_time(project, work, monkeypatch):
    shard = file_of(project / "data/own/videos_256", "val/part_001.tar")
    for path in (shard, shard.with_suffix(".json")):  # the index has its new name already
        path.rename(path.with_name(without_key(path.name)))
    prepare.resize(of(project), 256)
    assert work.since() == (0, 0, 0)
    assert shard.is_file() and shard.with_suffix(".json").is_file()


def test_another_clone_with_this_data_root_makes_nothing(project, tiny_mirror, tmp_path, work, monkeypatch):
    monkeypatch.setenv("ACTIONZOO_DATA", str(project / "data"))
    other = write_project(tmp_path / "other", tiny_mirror)
    build(other)
    assert work.since() == (0, 0, 0)
    assert tracked(tmp_path / "other") == tracked(project)
    assert {path.name for path in (tmp_path / "other/data").rglob("*") if path.is_file()} == {*SMALL, "inventory.json"}


def test_a_queued_experiment_uses_the_shards_of_its_workspace(project, tiny_mirror, work):
    experiment = project / ".dvc/tmp/exps/tmpabc"
    build(write_project(experiment, tiny_mirror))
    assert work.since() == (0, 0, 0)
    assert tracked(experiment) == tracked(project)
    assert not list(experiment.rglob("*.tar*"))


def test_an_experiment_with_other_settings_leaves_the_workspaces_shards(project, tiny_mirror, work):
    before, num_clips = hashes(project / "data"), 4
    experiment = write_project(project / ".dvc/tmp/exps/tmpabc", tiny_mirror, crf=40)
    build(experiment)
    assert work.since() == (0, num_clips, num_clips)
    after = hashes(project / "data")
    assert {name: after[name] for name in before} == before
    theirs = {clip.shard for clip in read_manifest(experiment.folder("data") / "videos_256/manifest.csv")}
    assert all((project / "data/own/videos_256" / shard).is_file() for shard in theirs)
    build(of(project))
    assert work.since() == (0, 0, 0)


def test_an_out_is_replaced_and_never_written_into(project, work, tmp_path):
    manifest, kept = project / "data/own/videos_256/manifest.csv", tmp_path / "cache"
    os.link(manifest, kept)  # as DVC's cache does
    kept.chmod(0o444)
    before = kept.read_bytes()
    raw = yaml.safe_load((project / "params.yaml").read_text())
    raw["prepare"]["min_frames"] = 1000
    (project / "params.yaml").write_text(yaml.safe_dump(raw, sort_keys=False))
    prepare.resize(of(project), 256)
    assert kept.read_bytes() == before != manifest.read_bytes()
    assert work.since() == (0, 0, 0)


# damage


def test_a_missing_shard_is_made_alone(project, work):
    before = tracked(project)
    file_of(project / "data/own/videos_256", "val/part_001.tar").unlink()
    prepare.resize(of(project), 256)
    num_encoded = work.since()[1]
    assert 0 < num_encoded < 4
    assert tracked(project) == before


def test_a_damaged_shard_is_made_alone_once_the_check_has_found_it(project, work):
    before = tracked(project)
    shard = file_of(project / "data/own/videos_256", "val/part_001.tar")
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    checked = check_data(of(project).data_folder())
    assert str(shard) in checked.text() and "dvc repro -f resize@256 frames@256" in checked.text()
    build(of(project))
    num_fetched, num_encoded, num_extracted = work.since()
    assert num_fetched == 0 and 0 < num_encoded == num_extracted < 4
    assert tracked(project) == before
    assert check_data(of(project).data_folder()).damages == ()


def test_a_damaged_archive_is_not_encoded(project, work):
    part = project / "data/own/archive/val/part_1.tar.gz"
    data = bytearray(part.read_bytes())
    data[4] ^= 1  # the time in gzip's header: every clip unpacks all the same
    part.unlink()
    part.write_bytes(data)
    prepare.resize(of(project), 256)  # nothing is read
    shard = file_of(project / "data/own/videos_256", "val/part_001.tar")
    shard.unlink()
    with pytest.raises(
        UserError, match=r"part_1\.tar\.gz is not the file .*sha256.*; delete it.*`dvc repro -f download`"
    ):
        prepare.resize(of(project), 256)
    assert not shard.exists()
    part.unlink()
    build(of(project))
    assert shard.exists() and work.since()[0] == 1


def test_an_archive_of_another_size_is_refused_before_it_is_read(project, work):
    file_of(project / "data/own/videos_256", "val/part_001.json").unlink()
    part = project / "data/own/archive/val/part_1.tar.gz"
    part.write_bytes(part.read_bytes() + b"\0")
    with pytest.raises(
        UserError, match=r"part_1\.tar\.gz is not the file that inventory\.json names: it has \d+ bytes"
    ):
        prepare.resize(of(project), 256)
    assert work.since() == (0, 0, 0)


def test_without_archives_the_shards_that_are_there_are_enough(project, work):
    for path in (project / "data/own/archive").rglob("part_*"):
        path.unlink()
    prepare.resize(of(project), 256)
    assert work.since() == (0, 0, 0)
    file_of(project / "data/own/videos_256", "val/part_001.tar").unlink()
    with pytest.raises(
        UserError, match=r"part_1\.tar\.gz is not the file .* it is not there; .*`dvc repro -f download`"
    ):
        prepare.resize(of(project), 256)


def test_frames_of_shards_that_are_elsewhere_name_both_remedies(project):
    shutil.rmtree(project / "data/own/videos_256/val")
    with pytest.raises(UserError, match=r"ACTIONZOO_DATA or data\.root .*`dvc repro -f resize@256`"):
        prepare.frames(of(project), 256)


# ffmpeg


def test_shards_of_another_ffmpeg_are_kept_and_said(project, work, caplog):
    shard = file_of(project / "data/own/videos_256", "val/part_000.tar")
    record = load_record(shard)
    content = json.loads(shard.with_suffix(".json").read_text()) | {"ffmpeg": "4.2"}
    shard.with_suffix(".json").write_text(json.dumps(content))
    prepare.resize(of(project), 256)
    (message,) = [entry.getMessage() for entry in caplog.records if "ffmpeg" in entry.getMessage()]
    assert "1 by ffmpeg 4.2 were made" in message and "python stages/resize.py 256 --force" in message
    assert work.since() == (0, 0, 0)
    assert sorted({line.ffmpeg for line in read_shards(project / "data/own/videos_256/shards.csv")}) == sorted(
        {"4.2", record.ffmpeg}
    )


def test_force_makes_all_shards_of_the_manifest_anew(project, work):
    before = tracked(project)
    prepare.resize(of(project), 256, force=True)
    prepare.frames(of(project), 256, force=True)
    assert work.since() == (0, 4, 4)
    assert tracked(project) == before


# shards that are not used


def test_shards_that_no_manifest_names_are_listed_and_deleted_when_asked(project, tiny_mirror, work):
    params = of(project)
    assert unused_shards(params.data_folder(), params.workspace) == []
    before = hashes(project / "data/own")
    experiment = write_project(project / ".dvc/tmp/exps/tmpabc", tiny_mirror, crf=40)
    prepare.download(experiment)
    prepare.resize(experiment, 256)
    assert unused_shards(params.data_folder(), params.workspace) == []  # a running experiment names them
    shutil.rmtree(experiment.root)
    (project / "data/own/videos_256/val/notes.tar").write_text("a file of one's own")
    unused = unused_shards(params.data_folder(), params.workspace)
    assert {without_key(shard.path.name) for shard in unused} == {"part_000.tar", "part_001.tar"}
    assert "--delete-unused" in unused_text(unused, deleted=False)
    assert re.search(r"deleted: .*part_001-\w{8}\.tar  [\d.]+ MB", unused_text(unused, deleted=True))
    with (
        locked(params.data_scratch("resize") / ".videos_256.lock"),
        pytest.raises(UserError, match="at work on videos"),
    ):
        delete_shards(unused, params.data_scratch)
    delete_shards(unused, params.data_scratch)
    after = hashes(project / "data/own")
    assert after.pop("videos_256/val/notes.tar")
    assert after == before


def test_without_a_manifest_here_no_shard_counts_as_unused(project, tmp_path, tiny_mirror, work, monkeypatch):
    monkeypatch.setenv("ACTIONZOO_DATA", str(project / "data"))
    other = write_project(tmp_path / "other", tiny_mirror, crf=40)
    assert unused_shards(other.data_folder(), other.workspace) == []


def test_a_shard_that_was_made_anew_by_others_is_not_declared_unfinished(project, work):
    shard = file_of(project / "data/own/videos_256", "val/part_000.tar")
    data = shard.read_bytes() + bytes(512)
    shard.write_bytes(data)
    record = load_record(shard)
    changed = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    save_record(shard, type(record)(**{field: getattr(record, field) for field in record.__slots__} | changed))
    (damage,) = check_data(of(project).data_folder()).damages
    assert damage.path == shard and "made anew since" in damage.error
    prepare.resize(of(project), 256)
    assert work.since() == (0, 0, 0)
    assert check_data(of(project).data_folder()).damages == ()
