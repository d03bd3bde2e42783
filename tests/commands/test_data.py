"""`actionzoo data states` and `data check`, in a project whose videos_256 has one shard."""

import pytest
import yaml

from actionzoo.kinetics.manifest import Clip, write_manifest
from actionzoo.kinetics.part_records import save_record, write_record
from actionzoo.kinetics.shard_list import write_shards
from actionzoo.kinetics.shards import ShardWriter

KEY = "1a2b3c4d" + "0" * 56
SHARD = "val/part_000-1a2b3c4d.tar"


@pytest.fixture
def one_shard(project, monkeypatch):
    monkeypatch.delenv("ACTIONZOO_DATA", raising=False)
    params = yaml.safe_load((project / "params.yaml").read_text())
    params["data"]["root"] = "store"
    (project / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    form, path = project / "data/demo/videos_256", project / "store/demo/videos_256" / SHARD
    with ShardWriter(path) as shard:
        shard.add("a.mp4", b"a video")
    write_manifest(
        form / "manifest.csv", [Clip(video_id="a", split="val", label=0, class_name="zumba", state="missing")]
    )
    write_shards(form / "shards.csv", {SHARD: write_record(path, KEY, 60.0, [], ffmpeg="7.0.2", unlisted=[])})
    return path


def test_states_also_say_which_ffmpeg_made_the_shards(one_shard, actionzoo):
    done = actionzoo("data", "states", "videos_256")
    assert done.status == 0 and done.out.splitlines()[-1] == "ffmpeg: 7.0.2 made 1 shard"


def test_check_reads_the_shards_below_the_data_root(one_shard, actionzoo):
    assert "1 of 1 files are as recorded" in actionzoo("data", "check").out
    one_shard.write_bytes(one_shard.read_bytes()[::-1])
    done = actionzoo("data", "check")
    assert done.status == 1
    assert done.out.splitlines()[-1] == "To make the damaged ones again, and no other: dvc repro -f resize@256"
    assert not one_shard.with_suffix(".json").exists()


def test_check_names_unused_shards_and_deletes_them_when_asked(one_shard, actionzoo):
    other = one_shard.with_name("part_000-5e6f7a8b.tar")
    with ShardWriter(other) as shard:
        shard.add("a.mp4", b"the same video, smaller")
    record = write_record(other, "5e6f7a8b" + KEY[8:], 60.0, [], unlisted=[])
    save_record(other, record)
    done = actionzoo("data", "check")
    assert done.status == 0 and f"unused: {other.relative_to(one_shard.parents[4])}" in done.out.replace("\n", "")
    assert other.exists()
    done = actionzoo("data", "check", "--delete-unused")
    assert done.status == 0 and "1 shard, 0.00 GB deleted" in done.out
    assert sorted(path.name for path in one_shard.parent.iterdir()) == [
        one_shard.with_suffix(ending).name for ending in (".idx.npy", ".json", ".tar")
    ]
