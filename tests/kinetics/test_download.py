"""Downloads from a real server on loopback that breaks off, serves another version, or lacks files."""

import hashlib
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from actionzoo.errors import UserError
from actionzoo.files.data_folder import DataFolder
from actionzoo.kinetics.download import TERMS, download, parse_parts
from actionzoo.kinetics.execution import Execution
from actionzoo.kinetics.inventory import ArchivedFile, FetchedSplit, read_inventory
from actionzoo.kinetics.serve import FolderHandler, serve
from actionzoo.kinetics.synthetic import OFFICIAL, write_archive
from actionzoo.kinetics.transfer import Patience
from tests.kinetics.data_stages import make_archive
from tests.kinetics.files import contents
from tests.kinetics.small_mirror import SlowHandler, write_split


@pytest.fixture
def mirror(tmp_path) -> Path:
    """One part of train, three of val, and all that belongs to them; the clips are noise: downloads do not decode."""
    root = tmp_path / "mirror" / "400"
    annotation = "label,youtube_id\nabseiling,aaaaaaaaaaa\n"
    for split, num_parts in {"train": 1, "val": 3}.items():
        noise = [hashlib.shake_256(f"{split} {part}".encode()).digest(400_000) for part in range(num_parts)]
        write_split(root, split, [{"aaaaaaaaaaa_000000_000010.mp4": data} for data in noise], annotation)
    (root / "annotations/test.csv").write_text(annotation)
    write_archive(root / "replacement_for_corrupted_k400.tgz", {"x/bbbbbbbbbbb_000000_000010.mp4": b"b"})
    return root.parent


@pytest.fixture
def fetch(tmp_path):
    def run(source, splits=("train", "val"), parts="all", **options) -> str:
        execution = Execution(**{"scratch": tmp_path / "scratch", "jobs": 2} | options)
        patience = Patience(retries=2, backoff_seconds=0.01)
        return download(
            str(source), DataFolder.at(tmp_path / "archive"), execution, splits=splits, parts=parts, patience=patience
        )

    return run


def same_as_mirror(archive: Path, mirror: Path) -> bool:
    return all(
        data == (mirror / "400" / name).read_bytes()
        for name, data in contents(archive).items()
        if name != "inventory.json"
    )


class Recording(FolderHandler):
    """Notes what it was asked for."""

    asked: list[tuple[str, str, str | None]]

    def do_GET(self):
        self.asked.append(("GET", self.path, self.headers.get("Range")))
        super().do_GET()


@pytest.fixture
def recording():
    return type("Fresh", (Recording,), {"asked": []})


def test_a_server_says_nothing_of_those_who_hang_up(tmp_path, capfd):
    (tmp_path / "large").write_bytes(bytes(1 << 24))
    with serve(tmp_path) as url:
        address = ("127.0.0.1", int(url.rpartition(":")[2]))
        for request in (b"GET /large HTTP/1.1\r\n\r\n", b"GET /lar"):
            with socket.create_connection(address) as client:
                # closing sends a reset instead of a goodbye
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                client.sendall(request)
                time.sleep(0.1)
        assert httpx.get(f"{url}/large").status_code == 200
    assert capfd.readouterr().err == ""


def test_the_archive_folder_holds_the_mirrors_files_and_the_inventory(mirror, fetch, tmp_path):
    with serve(mirror) as url:
        last_line = fetch(url)
    assert set(contents(tmp_path / "archive")) == {
        "inventory.json",
        "annotations/test.csv",
        "annotations/train.csv",
        "annotations/val.csv",
        "replacement_for_corrupted_k400.tgz",
        "train/part_0.tar.gz",
        "val/part_0.tar.gz",
        "val/part_1.tar.gz",
        "val/part_2.tar.gz",
    }
    assert same_as_mirror(tmp_path / "archive", mirror)
    assert last_line.startswith("download: 8 files, 0.00 GB, 8 of them fetched now")


def test_the_inventory_says_what_is_there(mirror, fetch, tmp_path):
    with serve(mirror) as url:
        fetch(url)
    inventory = read_inventory(tmp_path / "archive")
    part = (mirror / "400/val/part_1.tar.gz").read_bytes()
    assert inventory.part("val", 1) == "val/part_1.tar.gz"
    assert inventory.files["val/part_1.tar.gz"] == ArchivedFile(
        etag=f'"{hashlib.sha256(part).hexdigest()[:32]}"',
        sha256=hashlib.sha256(part).hexdigest(),
        size=len(part),
        members=1,
    )
    assert inventory.splits == {"train": FetchedSplit((0,), 1), "val": FetchedSplit((0, 1, 2), 3)}


