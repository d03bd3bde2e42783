"""Clips that hung or killed a decoding process: named, and not tried again."""

from pathlib import Path

from ..files.json_files import read_json, write_json
from ..kinetics.manifest import Clip


class Quarantine:
    """Reasons by clip, for the length of a run: in memory, and in a small file where the run has a place for it.

    A clip is let out when there is more time for it than when it went in.
    """

    def __init__(self, path: Path | None, timeout_seconds: float):
        self._path, self._timeout_seconds = path, timeout_seconds
        known = read_json(path) if path else {}
        self._clips = {name: clip for name, clip in known.items() if clip["timeout_seconds"] >= timeout_seconds}

    def reason(self, clip: Clip) -> str | None:
        """Why it is in here; None if it is not."""
        found = self._clips.get(_name(clip))
        return found["reason"] if found else None

    def add(self, clip: Clip, reason: str) -> None:
        self._clips[_name(clip)] = {"reason": reason, "timeout_seconds": self._timeout_seconds}
        if self._path:
            write_json(self._path, self._clips)


def _name(clip: Clip) -> str:
    return f"{clip.split}/{clip.video_id}"
