"""Fetch one file from a web server. A broken transfer is resumed if the server still has the same version."""

import contextlib
import dataclasses
import email.utils
import itertools
import logging
import re
import shutil
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import httpx

from ..files.addresses import without_secrets
from ..files.json_files import read_json, write_json

Result = TypeVar("Result")

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Remote:
    """One version of a file at the source."""

    size: int
    etag: str = ""
    modified: str = ""
    """Last-Modified; for a file in a folder, its time of change in nanoseconds."""

    @property
    def validator(self) -> str:
        """The value for If-Range: a strong ETag or a date; '' if there is none, and transfers cannot be resumed."""
        return self.etag if self.etag and not self.etag.startswith("W/") else self.modified


MAX_FILE_BYTES = 64 * 2**30
"""Limit for a file whose size the server does not send. The largest part of Kinetics-400 has 2 GB."""

MAX_TEXT_BYTES = 256 * 2**20
"""Limit for a list, which is held in memory."""

RESERVE_BYTES = 2**30
"""Free space that a file of unknown size leaves on the disk, if there was more when the transfer began."""

MAX_REDIRECTS = 5

MAX_PAUSE_SECONDS = 600.0
"""Longest pause before another attempt, whatever the server asks for."""


class Gone(Exception):
    """The source has no such file, or its answer is refused. Another attempt would not help."""


class Failed(Exception):
    """An attempt failed; another one may succeed, after `retry_after_seconds` if the server asks for a pause."""

    def __init__(self, reason: str, retry_after_seconds: float = 0.0) -> None:
        super().__init__(reason)
        self.retry_after_seconds = retry_after_seconds


class TooSlow(Failed):
    """The transfer was slower than `Patience.min_bytes_per_second`."""


@dataclasses.dataclass(frozen=True)
class Patience:
    """How often and how soon to retry."""

    retries: int = 6
    """Attempts in a row without progress."""
    backoff_seconds: float = 1.0
    """Pause before the first of them; it doubles from one to the next."""
    stop: threading.Event = dataclasses.field(default_factory=threading.Event)
    """Once it is set, transfers and pauses end."""
    min_bytes_per_second: float = 1000.0
    """Slower than this, on average over `rate_seconds`, an attempt has failed."""
    rate_seconds: float = 60.0

    def attempt(self, action: Callable[[], Result], measure: Callable[[], int] = lambda: 0) -> Result:
        """Repeat `action` until it does not raise Failed; returns its result. Raises the last Failed after `retries`
        attempts in a row during which the value of `measure` did not grow."""
        failures, reached = 0, measure()
        while True:
            try:
                return action()
            except Failed as failure:
                now = measure()
                failures = 1 if now > reached and not isinstance(failure, TooSlow) else failures + 1
                reached = now
                if failures > self.retries or self.stop.is_set():
                    raise
                pause = min(self.backoff_seconds * 2 ** (failures - 1), 60)
                pause = max(pause, min(failure.retry_after_seconds, MAX_PAUSE_SECONDS))
                _log.warning("%s; attempt %d of %d in %.0f s", failure, failures, self.retries, pause)
                self.stop.wait(pause)


