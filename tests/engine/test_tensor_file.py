import json
import struct

import pytest
import torch
from safetensors import safe_open

from actionzoo.engine.tensor_file import DamagedFile, Pieces, read_header, read_tensors, write_tensors

LOGITS = torch.arange(24, dtype=torch.float32).view(4, 2, 3)


def write(path, pieces=1):
    labels = Pieces((4,), torch.int64, [torch.tensor([1, 0, 2, -1])])
    logits = Pieces((4, 2, 3), torch.float32, LOGITS.split(pieces))
    write_tensors(path, {"labels": labels, "logits": logits}, {"about": "naïve"})
    return path


def test_what_was_written_piece_by_piece_is_read_whole(tmp_path):
    tensors, metadata = read_tensors(write(tmp_path / "a"))
    assert torch.equal(tensors["logits"], LOGITS) and tensors["labels"].tolist() == [1, 0, 2, -1]
    assert metadata == {"about": "naïve"}


def test_the_format_is_that_of_safetensors(tmp_path):
    with safe_open(write(tmp_path / "a"), framework="pt") as file:
        assert file.metadata() == {"about": "naïve"}
        assert torch.equal(file.get_tensor("logits"), LOGITS)


def test_pieces_leave_no_trace_in_the_bytes(tmp_path):
    assert write(tmp_path / "a", 1).read_bytes() == write(tmp_path / "b", 3).read_bytes()


def test_a_strided_tensor_is_written_as_it_reads(tmp_path):
    strided = LOGITS.transpose(1, 2)
    write_tensors(tmp_path / "a", {"x": Pieces((4, 3, 2), torch.float32, [strided])}, {})
    assert torch.equal(read_tensors(tmp_path / "a")[0]["x"], strided)


def test_writing_to_what_was_read_does_not_reach_the_file(tmp_path):
    before = write(tmp_path / "a").read_bytes()
    read_tensors(tmp_path / "a")[0]["logits"].zero_()
    assert (tmp_path / "a").read_bytes() == before


def test_a_tensor_without_values_is_one_all_the_same(tmp_path):
    write_tensors(tmp_path / "a", {"x": Pieces((0, 3), torch.float32, [])}, {})
    assert read_tensors(tmp_path / "a")[0]["x"].shape == (0, 3)


@pytest.mark.parametrize("size", [0, 5, 60, -1])
def test_a_file_that_was_cut_off_is_told(tmp_path, size):
    path = write(tmp_path / "a")
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(DamagedFile, match="no whole safetensors file"):
        read_header(path)


def test_another_kind_of_file_is_told(tmp_path):
    (tmp_path / "a").write_text("video_id,label\n" * 10)
    with pytest.raises(DamagedFile, match="a is no whole safetensors file"):
        read_tensors(tmp_path / "a")


def lying(path, header: object, data: bytes = bytes(96)):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def entry(shape: object, offsets: object = (0, 96), dtype: object = "F32") -> dict:
    return {"x": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}


@pytest.mark.parametrize(
    "header",
    [
        entry([2, 3, 4.0]),
        entry([2, -3, -4]),
        entry([-24]),
        entry([True, 24]),
        entry([2**62, 2**62]),
        entry([0, 2**70]),
        entry([10**4000, 0]),
        entry("24"),
        entry(None),
        entry([[24]]),
        entry([1] * 100 + [24]),
        entry([24], [0, 96, 0]),
        entry([24], [-8, 88]),
        entry([24], [0.0, 96]),
        entry([24], [96, 0]),
        entry([24], None),
        entry([24], dtype="U8"),
        entry([24], dtype=["F32"]),
        entry([24], dtype=None),
        entry([12]),
        {"x": 3},
        {"x": None},
        {**entry([24]), "y": entry([24])["x"]},
        {**entry([4], [0, 16]), "y": entry([4], [80, 96])["x"]},
        {**entry([24]), "__metadata__": {"about": 3}},
        {**entry([24]), "__metadata__": [1]},
        [1, 2],
        "text",
        None,
        b"[" * 100_000,
        b'{"x": ' + b"9" * 10_000 + b"}",
        b"\xff\xfe",
        b"",
    ],
    ids=range(33),
)
def test_a_header_that_lies_is_told_and_not_believed(tmp_path, header):
    with pytest.raises(DamagedFile, match="no whole safetensors file"):
        read_tensors(lying(tmp_path / "a", header))


def test_a_tensor_that_is_not_aligned_is_told(tmp_path):
    header = json.dumps(entry([24])).encode()
    header += b" " * (-len(header) % 4 + 1)
    with pytest.raises(DamagedFile, match="is not aligned"):
        read_tensors(lying(tmp_path / "a", header))


def test_a_header_longer_than_any_file_is_told(tmp_path):
    (tmp_path / "a").write_bytes(struct.pack("<Q", 2**63) + b"{}")
    with pytest.raises(DamagedFile, match="it ends within its header"):
        read_header(tmp_path / "a")


def test_a_folder_is_told(tmp_path):
    with pytest.raises(DamagedFile, match="is a folder"):
        read_tensors(tmp_path)
