"""Who may ask: host, origin, key, and how much at once. The outermost layer of the application.

Host      a name of this machine, or an address: a page in a browser that has its own name point here is refused
Origin    none, our own, or one that was allowed: other pages may not ask
key       where there is one, for all but /health and the page itself; compared in constant time
body      no longer than the limit, whatever its header says
"""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any

from llmrun import codec
from llmrun.server import dialects

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

OPEN_PATHS = ("/health", "/", "/page.js", "/page.css", "/openapi.json")
"""Without a key: whether it lives, the page, which asks for the key itself, and how to ask, which tells of no model."""
_LOCAL = ("localhost", "ip6-localhost")


@dataclass(frozen=True)
class Rules:
    """Attributes:
    keys: one of which a request has to have; none: none is needed.
    hosts: names that a request may be for, beside addresses and this machine's own; with a key any.
    origins: that pages may have; "*": any.
    most_body: bytes.
    """

    keys: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    most_body: int = 32 << 20


class TooLong(Exception):
    """The body is longer than may be."""


class Guard:
    """Middleware."""

    def __init__(self, app: App, rules: Rules) -> None:
        self._app, self._rules = app, rules
        self._keys = [key.encode() for key in rules.keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {name.lower(): value for name, value in scope["headers"]}
        origin = headers.get(b"origin", b"").decode("latin-1")
        host, path = headers.get(b"host", b"").decode("latin-1"), scope["path"]
        if not self._is_host(host):
            await _refuse(send, path, 403, f"the host {host[:100]!r} is not one that is served here")
            return
        allowed = not origin or self._is_origin(origin, host)
        if scope["method"] == "OPTIONS" and b"access-control-request-method" in headers:
            await _preflight(send, origin if allowed and origin else None)
            return
        if not allowed:
            await _refuse(send, path, 403, f"pages of {origin[:100]} may not ask here", origin=None)
            return
        if path not in OPEN_PATHS and self._keys and not self._has_key(headers):
            await _refuse(send, path, 401, "a key is needed, and this is none of those that are known", origin=origin)
            return
        if (encoding := headers.get(b"content-encoding", b"identity").lower()) != b"identity":
            await _refuse(send, path, 415, f"a body is read as it is, not as {encoding[:40]!r}", origin=origin)
            return
        if int(headers.get(b"content-length", b"0") or 0) > self._rules.most_body:
            await _refuse(send, path, 413, f"the body is longer than {self._rules.most_body} bytes", origin=origin)
            return
        await self._app(scope, self._bounded(receive), _with_origin(send, origin))

    def _is_host(self, host: str) -> bool:
        if self._keys:
            return True
        name = host.rsplit(":", 1)[0] if not host.endswith("]") else host
        name = name.strip("[]").rstrip(".").lower()
        if name in _LOCAL or name in self._rules.hosts:
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True

    def _is_origin(self, origin: str, host: str) -> bool:
        if "*" in self._rules.origins or origin in self._rules.origins:
            return True
        return origin.partition("://")[2] == host

    def _has_key(self, headers: MutableMapping[bytes, bytes]) -> bool:
        given = headers.get(b"x-api-key", b"")
        scheme, _, credentials = headers.get(b"authorization", b"").partition(b" ")
        if scheme.lower() == b"bearer":
            given = credentials.strip()
        # All of them, however early one is right.
        return sum([hmac.compare_digest(given, key) for key in self._keys]) > 0

    def _bounded(self, receive: Receive) -> Receive:
        n_bytes = 0

        async def bounded() -> MutableMapping[str, Any]:
            nonlocal n_bytes
            message = await receive()
            n_bytes += len(message.get("body", b""))
            if n_bytes > self._rules.most_body:
                raise TooLong
            return message

        return bounded


def _with_origin(send: Send, origin: str) -> Send:
    if not origin:
        return send

    async def sent(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message.get("headers", ()), *_cors(origin)]
        await send(message)

    return sent


def _cors(origin: str | None) -> list[tuple[bytes, bytes]]:
    if not origin:
        return []
    return [(b"access-control-allow-origin", origin.encode("latin-1")), (b"vary", b"Origin")]


async def _preflight(send: Send, origin: str | None) -> None:
    headers = _cors(origin)
    if origin:
        headers += [
            (b"access-control-allow-methods", b"GET, POST, DELETE"),
            (b"access-control-allow-headers", b"*, Authorization"),
            (b"access-control-max-age", b"600"),
        ]
    await send({"type": "http.response.start", "status": 204 if origin else 403, "headers": headers})
    await send({"type": "http.response.body", "body": b""})


async def _refuse(send: Send, path: str, status: int, message: str, *, origin: str | None = None) -> None:
    body = codec.encode(dialects.dialect_of(path).error(status, message, None, None))
    headers: list[tuple[bytes, bytes]] = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        *_cors(origin),
    ]
    if status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def split_origins(text: str) -> Sequence[str]:
    """ "http://localhost:3000, https://a.example" or "*"."""
    return [each.strip().rstrip("/") for each in text.split(",") if each.strip()]
