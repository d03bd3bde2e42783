"""One file behind a URL that is no mirror's: weights, lists. Continued where an earlier attempt ended."""

import contextlib
import urllib.parse
from collections.abc import Callable
from pathlib import Path

from ..errors import UserError
from ..files.addresses import without_secrets
from .transfer import Failed, Gone, Patience, Web, discard, partial_version


def complete(
    url: str,
    partial: Path,
    patience: Patience,
    *,
    max_bytes: int | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> None:
    """Fetch the file into `partial`; `on_progress` is given bytes here and bytes in all.

    Raises UserError if it cannot be had, or has more than `max_bytes`.
    """
    parts = urllib.parse.urlsplit(url)
    shown = without_secrets(url)

    def here(num_bytes: int) -> None:
        version = partial_version(partial)
        size = version.size if version else 0
        if max_bytes is not None and max(num_bytes, size) > max_bytes:
            discard(partial)
            raise UserError(
                f"{shown} has more than {max_bytes // 2**20} MiB, the most that is fetched; check the address"
            )
        if on_progress and size:
            on_progress(num_bytes, size)

    folder, _, last = parts.path.rpartition("/")
    root = urllib.parse.urlunsplit((parts.scheme, parts.netloc, folder, "", ""))
    try:
        with contextlib.closing(Web(root, patience, parts.query)) as web:
            web.fetch(urllib.parse.unquote(last), partial, here)
    except Gone as error:
        raise UserError(f"{shown} cannot be had: {error}; check the address") from None
    except Failed as error:
        raise UserError(f"{shown} could not be fetched: {error}; what came is kept, run again") from None
