"""Prefect's server behind a check of the Host and Origin headers. flows/server.py starts it:

    python -m flows.guarded --port 4200 --fd 3

Prefect checks the key of a request but not its Host header, so a page on a foreign name that resolves to 127.0.0.1
(DNS rebinding) would count as the server's own. It also executes requests with a foreign Origin, though browsers then
hide the answer from the page. This module refuses both, for websockets too. Settings and key come from the environment.
"""

import argparse
import socket
from collections.abc import Iterable

from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from flows.server import own_origins

FRAMES = [(b"x-frame-options", b"DENY"), (b"content-security-policy", b"frame-ancestors 'none'")]
"""Headers that keep foreign pages from showing ours in a frame (clickjacking)."""


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


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m flows.guarded", description="For flows.local and flows.pipeline.")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--fd", type=int, required=True, help="descriptor of a socket that is bound to the port")
    arguments = parser.parse_args()

    import uvicorn
    from prefect.server.api.server import create_app
    from prefect.settings import get_current_settings

    server = get_current_settings().server
    if server.api.auth_string is None or not server.api.auth_string.get_secret_value():
        raise SystemExit("PREFECT_SERVER_API_AUTH_STRING is not set; this server does not start without a key")
    config = uvicorn.Config(
        OwnPagesOnly(create_app(final=True), own_origins(arguments.port)),
        proxy_headers=False,
        timeout_keep_alive=server.api.keepalive_timeout,
        log_level=server.logging_level.lower(),
    )
    uvicorn.Server(config).run(sockets=[socket.socket(fileno=arguments.fd)])


if __name__ == "__main__":
    main()
