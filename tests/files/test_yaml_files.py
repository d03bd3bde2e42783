"""A file of settings is read within bounds, or refused in a sentence that names the line."""

import codecs

import pytest

from actionzoo.errors import UserError
from actionzoo.files import yaml_files
from actionzoo.files.yaml_files import read_yaml


def read(tmp_path, text):
    (tmp_path / "params.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_yaml(tmp_path / "params.yaml", "run from the project's folder")


def test_plain_values_are_read(tmp_path):
    text = "a: {b: [1, 1.5, yes, null, text]}\n"
    assert read(tmp_path, text) == {"a": {"b": [1, 1.5, True, None, "text"]}}


def test_aliases_as_other_programs_write_them_are_read(tmp_path):
    assert read(tmp_path, "a: &id001 {b: 1}\nc: *id001\nd: {<<: *id001, e: 2}\n")["d"] == {"b": 1, "e": 2}


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_a_byte_order_mark_is_no_part_of_the_first_key(tmp_path, encoding):
    assert read(tmp_path, "ä: 1\r\n".encode(encoding)) == {"ä": 1}


LAUGHS = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{key}: &{key} [{','.join([f'*{before}'] * 9)}]\n" for before, key in zip("abcdefghi", "bcdefghij", strict=True)
)

REFUSED = {
    "a billion laughs": (LAUGHS, "more than 200000 values"),
    "an alias of itself": ("a: &a [*a]", "line 1: an alias .* stands inside"),
    "an alias without anchor": ("a: *b", "line 1: found undefined alias"),
    "a deep list": ("a: " + "[" * 5000, "line 1: more than 40 levels"),
    "a deep mapping": ("".join(f"{' ' * depth}a:\n" for depth in range(200)), r"line 4\d: more than 40 levels"),
    "a key twice": ("data:\n  name: a\n  name: b\n", r"line 3: the key 'name' is there already, in line 2"),
    "a section twice": ("a: 1\nb: 2\na: 3\n", "line 3: the key 'a' is there already, in line 1"),
    "a tag that does not fit": ("a: !!bool x", "a tag .* does not fit its value, 'x'"),
    "a time that is none": ("a: !!timestamp x", "a tag .* does not fit its value"),
    "a list as a key": ("? [a]\n: 1", "line 1: a key must be a word"),
    "a number of 5,000 digits": ("a: " + "9" * 5000, "more than 18 digits"),
    "a date that is none": ("a: 2026-13-45", "month"),
    "python's own tags": ("a: !!python/object/apply:os.system [id]", "line 1: could not determine a constructor"),
    "a list": ("[1]", "must hold sections, found list"),
    "nothing": ("", "must hold sections, found NoneType"),
    "an open bracket": ("a: [", "line 1"),
    "latin-1": ("ä: 1".encode("latin-1"), "not text in UTF-8"),
    "zero bytes": (b"a: \0", "zero bytes"),
    "half a mark": (codecs.BOM_UTF16_LE + b"a", "not text"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_would_mislead_is_refused(tmp_path, kind):
    text, said = REFUSED[kind]
    with pytest.raises(UserError, match=said):
        read(tmp_path, text)


def test_a_file_larger_than_any_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(yaml_files, "MAX_BYTES", 100)
    with pytest.raises(UserError, match="larger than"):
        read(tmp_path, "a: 1\n" * 100)
