"""From archives to short-side shards: every clip is accounted for, whatever its flaw and whenever the run is killed."""

import collections
import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest

from actionzoo.errors import UserError
from actionzoo.kinetics.archives import read_archive
from actionzoo.kinetics.manifest import Clip, count_states, label_map, read_manifest
from actionzoo.kinetics.shards import read_index, read_member
from actionzoo.kinetics.synthetic import MOTIONS, write_archive
from actionzoo.kinetics.transcode import Encode
from tests.kinetics.data_stages import make_archive, make_videos
from tests.kinetics.files import file_of, hashes, without_key
from tests.kinetics.small_films import film
from tests.kinetics.small_mirror import as_members, write_split


def resized(archive: Path, name: str = "videos_64", **options) -> Path:
    make_videos(archive, archive.parent / name, **options)
    return archive.parent / name


def nothing_to_do(*_, **__):
    raise AssertionError("nothing is to be transcoded")


def by_state(out: Path) -> dict[str, list[Clip]]:
    states = collections.defaultdict(list)
    for clip in read_manifest(out / "manifest.csv"):
        states[clip.state].append(clip)
    return states


@pytest.fixture(scope="module")
def tiny_videos(tiny_archive) -> Path:
    return resized(tiny_archive)


def test_the_states_add_up_to_the_annotation_split_by_split(tiny_videos):
    assert count_states(read_manifest(tiny_videos / "manifest.csv")) == {
        "train": {"ok": 3, "replaced": 1, "short": 0, "missing": 1, "corrupt": 1, "unlisted": 1},
        "val": {"ok": 4, "replaced": 0, "short": 0, "missing": 0, "corrupt": 0, "unlisted": 0},
        "test": {"ok": 4, "replaced": 0, "short": 0, "missing": 0, "corrupt": 0, "unlisted": 0},
    }


def test_clips_that_are_not_ok_have_a_reason(tiny_videos):
    states = by_state(tiny_videos)
    reasons = {state: clip.reason for state in states for clip in states[state] if state != "ok"}
    assert reasons == {
        "replaced": "moov atom not found",
        "missing": "in no part",
        "corrupt": "zero bytes",
        "unlisted": reasons["unlisted"],
    }
    assert reasons["unlisted"].endswith("and in no line of train.csv")
    assert not any(clip.reason for clip in states["ok"])


def test_every_usable_clip_is_one_pread_away_and_decodes_to_its_count(tiny_videos):
    import decord

    for clip in read_manifest(tiny_videos / "manifest.csv"):
        if clip.is_usable:
            video = read_member(tiny_videos / clip.shard, clip.offset, clip.size)
            reader = decord.VideoReader(io.BytesIO(video), num_threads=1)
            assert len(reader) == clip.num_frames >= 64
            assert reader[0].shape == (clip.height, clip.width, 3)
            assert min(clip.height, clip.width) == 64
            assert 15 < clip.fps <= 30


def test_unusable_clips_have_no_span(tiny_videos):
    for state in ("missing", "corrupt", "unlisted"):
        for clip in by_state(tiny_videos)[state]:
            assert (clip.shard, clip.offset, clip.size, clip.num_frames) == ("", None, None, None)


def test_the_source_is_hashed(tiny_videos, tiny_archive):
    sources = {name: data for part in (tiny_archive / "val").iterdir() for name, data in read_archive(part)}
    for clip in read_manifest(tiny_videos / "manifest.csv"):
        if clip.split == "val":
            assert clip.sha256 == hashlib.sha256(sources[clip.video_id]).hexdigest()


def test_labels_follow_the_sorted_names_of_the_classes(tiny_videos):
    assert label_map(read_manifest(tiny_videos / "manifest.csv")) == sorted(MOTIONS)