@pytest.mark.parametrize(
    "spelling", ["{folder}", "{folder}/400", "{folder}/", "file://{folder}", "{url}/400", "{url}/400/"]
)
def test_the_source_may_be_url_or_folder_root_or_400(mirror, fetch, tmp_path, spelling):
    with serve(mirror) as url:
        fetch(spelling.format(folder=mirror, url=url))
    assert same_as_mirror(tmp_path / "archive", mirror)


def test_what_is_there_is_not_fetched_again(mirror, fetch, recording, tmp_path):
    with serve(mirror, recording) as url:
        fetch(url)
        before = contents(tmp_path / "archive")
        recording.asked.clear()
        last_line = fetch(url)
    assert {path for _, path, _ in recording.asked} == {"/400/train/k400_train_path.txt", "/400/val/k400_val_path.txt"}
    assert contents(tmp_path / "archive") == before
    assert ", 0 of them fetched now" in last_line


def test_scratch_may_be_thrown_away_afterwards(mirror, fetch, recording, tmp_path):
    with serve(mirror, recording) as url:
        fetch(url)
        recording.asked.clear()
        fetch(url, scratch=tmp_path / "another")
    assert not [path for _, path, _ in recording.asked if path.endswith("gz")]


def test_a_file_that_changed_at_the_source_is_fetched_again(mirror, fetch, tmp_path):
    with serve(mirror) as url:
        fetch(url)
        write_archive(mirror / "400/val/part_1.tar.gz", {"new.mp4": b"new"})
        assert ", 1 of them fetched now" in fetch(url)
    assert same_as_mirror(tmp_path / "archive", mirror)


def test_a_file_that_went_lost_is_fetched_again(mirror, fetch, tmp_path):
    with serve(mirror) as url:
        fetch(url)
        (tmp_path / "archive/val/part_1.tar.gz").unlink()
        assert ", 1 of them fetched now" in fetch(url)
    assert same_as_mirror(tmp_path / "archive", mirror)


def test_only_the_parts_asked_for_are_fetched(mirror, fetch, tmp_path):
    with serve(mirror) as url:
        fetch(url, splits=["val"], parts="0,2")
    assert read_inventory(tmp_path / "archive").splits == {"val": FetchedSplit((0, 2), 3)}
    assert not (tmp_path / "archive/val/part_1.tar.gz").exists()


@pytest.mark.parametrize(
    "text, numbers", [("all", None), ("0-2", {0, 1, 2}), ("0,3,5-6", {0, 3, 5, 6}), (" 1 , 2 ", {1, 2})]
)
def test_parts_are_numbers_and_ranges(text, numbers):
    assert parse_parts(text) == numbers


@pytest.mark.parametrize("text", ["", "3-1", "a", "1;2", "-1", "every"])
def test_other_parts_are_refused_with_an_example(text):
    with pytest.raises(UserError, match="write all, or numbers like"):
        parse_parts(text)


