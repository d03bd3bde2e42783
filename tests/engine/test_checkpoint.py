import io
import os
import pickle
import zipfile

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


@pytest.mark.parametrize("name", ["state.pth", "state.safetensors", "state.bin"])
@pytest.mark.parametrize(
    "data",
    [b"", b"\x80\x02", b"PK\x03\x04" + bytes(60), bytes(9) + b"{", (2**40).to_bytes(8, "little") + b"{}", b"\x93NUMPY"],
    ids=["empty", "cut", "zip", "zeros", "header", "numpy"],
)
def test_what_is_no_checkpoint_is_told_whatever_it_is_called(tmp_path, name, data):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(CheckpointError, match=name):
        load_checkpoint(tmp_path / name)


def test_a_checkpoint_is_read_whatever_it_is_called(tmp_path):
    save_checkpoint(tmp_path / "state.safetensors", {"meta": {}})
    assert load_checkpoint(tmp_path / "state.safetensors") == {"meta": {}}


@pytest.mark.parametrize(
    "content", [[1, 2], torch.ones(2), "text", None, 3], ids=lambda content: type(content).__name__
)
def test_a_file_of_something_else_is_no_checkpoint(tmp_path, content):
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match="no checkpoint of this program"):
        load_checkpoint(tmp_path / "a.pth")


def test_a_folder_is_no_checkpoint(tmp_path):
    with pytest.raises(CheckpointError, match="is a folder"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize("place", [0.1, 0.3, 0.5, 0.7, 0.9])
def test_one_changed_bit_anywhere_is_found(tmp_path, place):
    save_checkpoint(tmp_path / "a.pth", {"weights": torch.randn(10_000)})
    data = bytearray((tmp_path / "a.pth").read_bytes())
    data[int(place * len(data))] ^= 4
    (tmp_path / "a.pth").write_bytes(data)
    with pytest.raises(CheckpointError, match=r"a\.pth is damaged"):
        load_checkpoint(tmp_path / "a.pth")


def test_a_directory_of_parts_that_points_before_the_file_is_told(tmp_path):
    save_checkpoint(tmp_path / "a.pth", {"weights": torch.randn(10)})
    data = bytearray((tmp_path / "a.pth").read_bytes())
    end = data.rindex(b"PK\x05\x06")
    data[end:end] = bytes(40)  # the directory seems to begin later than it does
    (tmp_path / "a.pth").write_bytes(data)
    with pytest.raises(CheckpointError, match=r"a\.pth is damaged"):
        load_checkpoint(tmp_path / "a.pth")
    for value in (b"\xff\xff\xff\x7f", b"\xff\xff\xff\xff"):
        save_checkpoint(tmp_path / "b.pth", {"weights": torch.randn(10)})
        data = bytearray((tmp_path / "b.pth").read_bytes())
        entry = data.index(b"PK\x01\x02")
        data[entry + 42 : entry + 46] = value
        (tmp_path / "b.pth").write_bytes(data)
        with pytest.raises(CheckpointError, match=r"b\.pth is damaged"):
            load_checkpoint(tmp_path / "b.pth")


@pytest.mark.parametrize("container", ["zip", "legacy", "raw"])
def test_a_name_of_a_hundred_thousand_letters_is_refused_before_torch_composes_an_error(tmp_path, container):
    """torch looks through its own message with an expression that takes the square of its length."""
    path = tmp_path / "long.pth"
    bomb = b"\x80\x02ctorch\n" + b"rebuild" * 15_000 + b"\n."
    if container == "raw":
        path.write_bytes(bomb)
    else:
        torch.save({"state_dict": {}}, path, _use_new_zipfile_serialization=container == "zip")
        if container == "legacy":  # behind number, version and system
            first = io.BytesIO(path.read_bytes())
            for _ in range(3):
                pickle.load(first)
            path.write_bytes(path.read_bytes()[: first.tell()] + bomb)
        else:
            with zipfile.ZipFile(path) as parts:
                contents = {name: parts.read(name) for name in parts.namelist()}
            with zipfile.ZipFile(path, "w") as parts:
                for name, content in contents.items():
                    parts.writestr(name, bomb if name.endswith("data.pkl") else content)
    with pytest.raises(CheckpointError, match="a name of more than 300 letters"):
        load_checkpoint(path)
