"""Cuts some frames out of an mp4 file into an mp4 file by rewriting its tables (ISO/IEC 14496-12); nothing is decoded.

Until it is closed, decord decodes its file to the end, whatever frames it is asked for. So of ten seconds it gets only
the one that is needed, from the keyframe before its first frame to its last frame.
"""

import struct
from collections.abc import Iterator

import numpy as np

MAX_FRAMES = 1_000_000


def excerpt(data: bytes, first: int, last: int) -> tuple[bytes, int] | None:
    """An mp4 file with the frames `first` to `last`, both included, and those that a decoder needs before them; and the
    number of its first frame in `data`.

    None for a file unlike those that we encode, which have one track, frames in the order of their times, all shown.
    """
    try:
        return _excerpt(memoryview(data), first, last)
    except (KeyError, ValueError, IndexError, struct.error):
        return None


def _excerpt(data: memoryview, first: int, last: int) -> tuple[bytes, int] | None:
    moov = _boxes(_boxes(data)[b"moov"])
    trak = _boxes(moov[b"trak"])
    mdia = _boxes(trak[b"mdia"])
    minf = _boxes(mdia[b"minf"])
    tables = _boxes(minf[b"stbl"])
    if b"mvex" in moov or b"ctts" in tables or not _shows_all(trak.get(b"edts")):
        return None
    sizes = _sample_sizes(tables[b"stsz"])
    if not 0 <= first <= last < len(sizes):
        return None
    keys = _column(tables[b"stss"], 0, 1) - 1 if b"stss" in tables else np.arange(len(sizes))
    start = int(keys[keys <= first][-1])
    kept = slice(start, last + 1)
    offsets = _sample_offsets(tables, sizes)[kept]
    keys = keys[(keys >= start) & (keys <= last)] - start
    lengths = _repeat(_column(tables[b"stts"], 1, 2), _column(tables[b"stts"], 0, 2))[kept]

    def make(chunk_offset: int) -> bytes:
        stbl = (
            _box(b"stsd", tables[b"stsd"]),
            _table(b"stts", np.stack([np.ones_like(lengths), lengths], axis=1)),
            _table(b"stss", keys + 1),
            _table(b"stsc", np.array([1, len(offsets), 1]), count=1),
            _box(b"stsz", struct.pack(">III", 0, 0, len(offsets)), sizes[kept].astype(">u4").tobytes()),
            _table(b"stco", np.array([chunk_offset])),
        )
        inner = _box(b"minf", *_copies(minf, but=b"stbl"), _box(b"stbl", *stbl))
        inner = _box(b"mdia", *_copies(mdia, but=b"minf"), inner)
        inner = _box(b"trak", _box(b"tkhd", trak[b"tkhd"]), inner)
        return _box(b"ftyp", _boxes(data)[b"ftyp"]) + _box(b"moov", _box(b"mvhd", moov[b"mvhd"]), inner)

    ends = offsets + sizes[kept]
    samples = b"".join(data[offset:end] for offset, end in _runs(offsets, ends))
    head = make(0)
    return make(len(head) + 8) + _box(b"mdat", samples), start


def _shows_all(edts: memoryview | None) -> bool:
    """Whether the whole track is shown, from its first frame on."""
    if edts is None:
        return True
    elst = _boxes(edts)[b"elst"]
    (count,) = struct.unpack_from(">I", elst, 4)
    (media_time,) = struct.unpack_from(*((">q", elst, 16) if elst[0] == 1 else (">i", elst, 12)))
    return bool(count == 1 and media_time == 0)


def _sample_sizes(stsz: memoryview) -> np.ndarray:
    same, count = struct.unpack_from(">II", stsz, 4)
    return (
        _repeat(np.array([same]), np.array([count])) if same else np.frombuffer(stsz, ">u4", count, 12).astype(np.int64)
    )


def _sample_offsets(tables: dict[bytes, memoryview], sizes: np.ndarray) -> np.ndarray:
    if b"stco" in tables:
        chunks = _column(tables[b"stco"], 0, 1)
    else:
        chunks = np.frombuffer(tables[b"co64"], ">u8", offset=8).astype(np.int64)
    first_chunks, per_chunk = _column(tables[b"stsc"], 0, 3) - 1, _column(tables[b"stsc"], 1, 3)
    samples = _repeat(per_chunk, np.diff([*first_chunks, len(chunks)]))  # in each chunk
    before = np.cumsum(sizes) - sizes
    first_samples = np.cumsum(samples) - samples
    if samples.sum() != len(sizes):
        raise ValueError("chunks and samples disagree")
    offsets: np.ndarray = _repeat(chunks - before[first_samples], samples) + before
    return offsets


def _repeat(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """np.repeat, bounded: a damaged table may ask for any number. Raises ValueError."""
    if counts.sum() > MAX_FRAMES:
        raise ValueError(f"{counts.sum()} frames")
    return np.repeat(values, counts)


def _runs(offsets: np.ndarray, ends: np.ndarray) -> Iterator[tuple[int, int]]:
    """(start, end) of the samples' bytes, adjacent ones joined."""
    breaks = np.flatnonzero(offsets[1:] != ends[:-1]) + 1
    for piece in np.split(np.arange(len(offsets)), breaks):
        yield int(offsets[piece[0]]), int(ends[piece[-1]])


def _boxes(data: memoryview) -> dict[bytes, memoryview]:
    """Name -> contents of the boxes side by side in `data`. Raises ValueError for a second trak, moov or mdat."""
    boxes: dict[bytes, memoryview] = {}
    start = 0
    while start + 8 <= len(data):
        size, name = struct.unpack_from(">I4s", data, start)
        header = 8
        if size == 1:
            (size,), header = struct.unpack_from(">Q", data, start + 8), 16
        size = size or len(data) - start
        if name in boxes and name in (b"trak", b"moov", b"mdat"):
            raise ValueError(f"two boxes {name!r}")
        boxes[name] = data[start + header : start + size]
        start += max(size, header)
    return boxes


def _column(table: memoryview, column: int, width: int) -> np.ndarray:
    """One column of a table of 32 bit numbers that begins with their count."""
    (count,) = struct.unpack_from(">I", table, 4)
    return np.frombuffer(table, ">u4", count * width, 8).astype(np.int64)[column::width]


def _box(name: bytes, *contents: bytes | memoryview) -> bytes:
    return struct.pack(">I4s", 8 + sum(map(len, contents)), name) + b"".join(contents)


def _table(name: bytes, rows: np.ndarray, count: int | None = None) -> bytes:
    return _box(name, struct.pack(">II", 0, len(rows) if count is None else count), rows.astype(">u4").tobytes())


def _copies(boxes: dict[bytes, memoryview], but: bytes) -> list[bytes]:
    return [_box(name, contents) for name, contents in boxes.items() if name != but]
