"""The door: what may be asked of the coordinator, by whom, and how much at once.

It stands before Flower's own checks, which read a whole body before they look at who sent it. Here
a request is turned away by its first lines alone: a path that is none of ours, a body without a
length or too long a one, a key that is not enrolled.
"""

import base64
import binascii
import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

from medsynth_server.flower.link import KEY_HEADER

_Scope = Mapping[str, Any]
_Receive = Callable[[], Awaitable[Any]]
_Send = Callable[[Any], Awaitable[None]]
Application = Callable[[Any, _Receive, _Send], Awaitable[None]]

_HEALTH: Final = "/health"
#: What an enrolled node may ask, and the longest body of each, bytes. An object is a chunk of at
#: most 5 MiB; an answer's table of contents has a line of a hundred bytes for each of its objects.
LARGEST: Final[Mapping[str, int]] = {
    "/v1/fleet/activate-node": 1 << 14,
    "/v1/fleet/deactivate-node": 1 << 14,
    "/v1/fleet/send-node-heartbeat": 1 << 14,
    "/v1/fleet/pull-messages": 1 << 14,
    "/v1/fleet/push-messages": 1 << 21,
    "/v1/fleet/get-run": 1 << 14,
    "/v1/fleet/push-object": 1 << 23,
    "/v1/fleet/pull-object": 1 << 14,
    "/v1/fleet/confirm-message-received": 1 << 14,
}
#: As Flower would say it of a key that it does not know.
_NOT_ENROLLED: Final = {"code": 2004, "message": "this node's key is not enrolled here"}


class Guard:
    """An ASGI application in front of the link's.

    Args:
        inner: the link's.
        enrolled: whether a node's public key (PEM) belongs to a site of the federation now.

    """

    def __init__(self, inner: Application, *, enrolled: Callable[[bytes], bool]) -> None:
        self._inner, self._enrolled = inner, enrolled

    async def __call__(self, scope: _Scope, receive: _Receive, send: _Send) -> None:
        """Answer a request, or hand it on."""
        if scope["type"] == "lifespan":
            await self._inner(scope, receive, send)
            return
        if scope["type"] != "http":
            return  # no web socket is ours; the server closes it
        if refusal := self._refusal(scope):
            await _refuse(refusal, send)
            return

        await self._inner(scope, receive, send)

    def _refusal(self, scope: _Scope) -> int | None:
        """The status to refuse with, by the request's first lines; None to let it pass."""
        path, method = scope["path"], scope["method"]
        if path == _HEALTH:
            return None if method in ("GET", "HEAD") else 405
        if path not in LARGEST:
            return 404
        if method != "POST":
            return 405
        headers = dict(scope["headers"])
        length = headers.get(b"content-length", b"")
        # With both headers a server may believe the other one: a length must be the only word.
        if not length.isdigit() or b"transfer-encoding" in headers:
            return 411
        if int(length) > LARGEST[path]:
            return 413
        return None if self._knows(headers.get(KEY_HEADER)) else 401

    def _knows(self, shown: bytes | None) -> bool:
        if shown is None:
            return False
        try:
            return self._enrolled(base64.b64decode(shown, validate=True))
        except binascii.Error:
            return False


async def _refuse(status: int, send: _Send) -> None:
    body = json.dumps(_NOT_ENROLLED).encode() if status == 401 else b""
    headers = [
        (b"connection", b"close"),  # whatever body is on its way is not waited for
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
