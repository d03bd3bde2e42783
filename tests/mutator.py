"""Damaged and hostile variants of files: bits, pieces, numbers and texts, and values inside of known layouts."""

import io
import json
import random
import re
import struct
import tarfile
import zipfile
from collections.abc import Callable, Sequence
from typing import Any

Change = Callable[[bytes, random.Random], bytes]
"""A variant of a file's bytes."""

MAX_BYTES = 4 * 2**20
"""What is made is no larger: a reader's bound on size has tests of its own."""

NUMBERS = (
    *("-1", "0", "-0", "00", "1", "255", "65536", "2147483648", "4294967296", "9223372036854775807", "1" + "0" * 30),
    *("9" * 5000, "-" + "9" * 5000, "1e999", "-1e999", "1e308", "1e-400", "nan", "NaN", "inf", "-Infinity", "0x10"),
    *("1_000", "1.5", ".5", "٣", "²", "½", "１２", "1e5", "+7", "0b1", "1,5", "12:30:45", "1e400000000"),
)
TEXTS = (
    *("", " ", "\t", "\n", "\r", "\r\n", "\0", "\x1b[31m", "\x7f", "\x85", "\u2028", "\ufeff", "\u202e4pm.exe"),
    *("\ufffd", "中文", "e\u0301", "İ", "ß", "\U0001f600", "\U0010ffff", "'", '"', "''", '"' * 3, "`", "\\", "/", "//"),
    *(".", "..", "../../etc/passwd", "/etc/passwd", "C:\\x", "a/b/c", "-", "--help", "=1+1", "@x", "%s%n", "{}", "[]"),
    *("null", "~", "true", "None", "x" * 300, "x" * 70_000, "," * 500, "a,b", "\xed\xa0\x80"),
    *("folder:", "https://[", "http://a:b@c:99999/", "file:///dev/zero", "http://\0", "models:/x", "ftp://x"),
)
RAW = (
    *(b"\xff", b"\xfe\xff", b"\xff\xfe", b"\xef\xbb\xbf", b"\xed\xa0\x80", b"\xc0\x80", b"\xf4\x90\x80\x80"),
    *(b"\0" * 64, b"\xff" * 8, b"\x80" * 16, b"PK\x03\x04", b"\x1f\x8b\x08", b"{", b"}", b"[" * 3000, b"{" * 3000),
)
VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2**31, 2**63, 2**64, 10**30, int("9" * 4000), 1.5, -0.0, 1e308, float("nan")),
    *(float("inf"), [], {}, [[]], [None], {"": {}}, [0, 0], {"a": 1}, *TEXTS, *NUMBERS[:12], "\ud800", "\udfff"),
)


def mutated(seeds: Sequence[bytes], draw: random.Random, structural: Sequence[Change] = ()) -> bytes:
    """One of the seeds after one to four changes, mostly `structural` ones where there are some."""
    data = draw.choice(seeds)
    for _ in range(draw.choice((1, 1, 1, 2, 2, 4))):
        if structural and draw.random() < 0.6:
            change = draw.choice(structural)
        elif draw.random() < 0.1:
            other = draw.choice(seeds)
            data = data[: draw.randrange(len(data) + 1)] + other[draw.randrange(len(other) + 1) :]
            continue
        else:
            change = draw.choice(GENERIC)
        data = change(data, draw)[:MAX_BYTES]
    return data


# bytes of any kind


