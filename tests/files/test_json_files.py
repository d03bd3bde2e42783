"""Small JSON files, whatever is in them."""

import pytest

from actionzoo.errors import UserError
from actionzoo.files.json_files import read_json, require_json, write_json


def test_half_a_surrogate_pair_survives(tmp_path):
    """JSON can say it, UTF-8 cannot."""
    (tmp_path / "x.json").write_text('{"\\ud800": "ü\\udfff"}')
    content = read_json(tmp_path / "x.json")
    write_json(tmp_path / "y.json", content)
    assert read_json(tmp_path / "y.json") == content == {"\ud800": "ü\udfff"}


@pytest.mark.parametrize("data", [b"", b"\xff", b"[]", b"3", b"[" * 100_000, b'{"a": ' + b"9" * 5000 + b"}"])
def test_what_is_no_object_is_none(tmp_path, data):
    (tmp_path / "x.json").write_bytes(data)
    assert read_json(tmp_path / "x.json") == {}
    with pytest.raises(UserError, match=r"x\.json .*; make it anew"):
        require_json(tmp_path / "x.json", "make it anew")
