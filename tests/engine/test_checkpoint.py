import os
import pickle

import pytest
import torch

from actionzoo.engine.checkpoint import CheckpointError, load_checkpoint, save_checkpoint


def test_equal_content_gives_equal_bytes_whatever_the_name(tmp_path):
    content = {"meta": {"epoch": 3}, "state_dict": {"w": torch.arange(5.0)}}
    save_checkpoint(tmp_path / "a.pth", content)
    save_checkpoint(tmp_path / "b" / "other.pth", content)
    assert (tmp_path / "a.pth").read_bytes() == (tmp_path / "b" / "other.pth").read_bytes()


def test_what_is_saved_is_loaded(tmp_path):
    save_checkpoint(tmp_path / "a.pth", {"meta": {"epoch": 3}, "state_dict": {"w": torch.arange(5.0)}})
    loaded = load_checkpoint(tmp_path / "a.pth")
    assert loaded["meta"] == {"epoch": 3} and loaded["state_dict"]["w"].tolist() == [0, 1, 2, 3, 4]


def test_a_failed_save_leaves_the_old_file_and_nothing_else(tmp_path):
    save_checkpoint(tmp_path / "a.pth", {"epoch": 1})
    with pytest.raises(Exception, match="pickle"):
        save_checkpoint(tmp_path / "a.pth", {"epoch": lambda: 2})
    assert load_checkpoint(tmp_path / "a.pth") == {"epoch": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["a.pth"]


class _Malicious:
    def __reduce__(self):
        return os.system, ("echo broken in",)


def test_a_malicious_pickle_is_refused_and_not_run(tmp_path, capfd):
    (tmp_path / "bad.pth").write_bytes(pickle.dumps({"state_dict": _Malicious()}))
    with pytest.raises(CheckpointError, match=r"bad\.pth holds more than tensors"):
        load_checkpoint(tmp_path / "bad.pth")
    assert "broken in" not in capfd.readouterr().out


def test_a_cut_off_file_is_told_as_damaged(tmp_path):
    save_checkpoint(tmp_path / "a.pth", {"w": torch.zeros(1000)})
    data = (tmp_path / "a.pth").read_bytes()
    (tmp_path / "a.pth").write_bytes(data[: len(data) // 2])
    with pytest.raises(CheckpointError, match="damaged"):
        load_checkpoint(tmp_path / "a.pth")