class Web:
    """Files behind http(s), below `root`; `query` follows every file's name."""

    copies = True

    def __init__(self, root: str, patience: Patience, query: str = "") -> None:
        self.root = root.rstrip("/")
        self.patience = patience
        self._query = f"?{query}" if query else ""
        # TLS is verified: httpx's default, and no way here to switch it off
        self._client = httpx.Client(
            timeout=httpx.Timeout(60, connect=20),
            follow_redirects=True,
            max_redirects=MAX_REDIRECTS,
            # archives as they are: some servers call .tar.gz a .tar with an encoding
            headers={"Accept-Encoding": "identity"},
            limits=httpx.Limits(max_connections=None),
        )

    def close(self) -> None:
        self._client.close()

    def inspect(self, name: str) -> Remote | None:
        """Size and version of a file, None if there is no such file. Raises Failed."""

        def ask() -> Remote:
            with self._stream("HEAD", name) as response:
                if response.status_code not in (405, 501):
                    self._judge(response)
                    return _remote(response)
            with self._stream("GET", name) as response:
                self._judge(response)
                return _remote(response)

        try:
            return self.patience.attempt(ask)
        except Gone:
            return None

    def read(self, name: str) -> bytes | None:
        """A small file's contents, None if there is no such file. Raises Failed."""

        def ask() -> bytes:
            with self._stream("GET", name) as response:
                self._judge(response)
                text, watch = bytearray(), _Watch(self.patience)
                for chunk in response.iter_raw():
                    text += chunk
                    watch.see(len(text))
                    if len(text) > MAX_TEXT_BYTES:
                        raise Failed(f"it is larger than {MAX_TEXT_BYTES // 2**20} MiB, the most that a list may have")
                return bytes(text)

        try:
            return self.patience.attempt(ask)
        except Gone:
            return None

    def fetch(self, name: str, partial: Path, on_progress: Callable[[int], None]) -> Remote:
        """Complete `partial`, from its end on if possible; returns the version that it has then.

        `on_progress` receives the number of bytes in `partial`. Raises Gone or Failed.
        """

        def go_on() -> Remote:
            known = partial_version(partial)
            if known is None or not known.validator:
                # nothing, or nothing that could be told from another version's bytes
                discard(partial)
                known = None
            start = partial.stat().st_size if known and partial.exists() else 0
            on_progress(start)
            if known and start == known.size > 0:
                return known
            headers = {"Range": f"bytes={start}-", "If-Range": known.validator} if known and start else {}
            with self._stream("GET", name, headers) as response:
                self._judge(response)
                if known and response.status_code == 206 and _continues(response, start, known):
                    version = known
                elif response.status_code == 206:
                    discard(partial)
                    raise Failed("the answer does not continue what is here; starting over")
                else:
                    # the whole file: it was asked for, or the source has another version now
                    discard(partial)
                    version = _remote(response)
                    write_json(_version_file(partial), dataclasses.asdict(version), indent=None)
                self._receive(response, partial, start, version.size, on_progress)
            size = partial.stat().st_size
            if version.size and size != version.size:
                raise Failed(f"{size} of {version.size} bytes came")
            return version

        return self.patience.attempt(go_on, lambda: partial.stat().st_size if partial.exists() else 0)

    def _receive(
        self, response: httpx.Response, partial: Path, start: int, size: int, on_progress: Callable[[int], None]
    ) -> None:
        """Append the answer to `partial`. `size` is that of the whole file, 0 if the server does not send it."""
        watch = _Watch(self.patience, start)
        free = shutil.disk_usage(partial.parent).free
        most = min(MAX_FILE_BYTES, start + (free - RESERVE_BYTES if free > RESERVE_BYTES else free // 2))
        with open(partial, "ab") as file:
            for chunk in response.iter_raw():  # written as they come: no byte is fetched twice
                file.write(chunk)
                on_progress(file.tell())
                if size and file.tell() > size:
                    file.close()
                    discard(partial)
                    raise Failed(f"more than the {size} bytes came that were announced")
                if not size and file.tell() > most:
                    file.close()
                    discard(partial)
                    raise Gone(
                        f"the server sends no size, and the file does not end: {most // 2**20} MiB came; refused"
                    )
                watch.see(file.tell())
                if self.patience.stop.is_set():
                    raise Failed("stopped")

    @contextlib.contextmanager
    def _stream(self, method: str, name: str, headers: dict[str, str] | None = None) -> Iterator[httpx.Response]:
        url = f"{self.root}/{urllib.parse.quote(name)}{self._query}"
        try:
            with self._client.stream(method, url, headers=headers) as response:
                _check_redirects(response)
                yield response
        except (httpx.TransportError, httpx.TooManyRedirects, httpx.InvalidURL) as error:
            raise Failed(without_secrets(str(error)) or type(error).__name__) from None

    @staticmethod
    def _judge(response: httpx.Response) -> None:
        status = f"{response.status_code} {response.reason_phrase}"
        # S3 answers 403 instead of 404 to clients that may not list a folder
        if response.status_code in (401, 403, 404, 410):
            raise Gone(status)
        if response.status_code not in (200, 206):
            raise Failed(status, _retry_after_seconds(response.headers.get("Retry-After", "")))


def partial_version(partial: Path) -> Remote | None:
    """The version that a partial file's bytes are of, None if unknown."""
    match read_json(_version_file(partial)):
        case {"size": int(size), "etag": str(etag), "modified": str(modified)}:
            return Remote(size, etag, modified)
    return None


def discard(partial: Path) -> None:
    """Forget an unfinished file and its version."""
    partial.unlink(missing_ok=True)
    _version_file(partial).unlink(missing_ok=True)


class _Watch:
    """Raises TooSlow once too few bytes came in the last `rate_seconds`."""

    def __init__(self, patience: Patience, num_bytes: int = 0) -> None:
        self._patience, self._from, self._since = patience, num_bytes, time.monotonic()

    def see(self, num_bytes: int) -> None:
        seconds = time.monotonic() - self._since
        if seconds < self._patience.rate_seconds:
            return
        if num_bytes - self._from < self._patience.min_bytes_per_second * seconds:
            raise TooSlow(f"only {num_bytes - self._from} bytes came in {seconds:.0f} s")
        self._from, self._since = num_bytes, time.monotonic()


def _check_redirects(response: httpx.Response) -> None:
    """Raises Gone if a redirect leads from https to http, where the answer could be anybody's."""
    for before, after in itertools.pairwise([*response.history, response]):
        if before.url.scheme == "https" and after.url.scheme != "https":
            raise Gone(f"it redirects from https to {without_secrets(str(after.url))}; refused")


def _retry_after_seconds(text: str) -> float:
    """The value of the header Retry-After, which is seconds or a date; 0 if it has none."""
    if re.fullmatch(r"\d{1,9}", text.strip()):
        return float(text)
    try:
        return max(email.utils.parsedate_to_datetime(text).timestamp() - time.time(), 0.0)
    except (TypeError, ValueError, OverflowError):
        return 0.0


def _remote(response: httpx.Response) -> Remote:
    modified = response.headers.get("Last-Modified", "")
    size = response.headers.get("Content-Length", "")
    return Remote(
        size=int(size) if re.fullmatch(r"\d{1,18}", size) else 0,
        etag=response.headers.get("ETag", ""),
        modified=modified if email.utils.parsedate(modified) else "",
    )


def _continues(response: httpx.Response, start: int, version: Remote) -> bool:
    """Whether a partial answer is the rest, from `start` on, of the version that is here."""
    content_range = re.fullmatch(r"bytes (\d{1,18})-\d{1,18}/(\d{1,18})", response.headers.get("Content-Range", ""))
    return (
        content_range is not None
        and (int(content_range[1]), int(content_range[2])) == (start, version.size)
        and response.headers.get("ETag", version.etag) == version.etag
    )


def _version_file(partial: Path) -> Path:
    return partial.with_name(partial.name + ".version")
