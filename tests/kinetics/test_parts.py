"""Records of finished shards: which are trusted, and how work on parts is shared out."""

import json
import threading

import numpy as np
import pytest

from actionzoo.errors import MachineFault, UserError
from actionzoo.kinetics.part_records import PartClip, key_of, read_record, write_record
from actionzoo.kinetics.parts import in_order, scratch_folder
from actionzoo.kinetics.shards import index_path


@pytest.fixture
def shard(tmp_path):
    path = tmp_path / "part_000.tar"
    path.write_bytes(b"shard")
    np.save(index_path(path), np.zeros((1, 2), np.int64))
    return path


def edit(shard, **facts):
    path = shard.with_suffix(".json")
    record = {key: value for key, value in (json.loads(path.read_text()) | facts).items() if value is not None}
    path.write_text(json.dumps(record))


BLAMES_MACHINE = [
    "ffmpeg ended with status 228",
    "ffmpeg ended with status 244",
    "ffmpeg ended with status 232",
    "pthread_create() failed: Resource temporarily unavailable.",
    "ff_frame_thread_encoder_init failed",
    "Cannot allocate memory",
    "Error writing trailer: No space left on device",
]


@pytest.mark.parametrize("error", BLAMES_MACHINE)
def test_an_old_record_that_blames_the_machine_is_not_trusted(shard, error):
    write_record(shard, "key", 60, [PartClip(video_id="a", error=error)])
    edit(shard, judged=None)
    assert read_record(shard, "key", 60) is None


@pytest.mark.parametrize("error", ["moov atom not found", "zero bytes", "ffmpeg ended with status 1", "cut off"])
def test_an_old_record_that_blames_the_clip_is_trusted(shard, error):
    write_record(shard, "key", 60, [PartClip(video_id="a", error=error)])
    edit(shard, judged=None)
    assert read_record(shard, "key", 60).clips[0].error == error


@pytest.mark.parametrize("error", BLAMES_MACHINE)
def test_an_error_confirmed_by_a_control_is_not_tried_in_every_run(shard, error):
    write_record(shard, "key", 60, [PartClip(video_id="a", error=error)])
    assert read_record(shard, "key", 60) is not None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "null",
        "{}",
        "[" * 5000,
        '{"key": "key", "size": 5, "clips": [1]}',
        '{"key": "key", "size": 5, "clips": [{}]}',
        "\0",
    ],
)
def test_a_damaged_record_means_that_the_shard_is_unfinished(shard, text):
    shard.with_suffix(".json").write_text(text)
    assert read_record(shard, "key", 60) is None
    if '"key"' not in text:
        with pytest.raises(UserError, match="is not finished"):
            key_of(shard)


def test_a_machine_that_starts_no_more_threads_is_said_to_fail():
    class Full:
        def submit(self, work):
            raise RuntimeError("can't start new thread")

    with pytest.raises(MachineFault, match="can't start new thread"):
        list(in_order([("a", lambda: 1)], Full(), ahead=1))


def test_two_runs_never_share_a_scratch_folder(tmp_path):
    """The second waits until the first has ended."""
    scratch, lock = tmp_path / "scratch", tmp_path / ".lock"
    entered, seen = threading.Event(), []

    def second():
        entered.set()
        with scratch_folder(scratch, lock):
            seen.append(sorted(path.name for path in scratch.iterdir()))

    with scratch_folder(scratch, lock):
        (scratch / "mine").write_bytes(b"")
        thread = threading.Thread(target=second)
        thread.start()
        entered.wait()
        thread.join(0.3)
        assert thread.is_alive() and (scratch / "mine").exists()
    thread.join()
    assert seen == [[]] and not scratch.exists()
