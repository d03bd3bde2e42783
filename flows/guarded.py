"""Prefect's server behind a check of the Host and Origin headers. flows/server.py starts it:

    python -m flows.guarded --port 4200 --fd 3 --files /path/to/actionzoo

Prefect checks the key of a request but not its Host header, so a page on a foreign name that resolves to 127.0.0.1
(DNS rebinding) would count as the server's own. It also executes requests with a foreign Origin, though browsers then
hide the answer from the page. This module refuses both, for websockets too. Settings and key come from the environment.

Beside Prefect's own pages, the server shows the reports and the runs of one checkout, read-only, below /files: pages of
http cannot link to files on disk. The browser asks for the key, actionzoo:..., as for user name and password.
"""

import argparse
import hashlib
import hmac
import os
import socket
from base64 import b64decode, b64encode
from collections.abc import Iterable
from pathlib import Path

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import PlainTextResponse, Response
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

import actionzoo
from flows.server import FILES, own_origins

FRAMES = [(b"x-frame-options", b"DENY"), (b"content-security-policy", b"frame-ancestors 'none'")]
"""Headers that keep foreign pages from showing ours in a frame (clickjacking)."""

SHOWN_FOLDERS = (Path("report"), Path("runs"), Path("plots"), Path("reproduction/report"))
"""What is served of the checkout, relative to it: the reports, and what they link to."""


class OwnPagesOnly:
    """ASGI middleware: passes a request on if its Host, and its Origin if it has one, are the server's own."""

    def __init__(self, app: ASGIApp, origins: Iterable[str]):
        self.app = app
        self.origins = frozenset(origin.encode() for origin in origins)
        self.hosts = frozenset(origin.partition(b"://")[2] for origin in self.origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return

        async def unframed(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", ()), *FRAMES]}
            await send(message)

        if not (refusal := self._refusal(scope["headers"])):
            await self.app(scope, receive, unframed)
        elif scope["type"] == "http":
            await PlainTextResponse(refusal, status_code=403)(scope, receive, unframed)
        else:
            await send({"type": "websocket.close", "code": 1008, "reason": refusal})

    def _refusal(self, headers: Iterable[tuple[bytes, bytes]]) -> str | None:
        """Why the request is refused; None if it is not."""
        sent = [(name.lower(), value.strip().lower()) for name, value in headers]
        hosts = {value for name, value in sent if name == b"host"}
        if len(hosts) != 1 or not hosts <= self.hosts:
            return f"this server is at {' and '.join(sorted(origin.decode() for origin in self.origins))} only\n"
        if not {value for name, value in sent if name == b"origin"} <= self.origins:
            return "pages of other origins are not answered\n"
        return None


class WithFiles:
    """ASGI middleware: answers what lies below /files itself, from SHOWN_FOLDERS of a checkout, to who has the key."""

    def __init__(self, app: ASGIApp, checkout: Path, key: str):
        self.app, self.key = app, key.encode()
        self.files = _ShownFiles(directory=checkout)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not f"{scope['path']}/".startswith(f"{FILES}/"):
            await self.app(scope, receive, send)
            return

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(_HEADERS)
            await send(message)

        answer: ASGIApp = self.files
        if not self._has_key(Headers(scope=scope)):
            answer = PlainTextResponse(
                "the key of this server is wanted\n",
                401,
                {"WWW-Authenticate": 'Basic realm="actionzoo", charset="UTF-8"'},
            )
        try:
            await answer({**scope, "root_path": FILES}, receive, guarded)
        except HTTPException as error:
            refusal = PlainTextResponse(f"{error.detail}\n", error.status_code, error.headers)
            await refusal(scope, receive, guarded)

    def _has_key(self, headers: Headers) -> bool:
        scheme, _, sent = headers.get("authorization", "").partition(" ")
        try:
            return scheme.lower() == "basic" and hmac.compare_digest(b64decode(sent, validate=True), self.key)
        except ValueError:
            return False


class _ShownFiles(StaticFiles):
    """Plain files, GET and HEAD, no listing."""

    def lookup_path(self, path: str) -> tuple[str, os.stat_result | None]:
        found, stat = super().lookup_path(path)  # symbolic links followed, and still in the checkout
        for asked in (Path(path), Path(found).relative_to(Path(str(self.directory)).resolve()) if found else None):
            is_shown = asked and any(asked.is_relative_to(folder) for folder in SHOWN_FOLDERS)
            if asked is None or not is_shown or any(part.startswith(".") for part in asked.parts):
                return "", None
        return found, stat

    def file_response(
        self, full_path: str | os.PathLike[str], stat_result: os.stat_result, scope: Scope, status_code: int = 200
    ) -> Response:
        response = super().file_response(full_path, stat_result, scope, status_code)
        if kind := _KINDS.get(Path(full_path).suffix):
            response.headers["content-type"] = kind
        return response


_TEXT, _BYTES = "text/plain; charset=utf-8", "application/octet-stream"
_KINDS = {".log": _TEXT, ".md": _TEXT, ".csv": _TEXT, ".pth": _BYTES, ".safetensors": _BYTES}
"""Media types of what machines' own tables give no type, or different ones."""


def _script_hash() -> str:
    """The hash of zoo.html's script, as the page holds it; so browsers run it and no other."""
    script = Path(actionzoo.__file__).parent / "report" / "templates" / "zoo.js"
    return b64encode(hashlib.sha256(b"\n" + script.read_bytes().rstrip(b"\n")).digest()).decode()


_HEADERS = {
    "Content-Security-Policy": f"default-src 'none'; script-src 'self' 'sha256-{_script_hash()}'; "
    "style-src 'unsafe-inline'; img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Resource-Policy": "same-origin",  # browsers add the key to requests of foreign pages, too
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m flows.guarded", description="For flows.local and flows.pipeline.")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--fd", type=int, required=True, help="descriptor of a socket that is bound to the port")
    parser.add_argument("--files", type=Path, help="checkout whose reports and runs are shown; default: none are")
    arguments = parser.parse_args()

    import uvicorn
    from prefect.server.api.server import create_app
    from prefect.settings import get_current_settings

    server = get_current_settings().server
    key = "" if server.api.auth_string is None else server.api.auth_string.get_secret_value()
    if not key:
        raise SystemExit("PREFECT_SERVER_API_AUTH_STRING is not set; this server does not start without a key")
    app: ASGIApp = create_app(final=True)
    if arguments.files:
        app = WithFiles(app, arguments.files, key)
    config = uvicorn.Config(
        OwnPagesOnly(app, own_origins(arguments.port)),
        proxy_headers=False,
        timeout_keep_alive=server.api.keepalive_timeout,
        log_level=server.logging_level.lower(),
    )
    uvicorn.Server(config).run(sockets=[socket.socket(fileno=arguments.fd)])


if __name__ == "__main__":
    main()
