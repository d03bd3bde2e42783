"""A mirror in the public layout, behind http(s) or in a folder."""

import contextlib
import re
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

from ..errors import TemporaryFault, UserError
from ..files.links import place_link
from ..files.text import MAX_TEXT_BYTES, decode_text
from .transfer import Failed, Gone, Patience, Remote, Web, discard


class FolderMirror:
    """A mirror in a folder, perhaps a mounted one. Has the methods of `Web`."""

    copies = False

    def __init__(self, root: Path, patience: Patience) -> None:
        self.root = root
        self.patience = patience

    def close(self) -> None:
        pass

    def inspect(self, name: str) -> Remote | None:
        path = self.root / name
        if not path.is_file():
            return None
        status = path.stat()
        return Remote(size=status.st_size, modified=str(status.st_mtime_ns))

    def read(self, name: str) -> bytes | None:
        path = self.root / name
        if not path.is_file():
            return None
        with path.open("rb") as file:
            data = file.read(MAX_TEXT_BYTES + 1)
        if len(data) > MAX_TEXT_BYTES:
            raise Failed(f"it is larger than {MAX_TEXT_BYTES // 2**20} MiB, as no list of parts is")
        return data

    def fetch(self, name: str, partial: Path, on_progress: Callable[[int], None]) -> Remote:
        discard(partial)
        version = self.inspect(name)
        if version is None:
            raise Gone("it is not there any more")
        # a link where possible: half a terabyte is not stored twice. Files are replaced, never written into
        place_link(self.root / name, partial)
        on_progress(version.size)
        return version


Mirror = Web | FolderMirror


@contextlib.contextmanager
def open_mirror(source: str, split: str, patience: Patience) -> Iterator[Mirror]:
    """The mirror at `source`, which is an http(s) or file URL, or a folder: the mirror's root or its folder `400`.

    Raises UserError if `source` cannot be reached or has no list of the split's parts.
    """
    url = urllib.parse.urlsplit(source)
    is_web = url.scheme in ("http", "https")
    root, advice = source.rstrip("/"), ""
    if not is_web:
        root = urllib.request.url2pathname(url.path) if url.scheme == "file" else source
        advice = f"; a folder of one's own videos is written folder:{root}"
        if not Path(root).is_dir():
            raise UserError(f"data source {source} is no folder; give a mirror's folder, or its URL with https://")
    name = f"{split}/k400_{split}_path.txt"
    for candidate in (f"{root}/400", root):
        mirror: Mirror = Web(candidate, patience) if is_web else FolderMirror(Path(candidate), patience)
        with contextlib.closing(mirror):
            found = try_inspect(mirror, name)
            if isinstance(found, str):
                raise TemporaryFault(f"data source {source}: {found}; check the network and the source, then run again")
            if found:
                yield mirror
                return
    raise UserError(
        f"data source {source} has neither 400/{name} nor {name}; it must be a mirror in the public layout{advice}"
    )


def try_inspect(mirror: Mirror, name: str) -> Remote | str | None:
    """The file's version, None if there is no such file, or the reason why the mirror did not answer."""
    try:
        return mirror.inspect(name)
    except Failed as error:
        return str(error)


def listed_parts(mirror: Mirror, split: str) -> dict[int, str]:
    """Number of a part -> its path at the mirror, from the split's list; the host in the list's URLs is ignored.

    Raises UserError if there is no such list, or a line names no part.
    """
    name = f"{split}/k400_{split}_path.txt"
    try:
        text = mirror.read(name)
    except Failed as error:
        raise TemporaryFault(f"{mirror.root}/{name}: {error}; check the network, then run again") from None
    if text is None:
        raise UserError(f"{mirror.root}/{name} is not there; it lists the parts of {split}. Check the data source")
    parts = {}
    lines = decode_text(text, f"{mirror.root}/{name}", "it should have a part's URL in each line")
    for line in lines.split():
        part = re.search(rf"(?:^|/)({split}/part_([0-9]{{1,6}})\.(?:tar\.gz|tgz|tar))$", line)
        if part is None:
            raise UserError(
                f"{mirror.root}/{name}: {line[:200]!r} is no part; expected a URL like …/{split}/part_0.tar.gz"
            )
        parts[int(part[2])] = part[1]
    return parts