def test_the_out_folder_holds_shards_indexes_records_and_the_manifest(tiny_videos):
    stems = [f"{split}/part_{part:03d}" for split in ("train", "val", "test") for part in (0, 1)] + [
        "train/replacement"
    ]
    expected = {f"{stem}{ending}" for stem in stems for ending in (".tar", ".idx.npy", ".json")}
    files = {without_key(name) for name in hashes(tiny_videos)}
    assert files == expected | {"manifest.csv", "shards.csv", "classes.txt"}


def test_a_shard_holds_its_parts_listed_clips_in_the_archives_order(tiny_videos, tiny_archive):
    listed = {clip.video_id for clip in read_manifest(tiny_videos / "manifest.csv") if clip.is_usable}
    names = [f"{name}.mp4" for name, _ in read_archive(tiny_archive / "val/part_1.tar.gz") if name in listed]
    with tarfile.open(file_of(tiny_videos, "val/part_001.tar")) as shard:
        assert shard.getnames() == names
    assert len(read_index(file_of(tiny_videos, "val/part_001.tar"))) == len(names)


def test_the_last_line_says_what_there_is(tiny_archive):
    assert make_videos(tiny_archive, tiny_archive.parent / "videos_64").startswith(
        "resize: 12 of 14 clips in 7 shards, 1 replaced, 1 missing, 1 corrupt, 1 unlisted ("
    )


def test_finished_parts_are_not_done_again(tiny_archive, monkeypatch):
    out = resized(tiny_archive)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("part_*")}

    monkeypatch.setattr("actionzoo.kinetics.resize.transcode", nothing_to_do)
    resized(tiny_archive)
    assert {path: path.stat().st_mtime_ns for path in out.rglob("part_*")} == before


def test_parts_are_done_again_once_a_constant_of_the_encoding_changes(tiny_archive, tmp_path, monkeypatch):
    shutil.copytree(resized(tiny_archive), tmp_path / "videos_64")
    (tmp_path / "archive").symlink_to(tiny_archive)
    before = {clip.shard for clip in read_manifest(tmp_path / "videos_64/manifest.csv") if clip.shard}
    monkeypatch.setattr("actionzoo.kinetics.resize.FIXED", ("bicubic", "psy=1"))
    resized(tmp_path / "archive")
    after = {clip.shard for clip in read_manifest(tmp_path / "videos_64/manifest.csv") if clip.shard}
    assert {without_key(shard) for shard in after} == {without_key(shard) for shard in before}
    assert not after & before


def test_a_lost_shard_is_made_again_and_the_same(tiny_archive):
    out = resized(tiny_archive)
    before = hashes(out)
    file_of(out, "val/part_001.tar").unlink()
    file_of(out, "train/replacement.idx.npy").unlink()
    resized(tiny_archive)
    assert hashes(out) == before


def test_the_number_of_jobs_changes_nothing(tiny_archive, tiny_videos):
    out = resized(tiny_archive, "videos_64_by_one", jobs=1)
    assert hashes(out) == hashes(tiny_videos)


def test_shards_of_two_settings_lie_side_by_side(tiny_archive, tiny_videos, tmp_path, monkeypatch):
    shutil.copytree(tiny_archive, tmp_path / "archive")
    out = tmp_path / "videos_64"
    shutil.copytree(tiny_videos, out)
    manifests, shards = (out / "manifest.csv").read_bytes(), hashes(tiny_videos)
    resized(tmp_path / "archive", encode=Encode(preset="ultrafast", crf=40))
    found = hashes(out)
    small = ("manifest.csv", "shards.csv", "classes.txt")
    assert {name: found[name] for name in shards if name not in small} == {
        name: shards[name] for name in shards if name not in small
    }
    assert len(found) == 2 * len(shards) - len(small)
    monkeypatch.setattr("actionzoo.kinetics.resize.transcode", nothing_to_do)
    resized(tmp_path / "archive")  # the settings from before: a matter of the manifest alone
    assert (out / "manifest.csv").read_bytes() == manifests


