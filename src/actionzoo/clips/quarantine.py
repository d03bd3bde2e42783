"""The clips that hung or killed a decoding process; they are not tried again."""

from pathlib import Path

from ..files.json_files import read_json, write_json
from ..kinetics.manifest import Clip


class Quarantine:
    """Reasons by clip, for the length of a run: in memory, and in a JSON file if there is a path.

    An entry expires once the timeout is raised above the one it exceeded.
    """

    def __init__(self, path: Path | None, timeout_seconds: float):
        self._path, self._timeout_seconds = path, timeout_seconds
        known = read_json(path) if path else {}
        self._clips = {name: entry for name, entry in known.items() if _is_valid(entry, timeout_seconds)}

    def reason(self, clip: Clip) -> str | None:
        """Why the clip is quarantined; None if it is not."""
        found = self._clips.get(_name(clip))
        return found["reason"] if found else None

    def add(self, clip: Clip, reason: str) -> None:
        self._clips[_name(clip)] = {"reason": reason, "timeout_seconds": self._timeout_seconds}
        if self._path:
            write_json(self._path, self._clips)


def _is_valid(entry: object, timeout_seconds: float) -> bool:
    """Whether an entry of the file is well-formed and has not expired."""
    match entry:
        case {"reason": str(), "timeout_seconds": int() | float() as exceeded}:
            return exceeded >= timeout_seconds
    return False


def _name(clip: Clip) -> str:
    return f"{clip.split}/{clip.video_id}"
