"""Where nodes' requests are answered: by Flower's own handlers and its own check of who asks.

Flower mounts them in a FastAPI application with three layers around. That costs three changes of
thread and twenty reference cycles a request, in which bodies of megabytes stay; here a request is
read, and then a thread does all of it. Only what nodes of ours need is mounted.
"""

from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Final

from fastapi import HTTPException, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import Response
from flwr.supercore.error import http_error_translator
from flwr.supercore.protobuf.constants import PROTOBUF_MEDIA_TYPE
from flwr.supercore.protobuf.translation import (
    PROTOBUF_REQUEST_TYPES,
    ProtobufTranslationMiddleware,
)
from flwr.superlink.routers.fleet.node_auth import authenticate_node
from flwr.superlink.servicer.fleet import fleet_handlers

from medsynth_server.flower.state import State

#: What answers a message, by the last part of its path. Not here: to register or unregister a node,
#: and to fetch an app's code.
_HANDLERS: Final[Mapping[str, Callable[[Any, State], Any]]] = {
    "activate-node": fleet_handlers.activate_node,
    "deactivate-node": fleet_handlers.deactivate_node,
    "send-node-heartbeat": fleet_handlers.send_node_heartbeat,
    "pull-messages": lambda asked, state: fleet_handlers.pull_messages(
        asked, state, state.object_store
    ),
    "push-messages": fleet_handlers.push_messages,
    "get-run": fleet_handlers.get_run,
    "push-object": fleet_handlers.push_object,
    "pull-object": fleet_handlers.pull_object,
    "confirm-message-received": lambda asked, state: fleet_handlers.confirm_message_received(
        asked, state, state.object_store
    ),
}
_FLEET: Final = "/v1/fleet/"
_HEALTH: Final = "/health"


@dataclass(frozen=True)
class _OneState:
    """What Flower's check of nodes asks for the state."""

    one: State

    def state(self) -> State:
        return self.one


class Desk:
    """An ASGI application."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._app = SimpleNamespace(state=SimpleNamespace(linkstate_factory=_OneState(state)))

    async def __call__(
        self,
        scope: MutableMapping[str, Any],
        receive: Callable[[], Awaitable[Any]],
        send: Callable[[Any], Awaitable[None]],
    ) -> None:
        """Answer a request; whatever fails, with no more than a code."""
        request = Request({**scope, "app": self._app, "state": {}}, receive)
        response = await http_error_translator(request, self._answered)
        await response(scope, receive, send)

    async def _answered(self, request: Request) -> Response:
        path: str = request.scope["path"]
        if path == _HEALTH:
            return Response()
        handler = _HANDLERS.get(path.removeprefix(_FLEET))
        if handler is None or not path.startswith(_FLEET):
            raise HTTPException(404)
        body = await request.body()
        return await run_in_threadpool(self._handled, request, handler, body)

    def _handled(
        self, request: Request, handler: Callable[[Any, State], Any], body: bytes
    ) -> Response:
        kind = PROTOBUF_REQUEST_TYPES["POST", request.scope["path"]]
        ProtobufTranslationMiddleware._check_request_media_type(request)
        asked = ProtobufTranslationMiddleware._parse_request(body, kind)
        request.state.protobuf_request = asked
        authenticate_node(request)
        answer = handler(asked, self._state)
        return Response(answer.SerializeToString(), media_type=PROTOBUF_MEDIA_TYPE)