class BreaksOff(Recording):
    """Sends the first half of what is left of an archive, and hangs up."""

    def send_body(self, body: bytes) -> None:
        if self.path.endswith("part_0.tar.gz") and len(body) > 50_000:
            body, self.close_connection = body[: len(body) // 2], True
        self.wfile.write(body)


def test_a_transfer_that_breaks_off_goes_on_where_it_ended(mirror, fetch, tmp_path):
    handler = type("Fresh", (BreaksOff,), {"asked": []})
    with serve(mirror, handler) as url:
        fetch(url, splits=["train"])
    starts = [asked for _, path, asked in handler.asked if path.endswith("train/part_0.tar.gz")]
    size = (mirror / "400/train/part_0.tar.gz").stat().st_size
    assert starts[:3] == [None, f"bytes={size // 2}-", f"bytes={size // 2 + (size - size // 2) // 2}-"]
    assert same_as_mirror(tmp_path / "archive", mirror)


class BreaksOffForGood(BreaksOff):
    """The same, and then answers no more."""

    def do_GET(self):
        if self.path.endswith("part_0.tar.gz") and self.headers.get("Range"):
            self.send_error(503)
        else:
            super().do_GET()


def test_the_next_run_goes_on_where_this_one_gave_up(mirror, fetch, tmp_path, recording):
    broken = type("Fresh", (BreaksOffForGood,), {"asked": []})
    with serve(mirror, broken) as url, pytest.raises(UserError, match=r"1 of 5 files .*\n  train/part_0\.tar\.gz: 503"):
        fetch(url, splits=["train"])
    with serve(mirror, recording) as url:
        fetch(url, splits=["train"])
    size = (mirror / "400/train/part_0.tar.gz").stat().st_size
    archives = [(path, asked) for _, path, asked in recording.asked if path.endswith("gz")]
    assert archives == [("/400/train/part_0.tar.gz", f"bytes={size // 2}-")]
    assert same_as_mirror(tmp_path / "archive", mirror)


def test_halves_of_two_versions_are_never_joined(mirror, fetch, tmp_path):
    with serve(mirror, type("Fresh", (BreaksOffForGood,), {"asked": []})) as url, pytest.raises(UserError):
        fetch(url, splits=["train"])
    other = hashlib.shake_256(b"other").digest(400_000)
    write_archive(mirror / "400/train/part_0.tar.gz", {"aaaaaaaaaaa_000000_000010.mp4": other})
    with serve(mirror) as url:
        fetch(url, splits=["train"])
    assert same_as_mirror(tmp_path / "archive", mirror)


def test_a_half_file_of_an_unknown_version_is_not_used(mirror, fetch, recording, tmp_path):
    (tmp_path / "scratch").mkdir()
    (tmp_path / "scratch/train_part_0.tar.gz").write_bytes(b"something")
    with serve(mirror, recording) as url:
        fetch(url, splits=["train"])
    assert ("GET", "/400/train/part_0.tar.gz", None) in recording.asked
    assert same_as_mirror(tmp_path / "archive", mirror)


class IgnoresRanges(BreaksOff):
    """A server of the simple kind."""

    def _range_start(self, etag):
        return None

    def send_body(self, body: bytes) -> None:
        is_first = len([path for _, path, _ in self.asked if path == self.path]) == 1
        super().send_body(body) if is_first else self.wfile.write(body)


def test_a_server_without_ranges_is_asked_for_the_whole_again(mirror, fetch, tmp_path):
    with serve(mirror, type("Fresh", (IgnoresRanges,), {"asked": []})) as url:
        fetch(url, splits=["train"])
    assert same_as_mirror(tmp_path / "archive", mirror)


def test_a_dead_link_is_reported_after_everything_else_was_fetched(mirror, fetch, tmp_path):
    (mirror / "400/val/part_0.tar.gz").unlink()
    (mirror / "400/val/part_2.tar.gz").unlink()
    with serve(mirror) as url, pytest.raises(UserError) as error:
        fetch(url)
    assert "2 of 8 files could not be fetched" in str(error.value)
    assert "val/part_0.tar.gz: the mirror does not have it\n  val/part_2.tar.gz:" in str(error.value)
    assert (tmp_path / "archive/val/part_1.tar.gz").exists()
    with pytest.raises(UserError, match=r"inventory\.json is not there: run the stage `download`"):
        read_inventory(tmp_path / "archive")


def test_an_archive_broken_at_the_source_is_reported_and_not_kept(mirror, fetch, tmp_path):
    part = mirror / "400/val/part_1.tar.gz"
    part.write_bytes(part.read_bytes()[:-1000])
    with (
        serve(mirror) as url,
        pytest.raises(UserError, match=r"val/part_1\.tar\.gz: not a whole archive, fetched twice"),
    ):
        fetch(url)
    assert not (tmp_path / "archive/val/part_1.tar.gz").exists()


def test_a_mirror_may_lack_the_replacements(mirror, fetch, tmp_path):
    (mirror / "400/replacement_for_corrupted_k400.tgz").unlink()
    with serve(mirror) as url:
        assert "the mirror has no archive of replacements" in fetch(url)


def test_annotations_of_splits_not_requested_may_be_absent(mirror, fetch, tmp_path):
    (mirror / "400/annotations/test.csv").unlink()
    (mirror / "400/annotations/val.csv").unlink()
    with pytest.raises(UserError, match=r"annotations/val\.csv: the mirror does not have it"):
        fetch(mirror)


def test_a_mirror_without_the_list_of_parts_is_refused(mirror, fetch):
    (mirror / "400/val/k400_val_path.txt").unlink()
    with serve(mirror) as url, pytest.raises(UserError, match=r"k400_val_path\.txt is not there"):
        fetch(url)


def test_a_list_that_points_elsewhere_is_refused(mirror, fetch):
    (mirror / "400/val/k400_val_path.txt").write_text(f"{OFFICIAL}/400/val/../../../etc/passwd\n")
    with pytest.raises(UserError, match="is no part"):
        fetch(mirror)


@pytest.mark.parametrize("source", ["/no/such/folder", "http://127.0.0.1:9", "{mirror}/400/val"])
def test_a_source_that_is_no_mirror_is_named(mirror, fetch, source):
    with pytest.raises(UserError, match="data source"):
        fetch(source.format(mirror=mirror))


def test_a_folder_that_is_no_mirror_may_be_one_of_videos(fetch, tmp_path):
    (tmp_path / "videos").mkdir()
    with pytest.raises(UserError, match=rf"a folder of one's own videos is written folder:{tmp_path}/videos"):
        fetch(tmp_path / "videos")


def test_a_full_disk_is_noticed_before_the_download(mirror, fetch, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1000})())
    with serve(mirror) as url, pytest.raises(UserError, match=r"GB are to be fetched, and 0\.0 GB are free"):
        fetch(url)