def flip_bits(data: bytes, draw: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(draw.choice((1, 1, 3, 30)) if data else 0):
        changed[draw.randrange(len(changed))] ^= 1 << draw.randrange(8)
    return bytes(changed)


def cut_off(data: bytes, draw: random.Random) -> bytes:
    return data[: draw.randrange(len(data) + 1)]


def drop_piece(data: bytes, draw: random.Random) -> bytes:
    start, end = _piece(data, draw)
    return data[:start] + data[end:]


def repeat_piece(data: bytes, draw: random.Random) -> bytes:
    start, end = _piece(data, draw)
    return data[:end] + data[start:end] * draw.choice((1, 2, 50, 2000)) + data[end:]


def overwrite_piece(data: bytes, draw: random.Random) -> bytes:
    start, end = _piece(data, draw)
    return data[:start] + draw.choice((draw.randbytes(end - start), bytes(end - start))) + data[end:]


def insert_odd(data: bytes, draw: random.Random) -> bytes:
    at = draw.randrange(len(data) + 1)
    odd = draw.choice((draw.choice(RAW), draw.choice(TEXTS).encode(errors="surrogatepass")))
    return data[:at] + odd + data[at:]


def change_number(data: bytes, draw: random.Random) -> bytes:
    found = list(re.finditer(rb"-?\d+(\.\d+)?", data[:100_000]))
    if not found:
        return flip_bits(data, draw)
    start, end = draw.choice(found).span()
    return data[:start] + draw.choice(NUMBERS).encode() + data[end:]


def change_word(data: bytes, draw: random.Random) -> bytes:
    """In one place or in all."""
    found = list(re.finditer(rb"[A-Za-z_]{2,}", data[:100_000]))
    if not found:
        return flip_bits(data, draw)
    word, other = draw.choice(found), draw.choice(found)[0]
    new = draw.choice((other, draw.choice(TEXTS).encode(errors="surrogatepass"), draw.choice(NUMBERS).encode()))
    if draw.random() < 0.3:
        return data.replace(word[0], new)
    return data[: word.start()] + new + data[word.end() :]


def other_encoding(data: bytes, draw: random.Random) -> bytes:
    text = data.decode(errors="replace")
    encoding = draw.choice(("utf-16", "utf-16-le", "utf-32", "utf-8-sig", "latin-1", "cp037", "utf-7"))
    return text.encode(encoding, errors="replace")


GENERIC: tuple[Change, ...] = (
    *(flip_bits, cut_off, drop_piece, repeat_piece, overwrite_piece, insert_odd, change_number, change_word),
    other_encoding,
)


def _piece(data: bytes, draw: random.Random) -> tuple[int, int]:
    start = draw.randrange(len(data) + 1)
    return start, min(len(data), start + draw.choice((1, 4, 16, 100, 1000)))


# texts with lines and cells


def change_cell(data: bytes, draw: random.Random) -> bytes:
    """A cell of a CSV, or a word of a list, becomes something else, is doubled, dropped or swapped with another."""
    lines = data.split(b"\n")
    number = draw.randrange(len(lines))
    separator = b"," if b"," in lines[number] else b" "
    cells = lines[number].split(separator)
    place = draw.randrange(len(cells))
    match draw.randrange(5):
        case 0:
            cells[place] = draw.choice(TEXTS).encode(errors="surrogatepass")
        case 1:
            cells[place] = draw.choice(NUMBERS).encode()
        case 2:
            cells.insert(place, draw.choice(cells))
        case 3:
            del cells[place]
        case 4:
            draw.shuffle(cells)
    lines[number] = separator.join(cells)
    return b"\n".join(lines)


def change_line(data: bytes, draw: random.Random) -> bytes:
    lines = data.split(b"\n")
    number = draw.randrange(len(lines))
    match draw.randrange(3):
        case 0:
            lines.insert(number, draw.choice(lines))
        case 1:
            del lines[number]
        case 2:
            lines[number] = draw.choice((b"", b'"', b"#", b"\r", b"x" * 200_000, b'"' + b"y" * 140_000 + b'"'))
    return b"\n".join(lines)


TABLE = (change_cell, change_cell, change_line)


# JSON and YAML


def change_json(data: bytes, draw: random.Random) -> bytes:
    """A value somewhere inside becomes another one, goes, or gets a key too many."""
    try:
        content = json.loads(data)
    except (ValueError, RecursionError):
        return change_number(data, draw)
    changed = change_value(content, draw)
    try:
        return json.dumps(changed, indent=draw.choice((None, 1))).encode()
    except (ValueError, RecursionError):
        return change_number(data, draw)


def change_value(content: Any, draw: random.Random) -> Any:
    """The same with one value, at a random depth, replaced. Changes `content`."""
    place = content
    while isinstance(place, dict | list) and place:
        keys = list(place) if isinstance(place, dict) else range(len(place))
        key = draw.choice(keys)
        inner = place[key]
        if not isinstance(inner, dict | list) or not inner or draw.random() < 0.25:
            _replace(place, key, draw)
            return content
        place = inner
    return draw.choice(VALUES)


def _replace(place: dict | list, key: Any, draw: random.Random) -> None:
    match draw.randrange(6):
        case 0:
            del place[key]
        case 1 if isinstance(place, dict):
            place[draw.choice(("", "x", "__class__", "__metadata__", "../x", "\ud800", str(10**40)))] = place[key]
        case 2:
            for _ in range(draw.choice((1, 10, 400))):
                place[key] = [place[key]]
        case _:
            place[key] = draw.choice(VALUES)


def nest(data: bytes, draw: random.Random) -> bytes:
    """Far more brackets than any reader's stack has room for."""
    depth = draw.choice((200, 5000, 100_000))
    start, end = draw.choice(
        ((b"[", b"]"), (b'{"a":', b"}"), (b"- ", b""), (b"{a: ", b"}"), (b"? ", b""), (b"(", b")"))
    )
    inner = draw.choice((b"1", b"", data[:1000]))
    return start * depth + inner + end * draw.choice((depth, 0))


JSON = (change_json, change_json, change_json, nest)

_YAML_VALUES = (
    *(b"*nothing", b"&a [*a]", b"&a {b: *a}", b"!!python/object/apply:os.system [true]", b"!!binary x", b"!!set {a}"),
    *(b"!!int x", b"!!float x", b"!!timestamp x", b"2001-02-30", b"2001-01-01", b"0o8", b"190:20:30", b"|", b">"),
    *(b"<<", b"{<<: 1}", b"{<<: [1]}", b"{? [a] : b}", b"{[a]: b}", b"{{a: b}: c}", b"!", b"!!", b"!x", b"@", b"%"),
    *(b"[1, 2", b"{a", b"'", b'"', b'"\\ud800"', b'"\\x00"', b"\t", b"---", b"...", b"%YAML 9.9", b"{1: 2, 1: 3}"),
    *(b"? a", b"- -", b"~", b"[]", b"{}", b"yes", b".nan", b".inf", b"1e-4", b"0x" + b"f" * 5000, b"9" * 5000),
    *(b"1" + b":0" * 3000, b"+1_000", b"!!null x", b"!!bool x", b"!!omap [a]", b"!!pairs [[a]]"),
)


def change_yaml(data: bytes, draw: random.Random) -> bytes:
    """What follows a colon becomes another value."""
    found = list(re.finditer(rb"(?<=: )[^\n,{}\[\]]+", data))
    if not found:
        return change_word(data, draw)
    start, end = draw.choice(found).span()
    value = draw.choice((draw.choice(_YAML_VALUES), draw.choice(NUMBERS).encode(), draw.choice(TEXTS).encode()))
    return data[:start] + value + data[end:]


def laugh(data: bytes, draw: random.Random) -> bytes:
    """Aliases of aliases: some hundred bytes that stand for billions of values; and mappings merged likewise."""
    depth = draw.choice((10, 30))
    if draw.random() < 0.5:
        lines = [b"a0: &a0 [x, x]"] + [b"a%d: &a%d [*a%d, *a%d]" % (n, n, n - 1, n - 1) for n in range(1, depth)]
    else:
        lines = [b"a0: &a0 {k: 1}"] + [b"a%d: &a%d {<<: [*a%d, *a%d]}" % (n, n, n - 1, n - 1) for n in range(1, depth)]
    return b"\n".join(lines) + b"\n" + draw.choice((b"", data))


YAML = (change_yaml, change_yaml, change_yaml, change_yaml, nest, laugh, change_line)


# layouts with headers


def change_tar_header(data: bytes, draw: random.Random) -> bytes:
    """A field of a block becomes another one, mostly with a checksum that fits."""
    if len(data) < 1024:
        return flip_bits(data, draw)
    changed = bytearray(data)
    heads = [at for at in range(0, len(data) - 511, 512) if data[at + 257 : at + 262] == b"ustar"]
    at = draw.choice(heads) if heads else 512 * draw.randrange(len(data) // 512)
    match draw.randrange(5):
        case 0:
            changed[at + 156] = draw.choice(b"0127xgLKSDV3456\0A")
        case 1:
            changed[at + 124 : at + 136] = draw.choice(
                (b"77777777777\0", b"\xff" * 12, b"\x80" + b"\0" * 7 + b"\xff" * 4, b"0000000-100\0", bytes(12))
            )
        case 2:
            changed[at : at + 100] = draw.choice(TEXTS).encode(errors="surrogatepass")[:100].ljust(100, b"\0")
        case 3:
            changed[at + draw.randrange(512)] = draw.randrange(256)
        case 4:
            changed[at : at + 512] = draw.randbytes(512)
    if draw.random() < 0.8:
        changed[at + 148 : at + 156] = b" " * 8
        changed[at + 148 : at + 156] = b"%06o\0 " % sum(changed[at : at + 512])
    return bytes(changed)


def add_pax_words(data: bytes, draw: random.Random) -> bytes:
    """An extended header before everything, whose values are odd."""
    member, made = tarfile.TarInfo("a.mp4"), io.BytesIO()
    keys = (
        "path",
        "size",
        "mtime",
        "uid",
        "linkpath",
        "GNU.sparse.map",
        "GNU.sparse.major",
        "GNU.sparse.size",
        "charset",
    )
    member.pax_headers = {
        draw.choice(keys): draw.choice((draw.choice(NUMBERS), draw.choice(TEXTS)[:500])) for _ in range(3)
    }
    try:
        with tarfile.open(fileobj=made, mode="w", format=tarfile.PAX_FORMAT) as archive:
            archive.addfile(member)
    except (ValueError, UnicodeError):
        return flip_bits(data, draw)
    return made.getvalue()[: -tarfile.RECORDSIZE].rstrip(b"\0").ljust(512 * 3, b"\0") + data


TAR = (change_tar_header, change_tar_header, add_pax_words)


def change_npy_header(data: bytes, draw: random.Random) -> bytes:
    """The text that says type and shape, its length told rightly or not."""
    if len(data) < 12:
        return flip_bits(data, draw)
    length = struct.unpack("<H", data[8:10])[0]
    text = data[10 : 10 + length]
    text = draw.choice((change_number, change_word, insert_odd, flip_bits, cut_off))(text, draw)[:60_000]
    told = len(text) if draw.random() < 0.8 else draw.randrange(2**16)
    return data[:8] + struct.pack("<H", told) + text + data[10 + length :]


def change_npy_values(data: bytes, draw: random.Random) -> bytes:
    """An offset or a size."""
    at = 10 + struct.unpack("<H", data[8:10])[0] if len(data) >= 10 else 0
    places = range(at, len(data) - 7, 8)
    if not places:
        return flip_bits(data, draw)
    place = draw.choice(places)
    value = draw.choice((0, 1, -1, 512, 2**31, 2**62, 2**63 - 1, -(2**63), draw.randrange(10_000)))
    return data[:place] + struct.pack("<q", value) + data[place + 8 :]


NPY = (change_npy_header, change_npy_values)


def change_safetensors(data: bytes, draw: random.Random) -> bytes:
    """The header's JSON, its length told rightly or not."""
    if len(data) < 8:
        return flip_bits(data, draw)
    length = min(struct.unpack("<Q", data[:8])[0], len(data))
    text = draw.choice((change_json, change_json, change_json, change_number, nest))(data[8 : 8 + length], draw)
    told = len(text) if draw.random() < 0.8 else draw.choice((0, 1, 2**31, 2**62, 2**64 - 1, len(data), len(text) + 1))
    return struct.pack("<Q", told) + text + data[8 + length :]


def change_metadata(data: bytes, draw: random.Random) -> bytes:
    """A text in a safetensors file's metadata that is JSON itself."""
    try:
        length = struct.unpack("<Q", data[:8])[0]
        header = json.loads(data[8 : 8 + length])
        texts = header["__metadata__"]
        key = draw.choice(list(texts))
        texts[key] = change_json(texts[key].encode(), draw).decode(errors="replace")
        text = json.dumps(header).encode()
    except (struct.error, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return flip_bits(data, draw)
    return struct.pack("<Q", len(text)) + text + data[8 + length :]


SAFETENSORS = (change_safetensors, change_safetensors, change_metadata)


def change_zip_part(data: bytes, draw: random.Random) -> bytes:
    """A part of a zip, torch's pickle above all, its checksum made anew."""
    made = io.BytesIO()
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(made, "w") as new:
            names = old.namelist()
            pickles = [name for name in names if name.endswith("data.pkl")]
            chosen = draw.choice(pickles if pickles and draw.random() < 0.7 else names)
            for name in names:
                part = old.read(name)
                new.writestr(name, draw.choice(GENERIC)(part, draw)[:MAX_BYTES] if name == chosen else part)
    except (
        zipfile.BadZipFile,
        ValueError,
        LookupError,
        OSError,
        NotImplementedError,
        RuntimeError,
        struct.error,
        EOFError,
    ):
        return flip_bits(data, draw)
    return made.getvalue()


ZIP = (change_zip_part, change_zip_part)


def change_boxes(data: bytes, draw: random.Random) -> bytes:
    """Of an mp4 file: two boxes change their names, or a number in a table becomes as large as it gets."""
    changed = bytearray(data)
    names = (b"ftyp", b"moov", b"mdat", b"trak", b"stsd", b"stts", b"stsz", b"stco", b"stsc", b"avcC", b"tkhd", b"elst")
    places = [place for name in names if (place := data.find(name)) >= 0]
    if len(places) < 2:
        return flip_bits(data, draw)
    if draw.random() < 0.3:
        one, other = draw.sample(places, 2)
        changed[one : one + 4], changed[other : other + 4] = data[other : other + 4], data[one : one + 4]
    else:
        at = draw.choice(places) + draw.randrange(-4, 40)
        changed[at : at + 4] = draw.choice((b"\xff" * 4, b"\x7f\xff\xff\xff", b"\0\0\xff\xff", bytes(4)))
    return bytes(changed[: len(data)])


MP4 = (change_boxes,)


def odd_name(draw: random.Random) -> bytes:
    """A file's name as a folder may hold it, which need not be UTF-8."""
    name = draw.choice((draw.choice(TEXTS).encode(errors="surrogatepass"), draw.choice(RAW), draw.randbytes(12)))
    return name.replace(b"/", b"_").replace(b"\0", b"_")[:200].strip(b".") or b"_"