def test_too_many_lost_clips_are_an_error_but_what_was_done_is_kept(tiny_archive):
    out = resized(tiny_archive)
    with pytest.raises(UserError) as error:
        make_videos(tiny_archive, tiny_archive.parent / "videos_64", max_bad_share=0.3)
    assert "train: 2 of 6 clips are missing or corrupt, 33.3%; max_bad_share allows 30.0%" in str(error.value)
    assert "corrupt: zero bytes" in str(error.value) and "missing: in no part" in str(error.value)
    assert "val:" not in str(error.value)
    assert (out / "manifest.csv").exists()


def test_a_limit_just_met_is_no_error(tiny_archive):
    make_videos(tiny_archive, tiny_archive.parent / "videos_64", max_bad_share=2 / 6)


# a mirror of one's own, clip by clip


@pytest.fixture
def mirror(tmp_path):
    """Makes a mirror of the given parts and listed clips; returns its folder."""

    def make(parts: list[dict[str, bytes]], listed: list[str], replacements: dict[str, bytes] | None = None) -> Path:
        root = tmp_path / "mirror/400"
        shutil.rmtree(root, ignore_errors=True)
        lines = [f"abseiling,{name}\n" for name in listed]
        write_split(root, "train", [as_members(part) for part in parts], "label,youtube_id\n" + "".join(lines))
        if replacements is not None:
            members = {f"replacement_for_corrupted_k400/{name}.mp4": data for name, data in replacements.items()}
            write_archive(root / "replacement_for_corrupted_k400.tgz", members)
        return root.parent

    return make


@pytest.fixture(scope="module")
def whole() -> bytes:
    return film(num_frames=40)


@pytest.fixture(scope="module")
def longer() -> bytes:
    return film(num_frames=50)


def only(out: Path, video_id: str) -> Clip:
    (clip,) = (clip for clip in read_manifest(out / "manifest.csv") if clip.video_id == video_id)
    return clip


def test_a_replacement_stands_in_for_what_is_corrupt_empty_or_not_there(mirror, whole, longer, tmp_path):
    part = {"cut": whole[:500], "empty": b"", "fine": whole}
    replacements = {"cut": longer, "empty": longer, "gone": longer, "fine": longer, "unlisted": longer}
    root = mirror([part], ["cut", "empty", "gone", "fine"], replacements)
    out = resized(make_archive(root, tmp_path, ["train"]))
    clips = {
        clip.video_id: (clip.state, clip.num_frames, without_key(clip.shard), clip.reason)
        for clip in read_manifest(out / "manifest.csv")
    }
    assert clips == {
        "cut": ("replaced", 50, "train/replacement.tar", "moov atom not found"),
        "empty": ("replaced", 50, "train/replacement.tar", "zero bytes"),
        "gone": ("replaced", 50, "train/replacement.tar", "in no part"),
        "fine": ("ok", 40, "train/part_000.tar", ""),
    }
    with tarfile.open(file_of(out, "train/replacement.tar")) as shard:
        assert shard.getnames() == ["cut.mp4", "empty.mp4", "gone.mp4"]


def test_a_replacement_that_is_broken_too_is_reported(mirror, whole, tmp_path):
    root = mirror([{"a": b"", "b": whole}], ["a", "b"], {"a": whole[:500]})
    clip = only(resized(make_archive(root, tmp_path, ["train"])), "a")
    assert (clip.state, clip.reason) == ("corrupt", "zero bytes; its replacement: moov atom not found")


def test_without_replacements_the_rest_goes_on(mirror, whole, tmp_path):
    root = mirror([{"a": b"", "b": whole}], ["a", "b"])
    out = resized(make_archive(root, tmp_path, ["train"]))
    assert [clip.state for clip in read_manifest(out / "manifest.csv")] == ["corrupt", "ok"]


def test_a_clip_in_two_parts_counts_once_and_the_first_that_decodes_wins(mirror, whole, longer, tmp_path):
    root = mirror([{"a": whole, "b": b""}, {"a": longer, "b": longer}], ["a", "b"])
    out = resized(make_archive(root, tmp_path, ["train"]))
    a, b = only(out, "a"), only(out, "b")
    assert (a.state, without_key(a.shard), a.num_frames, a.reason) == (
        "ok",
        "train/part_000.tar",
        40,
        "also in part_001",
    )
    assert (b.state, without_key(b.shard), b.num_frames) == ("ok", "train/part_001.tar", 50)


