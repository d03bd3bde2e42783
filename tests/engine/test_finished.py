"""What is on the disk of an unfinished test."""

import fcntl

import pytest
import torch

from actionzoo.engine import finished
from actionzoo.engine.evaluate import BatchLogits
from actionzoo.engine.finished import FinishedClips
from actionzoo.errors import UserError


def batch(*video_ids, undecodable=(), is_compared=False):
    logits = torch.stack([torch.full((2, 3), float(len(name))) for name in video_ids]) if video_ids else torch.empty(0)
    labels = torch.zeros(len(video_ids), dtype=torch.int64)
    return BatchLogits(list(video_ids), labels, logits, logits + 1 if is_compared else None, list(undecodable))


def test_saved_clips_are_finished_and_read_back(tmp_path):
    saved = FinishedClips(tmp_path)
    assert saved.begin() == set()
    saved.add(0, batch("a", "bb"))
    saved.add(2, batch("ccc", is_compared=True))
    saved.end()
    saved.close()
    assert FinishedClips(tmp_path).begin() == {"a", "bb", "ccc"}
    logits, fp32_logits = FinishedClips(tmp_path).read()
    assert {name: clip.read()[0, 0].item() for name, clip in logits.items()} == {"a": 1, "bb": 2, "ccc": 3}
    assert list(fp32_logits) == ["ccc"] and fp32_logits["ccc"].read().tolist() == [[4.0] * 3] * 2


def test_a_group_that_lacks_a_clip_is_kept_for_this_time_and_tried_again_next_time(tmp_path):
    saved = FinishedClips(tmp_path)
    saved.begin()
    saved.add(0, batch("a", undecodable=["b: no frames"]))
    saved.add(1, batch("c"))
    saved.end()
    assert set(saved.read()[0]) == {"a", "c"}
    saved.close()
    assert FinishedClips(tmp_path).begin() == {"c"}


def test_it_is_saved_after_so_many_clips(tmp_path, monkeypatch):
    monkeypatch.setattr(finished, "SAVE_CLIPS", 2)
    saved = FinishedClips(tmp_path)
    saved.begin()
    saved.add(0, batch("a"))
    assert not list(tmp_path.glob("part-*"))
    saved.add(1, batch("b"))
    assert [path.name for path in tmp_path.glob("part-*")] == ["part-000000.safetensors"]


def test_it_is_saved_after_a_while_however_few_clips_there_are(tmp_path, monkeypatch):
    monkeypatch.setattr(finished, "SAVE_SECONDS", 0)
    saved = FinishedClips(tmp_path)
    saved.begin()
    saved.add(5, batch("a"))
    assert [path.name for path in tmp_path.glob("part-*")] == ["part-000005.safetensors"]


def test_processes_save_side_by_side(tmp_path):
    first, second = FinishedClips(tmp_path, 0), FinishedClips(tmp_path, 1)
    first.begin()
    for group, (saved, name) in enumerate([(first, "a"), (second, "b"), (first, "c"), (second, "d")]):
        saved.add(group, batch(name, undecodable=["x: gone"] if name in "cd" else ()))
    first.end()
    second.end()
    assert set(first.read()[0]) == {"a", "b", "c", "d"}


def test_a_damaged_part_counts_as_not_done(tmp_path):
    saved = FinishedClips(tmp_path)
    saved.begin()
    saved.add(0, batch("a"))
    saved.save()
    saved.add(1, batch("b"))
    saved.end()
    saved.close()
    part = tmp_path / "part-000000.safetensors"
    part.write_bytes(part.read_bytes()[:-1])
    assert FinishedClips(tmp_path).begin() == {"b"}


def test_two_tests_of_one_thing_do_not_write_over_each_other(tmp_path):
    saved = FinishedClips(tmp_path)
    saved.begin()
    with pytest.raises(UserError, match="the same evaluation is already running"):
        FinishedClips(tmp_path).begin()
    saved.close()
    other = FinishedClips(tmp_path)
    other.begin()
    with open(tmp_path / "lock") as file, pytest.raises(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
