"""Serve a folder over HTTP on loopback, so that transfers can be resumed.

The standard library's server lacks byte ranges, ETag and If-Range (RFC 9110). The ETag is a hash of the contents: equal
files have equal tags on every machine.
"""

import contextlib
import functools
import hashlib
import http.server
import re
import threading
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any


@contextlib.contextmanager
def serve(root: Path, handler: type["FolderHandler"] | None = None) -> Iterator[str]:
    """Serve the files below `root` while the block runs; yields the base URL, e.g. http://127.0.0.1:40001."""
    bound = functools.partial(handler or FolderHandler, root.resolve())
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), bound) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


class FolderHandler(http.server.BaseHTTPRequestHandler):
    """Answers GET and HEAD for the files of one folder, also for a byte range to the end of a file."""

    protocol_version = "HTTP/1.1"

    def __init__(self, root: Path, *arguments: Any) -> None:
        self.root = root
        super().__init__(*arguments)

    def handle(self) -> None:
        # a downloader that was killed hangs up; that is no error of the server
        with contextlib.suppress(ConnectionError):
            super().handle()

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def send_body(self, body: bytes) -> None:
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Nothing: the downloader logs its transfers."""

    def _answer(self, with_body: bool) -> None:
        path = (self.root / urllib.parse.unquote(urllib.parse.urlsplit(self.path).path).lstrip("/")).resolve()
        if not path.is_relative_to(self.root) or not path.is_file():
            self.send_response(404)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        contents = path.read_bytes()
        etag = f'"{hashlib.sha256(contents).hexdigest()[:32]}"'
        start = self._range_start(etag)
        if start is not None and start >= len(contents):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(contents)}")
            contents = b""
        elif start is not None:
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(contents) - 1}/{len(contents)}")
            contents = contents[start:]
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(len(contents)))
        self.send_header("ETag", etag)
        self.send_header("Accept-Ranges", "bytes")
        self.end_headers()
        if with_body:
            self.send_body(contents)

    def _range_start(self, etag: str) -> int | None:
        """First byte of the requested range, None for the whole file."""
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if asked is None or self.headers.get("If-Range", etag) != etag:
            return None
        return int(asked[1])
