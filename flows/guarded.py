"""Prefect's server behind a check of the Host and Origin headers. flows/server.py starts it:

    python -m flows.guarded --port 4200

Prefect checks the key of a request. It does not check its Host header, so a page on a foreign name that resolves to
127.0.0.1 (DNS rebinding) would count as one of ours. It also executes requests of a foreign Origin, though browsers
then hide the answer from the page. Here both are refused, for websockets too. Settings and key are in the environment.
"""

import argparse
from collections.abc import Iterable

from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from flows.server import HOST, own_origins

FRAMES = [(b"x-frame-options", b"DENY"), (b"content-security-policy", b"frame-ancestors 'none'")]
"""No foreign page may show ours in a frame, to have its buttons clicked unseen."""


class OwnPagesOnly:
    """ASGI middleware: passes requests whose Host is ours and whose Origin, if there is one, is ours."""

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

        if not (fault := self._fault(scope["headers"])):
            await self.app(scope, receive, unframed)
        elif scope["type"] == "http":
            await PlainTextResponse(fault, status_code=403)(scope, receive, unframed)
        else:
            await send({"type": "websocket.close", "code": 1008, "reason": fault})

    def _fault(self, headers: Iterable[tuple[bytes, bytes]]) -> str | None:
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
    port = parser.parse_args().port

    import uvicorn
    from prefect.server.api.server import create_app
    from prefect.settings import get_current_settings

    server = get_current_settings().server
    if server.api.auth_string is None or not server.api.auth_string.get_secret_value():
        raise SystemExit("PREFECT_SERVER_API_AUTH_STRING is not set: without a key this server is not started")
    uvicorn.run(
        OwnPagesOnly(create_app(final=True), own_origins(port)),
        host=HOST,
        port=port,
        proxy_headers=False,
        timeout_keep_alive=server.api.keepalive_timeout,
        log_level=server.logging_level.lower(),
    )


if __name__ == "__main__":
    main()
