"""Faults of the machine are never recorded as errors of the clip, nor errors of the clip as faults of the machine."""

import shlex
import sys

import pytest

import actionzoo.kinetics.transcode as transcode_module
from actionzoo.errors import MachineFault
from actionzoo.kinetics.ffmpeg_process import MAX_COMPLAINT_BYTES, BadVideo, Clip, process_clip
from actionzoo.kinetics.transcode import Encode, find_ffmpeg, measure, shown_size, to_jpegs, transcode
from tests.kinetics.small_films import film


def resized(source: bytes, timeout_seconds: float = 60, scratch=None):
    return transcode(source, short_side=32, encode=Encode(), timeout_seconds=timeout_seconds, scratch=scratch)


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """Puts a shell script in front of ffmpeg; `$REAL "$@"` is ffmpeg itself, `$RUNS` counts runs by
    its lines."""

    def put(script: str) -> None:
        real, runs = find_ffmpeg(), tmp_path / "runs"
        program = tmp_path / "stand-in"
        head = f"REAL={shlex.quote(real)} RUNS={shlex.quote(str(runs))}; echo run >> $RUNS"
        program.write_text(f"#!/bin/sh\n{head}\n{script}\n")
        program.chmod(0o755)
        monkeypatch.setattr(transcode_module, "find_ffmpeg", lambda: str(program))

    return put


def runs(tmp_path) -> int:
    return len((tmp_path / "runs").read_text().splitlines())


MACHINE = [
    "exit 228",  # ENOSPC
    "exit 244",  # ENOMEM
    "exit 245",  # EAGAIN
    "exit 232",  # EMFILE
    "exit 251",  # EIO
    "exit 134",  # EDQUOT
    "exit 226",  # EROFS
    "kill -KILL $$",
    "kill -TERM $$",
    "kill -ABRT $$",
    "exit 255",
    "echo 'pthread_create() failed: Resource temporarily unavailable' >&2; exit 1",
    "echo 'ff_frame_thread_encoder_init failed' >&2; exit 1",
    "echo '[h264 @ 0x55] Cannot allocate memory' >&2; exit 187",
    "echo 'Error writing trailer: No space left on device' >&2; exit 0",
]


@pytest.mark.parametrize("script", MACHINE)
def test_a_machine_fault_that_stays_is_no_error_of_the_clip(stand_in, script):
    source = film(num_frames=5)
    stand_in(script)
    with pytest.raises(MachineFault, match="run"):
        resized(source)


@pytest.mark.parametrize("script", MACHINE)
def test_a_machine_fault_that_passes_leaves_no_trace(stand_in, script):
    source = film(num_frames=5)
    undisturbed = resized(source)
    stand_in(f'[ $(wc -l < $RUNS) -gt 1 ] && exec $REAL "$@"; {script}')
    assert resized(source) == undisturbed


def test_a_clip_that_blames_the_machine_is_found_out_by_a_control(stand_in, tmp_path):
    """As a header does that claims a frame of gigabytes: every other picture works."""
    source = film(num_frames=5)
    stand_in("""case "$*" in *control.mp4*) exec $REAL "$@";; esac; echo 'Cannot allocate memory' >&2; exit 244""")
    with pytest.raises(BadVideo, match="Cannot allocate memory"):
        resized(source)
    assert runs(tmp_path) == 4  # twice, the control, and once more


def test_a_clip_that_blames_the_machine_and_works_is_kept_with_its_complaint(stand_in):
    source = film(num_frames=5)
    undisturbed = resized(source)
    stand_in("""$REAL "$@"; case "$*" in *control.mp4*) ;; *) echo 'Resource temporarily unavailable' >&2;; esac""")
    assert resized(source).data == undisturbed.data
    assert resized(source).damage == "Resource temporarily unavailable"


def test_a_clip_that_takes_too_long_once_is_tried_again(stand_in, tmp_path):
    source = film(num_frames=5)
    stand_in('[ $(wc -l < $RUNS) -gt 1 ] && exec $REAL "$@"; exec sleep 60')
    assert resized(source, timeout_seconds=2).num_frames == 5
    assert runs(tmp_path) == 2


def test_a_clip_that_takes_too_long_twice_is_a_bad_video(stand_in, tmp_path):
    source = film(num_frames=5)
    stand_in("exec sleep 60")
    with pytest.raises(BadVideo, match="timed out after 0"):
        resized(source, timeout_seconds=0.3)
    assert runs(tmp_path) == 2


def test_a_clip_that_complains_without_end_is_stopped_by_its_time(stand_in):
    source = film(num_frames=5)
    stand_in("exec yes 'deprecated pixel format' >&2")
    with pytest.raises(BadVideo, match="timed out"):
        resized(source, timeout_seconds=0.5)


def test_of_many_complaints_the_first_are_kept():
    kept = []

    def work(clip: Clip) -> None:
        print_much = "import sys; sys.stderr.write('first\\n' + 'x' * 5_000_000)"
        kept.append(clip.run([sys.executable, "-c", print_much]))

    process_clip(b"x", work, timeout_seconds=60, scratch=None, control=lambda folder: [])
    assert kept[0].startswith("first") and len(kept[0]) == MAX_COMPLAINT_BYTES


def test_nothing_but_the_clip_is_written_to_scratch(stand_in, tmp_path):
    """What ffmpeg complains of is not kept on the disk, which may be full."""
    source = film(num_frames=5)
    stand_in('ls -A "$(dirname "$(eval echo \\${$#})")" >> $RUNS.files; exec $REAL "$@"')
    resized(source, scratch=tmp_path / "scratch")
    assert (tmp_path / "runs.files").read_text().split() == ["source"]
    assert list((tmp_path / "scratch").iterdir()) == []


@pytest.mark.parametrize(
    "use",
    [
        lambda path: measure(path, timeout_seconds=60),
        lambda path: shown_size(path, timeout_seconds=60),
        lambda path: to_jpegs(path, qscale=2, timeout_seconds=60),
    ],
    ids=["measure", "shown_size", "to_jpegs"],
)
def test_every_use_of_ffmpeg_tells_the_machine_from_the_clip(stand_in, tmp_path, use):
    (tmp_path / "film.mp4").write_bytes(film(num_frames=5))
    stand_in("exit 228")
    with pytest.raises(MachineFault, match="disk is full"):
        use(tmp_path / "film.mp4")


def test_what_a_decoder_complains_of_is_kept_with_the_frames():
    data = bytearray(film(num_frames=30))
    middle = len(data) // 2
    data[middle : middle + 200] = bytes(200)
    assert to_jpegs(bytes(data), qscale=2, timeout_seconds=60).damage != ""
    assert to_jpegs(film(num_frames=30), qscale=2, timeout_seconds=60).damage == ""