def test_a_clip_with_too_few_frames_is_short_and_still_usable(mirror, whole, longer, tmp_path):
    root = mirror([{"a": whole, "b": longer}], ["a", "b"])
    archive = make_archive(root, tmp_path, ["train"])
    out = resized(archive, min_frames=50)
    assert [clip.state for clip in read_manifest(out / "manifest.csv")] == ["short", "ok"]
    assert only(out, "a").reason == "40 frames, fewer than 50"
    before = file_of(out, "train/part_000.tar").stat().st_mtime_ns
    resized(archive, min_frames=40)
    assert only(out, "a").state == "ok"
    assert file_of(out, "train/part_000.tar").stat().st_mtime_ns == before


def test_missing_clips_do_not_count_while_only_some_parts_were_fetched(mirror, whole, tmp_path):
    root = mirror([{"a": whole}, {"b": whole}], ["a", "b"], {"b": whole})
    archive = make_archive(root, tmp_path, ["train"], parts="0")
    out = resized(archive, max_bad_share=0.0)
    assert (only(out, "b").state, only(out, "b").reason) == ("missing", "in none of the 1 parts fetched, of 2")


def test_more_parts_later_add_to_what_is_there(mirror, whole, tmp_path):
    root = mirror([{"a": whole}, {"b": whole}], ["a", "b"])
    out = resized(make_archive(root, tmp_path, ["train"], parts="0"))
    before = file_of(out, "train/part_000.tar").stat().st_mtime_ns
    resized(make_archive(root, tmp_path, ["train"]))
    assert only(out, "b").state == "ok"
    assert file_of(out, "train/part_000.tar").stat().st_mtime_ns == before


def test_a_line_added_to_the_annotation_finds_its_clip(mirror, whole, tmp_path):
    part = [{"a": whole, "b": whole}]
    out = resized(make_archive(mirror(part, ["a"]), tmp_path, ["train"]))
    assert only(out, "b").state == "unlisted"
    resized(make_archive(mirror(part, ["a", "b"]), tmp_path, ["train"]))
    assert only(out, "b").state == "ok"


def test_a_clip_that_took_too_long_gets_another_chance_with_more_time(mirror, tmp_path):
    root = mirror([{"a": film(num_frames=100, height=480, width=640)}], ["a"])
    archive = make_archive(root, tmp_path, ["train"])
    out = resized(archive, short_side=400, clip_timeout_seconds=0.05)
    assert (only(out, "a").state, only(out, "a").reason) == ("corrupt", "timed out after 0.05 s")
    resized(archive, short_side=400, clip_timeout_seconds=60)
    assert only(out, "a").state == "ok"


def test_a_broken_archive_is_named_and_the_others_are_done(mirror, whole, tmp_path):
    root = mirror([{"a": whole}, {"b": whole}, {"c": whole}], ["a", "b", "c"])
    archive = make_archive(root, tmp_path, ["train"])
    part = archive / "train/part_1.tar.gz"
    cut = part.read_bytes()[:-100]
    part.unlink()  # it may be a link to the mirror's
    part.write_bytes(cut)
    with pytest.raises(
        UserError, match=r"part_1\.tar\.gz is not the file that inventory\.json names.*repro -f download"
    ):
        resized(archive)
    assert {without_key(path.name) for path in (tmp_path / "videos_64/train").glob("*.tar")} == {
        "part_000.tar",
        "part_002.tar",
    }
    assert not (tmp_path / "videos_64/manifest.csv").exists()


def test_an_unfinished_download_is_refused(tmp_path):
    (tmp_path / "archive").mkdir()
    with pytest.raises(UserError, match="run the stage `download` to its end"):
        resized(tmp_path / "archive")


