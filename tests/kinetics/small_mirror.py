"""A small mirror in the public layout, written part by part, and a server that is slow enough to be interrupted."""

import time
from collections.abc import Sequence
from pathlib import Path

from actionzoo.kinetics.serve import FolderHandler
from actionzoo.kinetics.synthetic import OFFICIAL, write_archive


def write_split(root: Path, split: str, parts: Sequence[dict[str, bytes] | bytes], annotation: str) -> None:
    """Write parts, their list of URLs and the annotation's CSV below `root`, the mirror's folder 400.

    A part is name -> data of its members, or the bytes of its file.
    """
    for number, part in enumerate(parts):
        path = root / split / f"part_{number}.tar.gz"
        if isinstance(part, dict):
            write_archive(path, part)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(part)
    urls = [f"{OFFICIAL}/400/{split}/part_{number}.tar.gz\n" for number in range(len(parts))]
    (root / split / f"k400_{split}_path.txt").write_text("".join(urls))
    (root / "annotations").mkdir(exist_ok=True)
    (root / f"annotations/{split}.csv").write_text(annotation)


def as_members(clips: dict[str, bytes], ending: str = ".mp4") -> dict[str, bytes]:
    """Name of an archive's member -> video, from name of a clip -> video."""
    return {f"{name}{ending}": video for name, video in clips.items()}


class SlowHandler(FolderHandler):
    """Sends a little at a time, so that there is time to kill the download in the middle of a file."""

    chunk_bytes = 20_000
    pause_seconds = 0.03

    def send_body(self, body: bytes) -> None:
        for start in range(0, len(body), self.chunk_bytes):
            self.wfile.write(body[start : start + self.chunk_bytes])
            time.sleep(self.pause_seconds)