def test_a_folder_of_the_same_disk_is_linked_not_copied(mirror, fetch, tmp_path):
    fetch(mirror)
    assert (tmp_path / "archive/val/part_0.tar.gz").samefile(mirror / "400/val/part_0.tar.gz")


def test_progress_ends_at_its_total(mirror, fetch):
    reports = []
    with serve(mirror) as url:
        fetch(url, on_progress=lambda *state: reports.append(state))
    assert (
        reports[-1][1]
        == reports[-1][2]
        == sum(len(data) for name, data in contents(mirror / "400").items() if "path" not in name)
    )


@pytest.mark.slow
def test_killed_in_the_middle_it_goes_on_and_ends_with_the_same_files(mirror, tmp_path):
    command = """
import sys
from pathlib import Path
from actionzoo.files.data_folder import DataFolder
from actionzoo.kinetics.download import download
from actionzoo.kinetics.execution import Execution
execution = Execution(scratch=Path("scratch"), jobs=2)
download(sys.argv[1], DataFolder.at(Path("archive")), execution, splits=["train", "val"], parts="all")
"""
    halves = tmp_path / "scratch/train_part_0.tar.gz", tmp_path / "scratch/val_part_2.tar.gz"
    with serve(mirror, SlowHandler) as url:
        for half in halves:
            process = subprocess.Popen([sys.executable, "-c", command, url], cwd=tmp_path)
            while process.poll() is None and not (half.exists() and half.stat().st_size > 60_000):
                time.sleep(0.005)
            os.kill(process.pid, signal.SIGKILL)
            assert process.wait() == -signal.SIGKILL
            for name, data in contents(tmp_path / "archive").items():
                assert data == (mirror / "400" / name).read_bytes()
        subprocess.run([sys.executable, "-c", command, url], cwd=tmp_path, check=True)
        never_killed = make_archive(url, tmp_path / "never_killed", ["train", "val"])
    assert contents(tmp_path / "archive") == contents(never_killed)


def test_the_terms_of_use_name_who_owns_what():
    assert "CC BY 4.0" in TERMS and "do not publish" in TERMS


def test_the_inventory_is_sorted_and_ends_in_a_line_feed(mirror, fetch, tmp_path):
    fetch(mirror)
    text = (tmp_path / "archive/inventory.json").read_text()
    assert text == json.dumps(json.loads(text), indent=1, sort_keys=True) + "\n"


@pytest.mark.parametrize("header", ["ETag", "Last-Modified", None])
def test_without_a_size_a_whole_file_is_not_fetched_again(mirror, fetch, recording, header):
    class Sizeless(recording):
        protocol_version = "HTTP/1.0"  # the body ends with the connection

        def send_header(self, name, value):
            if name in ("Content-Length", "ETag", "Last-Modified") and name != header:
                return
            super().send_header(name, value)

    with serve(mirror, Sizeless) as url:
        fetch(url)
        recording.asked.clear()
        assert "0 of them fetched now" in fetch(url)
