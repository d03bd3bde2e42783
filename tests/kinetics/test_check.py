"""Bytes that changed on the disk are found, named, and made again alone."""

import json
import shutil

import pytest

from actionzoo.errors import UserError
from actionzoo.files.data_folder import DataFolder
from actionzoo.kinetics.check import Checked, check_data
from actionzoo.kinetics.transcode import Encode
from tests.kinetics.data_stages import make_archive, make_frames, make_videos
from tests.kinetics.files import contents, file_of, versions, without_key


@pytest.fixture(scope="module")
def prepared(tiny_mirror, tmp_path_factory):
    root = tmp_path_factory.mktemp("prepared")
    make(root, tiny_mirror)
    return root / "data"


@pytest.fixture
def data(prepared, tmp_path):
    shutil.copytree(prepared, tmp_path / "data")
    return tmp_path / "data"


def make(root, mirror) -> None:
    data, scratch = root / "data", root / "scratch"
    (root / "source").exists() or shutil.copytree(mirror, root / "source")
    archive = make_archive(root / "source", data, scratch=scratch)
    make_videos(archive, data / "videos_256", encode=Encode(preset="ultrafast"), scratch=scratch)
    make_frames(data / "videos_256", data / "frames_256", qscale=5, max_bad_share=1.0, scratch=scratch)


def checked(data, **options) -> Checked:
    return check_data(DataFolder.at(data), **options)


def rot(path) -> None:
    """One bit flips; the size stays."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.unlink()
    path.write_bytes(data)


def shard_of(data, form):
    return sorted((data / form).glob("*/part_*.tar"))[0]


def test_sound_data_are_sound(data):
    result = checked(data)
    assert result.damages == () and result.num_files == result.num_finished > 10


def test_one_flipped_bit_is_found_in_every_kind_of_file(data):
    part = next((data / "archive").glob("val/part_*"))
    video, frames = shard_of(data, "videos_256"), shard_of(data, "frames_256")
    for path in (part, video, frames):
        rot(path)
    damages = {damage.path: damage.stage for damage in checked(data).damages}
    assert damages == {part: "download", video: "resize@256", frames: "frames@256"}


def test_a_damaged_index_is_damage_of_its_shard(data):
    frames = shard_of(data, "frames_256")
    rot(frames.with_suffix(".idx.npy"))
    assert [damage.path for damage in checked(data).damages] == [frames]


def test_a_missing_shard_is_damage(data):
    frames = shard_of(data, "frames_256")
    frames.unlink()
    (damage,) = checked(data).damages
    assert (damage.path, damage.error) == (frames, "it is not there")


def test_frames_of_a_damaged_video_shard_are_made_again_too(data):
    video = shard_of(data, "videos_256")
    rot(video)
    frames = file_of(data / "frames_256", f"{video.parent.name}/{without_key(video.name)}")
    assert {damage.path for damage in checked(data).damages} == {video, frames}


def test_only_damaged_files_are_made_again_with_the_same_bytes(data, tiny_mirror, tmp_path):
    before, versions_before = contents(data), versions(data)
    video = shard_of(data, "videos_256")
    part = next((data / "archive").glob("val/part_*"))
    for path in (video, part):
        rot(path)
    assert checked(data).damages
    make(tmp_path, tiny_mirror)
    assert contents(data) == before
    versions_after = versions(data)
    made = {name for name in before if versions_after[name][0] != versions_before[name][0] and name.endswith(".tar")}
    frames = file_of(data / "frames_256", f"{video.parent.name}/{without_key(video.name)}")
    assert made == {str(path.relative_to(data)) for path in (video, frames)}
    assert checked(data).damages == ()


def test_a_sample_is_drawn_by_its_seed(data):
    rot(shard_of(data, "videos_256"))
    assert [checked(data, sample=1, seed=3).num_files for _ in range(2)] == [1, 1]
    num_files = checked(data, sample=1000).num_files
    assert num_files == checked(data, sample=num_files).num_finished + 2  # the shard and its frames are unfinished


def test_shards_of_older_versions_get_their_hash(data):
    record = shard_of(data, "videos_256").with_suffix(".json")
    content = json.loads(record.read_text())
    sha256 = content.pop("sha256")
    (data / "videos_256/shards.csv").unlink()  # which those versions did not write either
    record.write_text(json.dumps(content))
    result = checked(data)
    assert (result.num_recorded, result.damages) == (1, ())
    assert json.loads(record.read_text())["sha256"] == sha256


@pytest.mark.parametrize("text", ["", "[]", "{}", "[" * 5000, '{"size": "many"}'])
def test_a_damaged_record_is_damage(data, text):
    shard = shard_of(data, "frames_256")
    shard.with_suffix(".json").write_text(text)
    (damage,) = checked(data).damages
    assert damage.path == shard and damage.error == "its record cannot be read"


def test_without_data_it_says_what_makes_them(tmp_path):
    with pytest.raises(UserError, match="no finished files yet"):
        checked(tmp_path)


@pytest.mark.parametrize(
    ("form", "gone"),
    [
        *(("videos_256", key) for key in ("unlisted", "video_id", "size", "sha256", "damage")),
        *(("frames_256", key) for key in ("video_id", "size")),
    ],
)
def test_a_shard_whose_record_lacks_something_is_made_anew(data, tiny_mirror, tmp_path, form, gone):
    path = shard_of(data, form).with_suffix(".json")
    before = path.read_text()
    record = json.loads(before)
    for entry in [record, *record["clips"]] if gone != "sha256" else record["clips"]:
        entry.pop(gone, None)
    path.write_text(json.dumps(record, indent=0) + "\n")
    make(tmp_path, tiny_mirror)
    assert path.read_text() == before
