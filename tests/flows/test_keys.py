"""The files that hold the key of the local server."""

import os
import stat

import pytest

from actionzoo.files.atomic import atomic_write
from flows.server.keys import key_file, new_key, settings_file


def mode_of(path):
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def open_umask():
    before = os.umask(0)
    yield
    os.umask(before)


def test_a_file_with_a_mode_has_it_before_anything_is_written(tmp_path, open_umask):
    (tmp_path / ".secret.partial").touch(mode=0o666)  # as a killed process may have left it
    with atomic_write(tmp_path / "secret", mode=0o600) as file:
        assert mode_of(tmp_path / ".secret.partial") == 0o600
        file.write(b"word")
    assert mode_of(tmp_path / "secret") == 0o600


def test_a_file_with_a_mode_is_not_written_through_a_link(tmp_path):
    (tmp_path / "elsewhere").touch()
    (tmp_path / ".secret.partial").symlink_to(tmp_path / "elsewhere")
    with atomic_write(tmp_path / "secret", mode=0o600) as file:
        file.write(b"word")
    assert (tmp_path / "elsewhere").read_bytes() == b""
    assert (tmp_path / "secret").read_bytes() == b"word"


def test_only_its_user_reads_the_key_while_there_is_one(tmp_path, open_umask):
    home, key = tmp_path / "home", new_key()
    with key_file(home, key) as path:
        assert path.read_text().strip() == key
        assert (mode_of(home), mode_of(path)) == (0o700, 0o600)
    assert list(home.iterdir()) == []


def test_no_two_keys_are_the_same():
    assert len({new_key() for _ in range(100)}) == 100


def test_the_settings_hold_the_key_until_the_end(tmp_path, open_umask):
    with settings_file(tmp_path, "actionzoo:word") as is_written:
        assert is_written
        assert 'auth_string = "actionzoo:word"' in (tmp_path / "prefect.toml").read_text()
        assert mode_of(tmp_path / "prefect.toml") == 0o600
    assert list(tmp_path.iterdir()) == []


def test_settings_that_the_user_wrote_stay_as_they_are(tmp_path):
    (tmp_path / "prefect.toml").write_text("[api]\n")
    with settings_file(tmp_path, "actionzoo:word") as is_written:
        assert not is_written
    assert (tmp_path / "prefect.toml").read_text() == "[api]\n"


def test_settings_of_a_server_that_runs_stay_and_those_of_a_killed_one_are_replaced(tmp_path):
    with settings_file(tmp_path, "actionzoo:first"):
        with settings_file(tmp_path, "actionzoo:second") as is_written:
            assert not is_written
        left = (tmp_path / "prefect.toml").read_text()
        assert "first" in left
    (tmp_path / "prefect.toml").write_text(left)
    with settings_file(tmp_path, "actionzoo:third") as is_written:
        assert is_written
        assert "third" in (tmp_path / "prefect.toml").read_text()