def test_names_in_an_archive_that_are_no_utf8_are_survived(mirror, whole, tmp_path):
    root = mirror([{"a": whole, "b\udcff\n,": whole}], ["a"])
    out = resized(make_archive(root, tmp_path, ["train"]))
    (unlisted,) = by_state(out)["unlisted"]
    assert unlisted.video_id == "b\\udcff\n,"


def test_progress_counts_clips(mirror, whole, tmp_path):
    reports = []
    root = mirror([{"a": whole, "b": b""}, {"c": whole}], ["a", "b", "c", "gone"])
    resized(make_archive(root, tmp_path, ["train"]), on_progress=lambda *state: reports.append(state))
    assert reports == [("resize to 64, clips", done, 3) for done in (1, 2, 3)]


KILLED = """
import sys
from pathlib import Path
from actionzoo.files.data_folder import DataFolder
from actionzoo.kinetics.execution import Execution
from actionzoo.kinetics.resize import VideoFormat, resize
from actionzoo.kinetics.transcode import Encode
resize(DataFolder.at(Path(sys.argv[1])), DataFolder.at(Path("killed")), Execution(scratch=Path("scratch"), jobs=2),
       video_format=VideoFormat(64, Encode(preset="ultrafast", crf=30)), max_bad_share=1.0)
"""


def test_killed_in_the_middle_it_goes_on_and_ends_with_the_same_bytes(tiny_archive, tiny_videos, tmp_path):
    """Killed with SIGKILL twice: in the middle of the first part, and right after the second was finished."""
    for finished in ([], ["train/part_001-*.json"]):
        process = subprocess.Popen([sys.executable, "-c", KILLED, str(tiny_archive)], cwd=tmp_path)
        while process.poll() is None and not (
            all(list((tmp_path / "killed").glob(name)) for name in finished)
            and list((tmp_path / "scratch/killed").glob(".part_*.partial"))
        ):
            time.sleep(0.002)
        os.kill(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        assert not (tmp_path / "killed/manifest.csv").exists()
        for record in (tmp_path / "killed").rglob("*.json"):
            assert json.loads(record.read_text())["size"] == record.with_suffix(".tar").stat().st_size
    subprocess.run([sys.executable, "-c", KILLED, str(tiny_archive)], cwd=tmp_path, check=True)
    assert hashes(tmp_path / "killed") == hashes(tiny_videos)
    assert not (tmp_path / "scratch/killed").exists()


REAL = Path(__file__).resolve().parents[2].parent / "shared/k400-mini"


@pytest.mark.slow
@pytest.mark.skipif(not REAL.is_dir(), reason=f"the mirror with real footage is not at {REAL}")
def test_real_footage_with_its_flaws_is_accounted_for(tmp_path):
    """Of the real mirror train's first and third part, where the flaws are, at 64 lines."""
    import decord

    archive = make_archive(REAL, tmp_path, ["train"], parts="0,2-3")
    out = resized(archive)
    clips = {clip.video_id[:11]: clip for clip in read_manifest(out / "manifest.csv")}
    assert len([clip for clip in clips.values() if clip.is_listed]) == 33
    assert (clips["0Hfz6CHyh9t"].state, clips["0Hfz6CHyh9t"].reason) == ("replaced", "moov atom not found")
    assert (clips["4HNUTCp2PnY"].state, clips["4HNUTCp2PnY"].reason) == ("corrupt", "zero bytes")
    assert clips["5_4HeUgqvfS"].state == clips["AAAAAAAAAAA"].state == "missing"
    assert clips["BBBBBBBBBBB"].state == "unlisted"
    usable = [clip for clip in clips.values() if clip.is_usable]
    assert len(usable) == 22
    for clip in usable:
        reader = decord.VideoReader(io.BytesIO(read_member(out / clip.shard, clip.offset, clip.size)), num_threads=1)
        assert len(reader) == clip.num_frames
        assert min(clip.height, clip.width) == 64
