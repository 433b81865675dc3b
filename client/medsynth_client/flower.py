"""The hospital's only file that knows Flower's inner names, written against the pinned version.

A node's half of Flower's fleet API: protobuf messages over HTTPS, all of them asked for from
here; no port is opened. What a SuperNode does besides is not here, and so cannot happen: no FAB
(an app's code) is ever fetched, no process is started for a message.

`tests/client/test_flower_contract.py` says which names these are; when it fails after an upgrade,
this is the file to mend.
"""

import json
import logging
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import httpx
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from flwr.app import Error, Message, MessageType, RecordDict
from flwr.app.message import remove_content_from_message
from flwr.common.constant import HEARTBEAT_DEFAULT_INTERVAL, ErrorCode
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    DeactivateNodeRequest,
    PullMessagesRequest,
    PushMessagesRequest,
)
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.message_pb2 import (
    ConfirmMessageReceivedRequest,
    ObjectTree,
    PullObjectRequest,
    PushObjectRequest,
)
from flwr.proto.node_pb2 import Node
from flwr.proto.run_pb2 import GetRunRequest
from flwr.supercore.error import ApiErrorCode
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    iterate_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.inflatable.inflatable_utils import (
    ObjectUnavailableError,
    inflate_object_from_contents,
    pull_objects,
)
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

from medsynth_client.connection import fault_of, not_in_time
from medsynth_common.errors import (
    BadMessage,
    ConnectionFailed,
    MedsynthError,
    NotAdmitted,
    Problem,
    Unreachable,
    Untrusted,
)
from medsynth_common.wire.parts import LARGEST_BYTES

# Flower logs through its own handler; what a node tells comes from our own log.
logging.getLogger("flwr").setLevel(logging.CRITICAL)

#: The kind of message that carries a plan.
PLAN: Final = str(MessageType.TRAIN)
_TIMEOUT: Final = httpx.Timeout(30.0, connect=5.0)


class RunEnded(MedsynthError):
    """The coordinator has ended the run that a message belongs to; the message is nobody's."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """A message that waits for an answer; its content is still at the coordinator."""

    head: Message
    tree: ObjectTree

    @property
    def run(self) -> int:
        """The Flower run it belongs to."""
        return int(self.head.metadata.run_id)

    @property
    def kind(self) -> str:
        """What kind of work it asks for."""
        return str(self.head.metadata.message_type)

    @property
    def expires(self) -> float:
        """Until when an answer is of use, seconds since 1970."""
        return float(self.head.metadata.created_at + self.head.metadata.ttl)


class Fleet:
    """The connection of one node. Use it as a context manager.

    Every method raises `Unreachable`, `Untrusted` or `NotAdmitted` when the request failed.
    """

    def __init__(
        self, address: str, *, key: EllipticCurvePrivateKey, context: ssl.SSLContext
    ) -> None:
        self._address = address
        self._public = public_key_to_bytes(key.public_key())
        self._client = FleetHttpClient(
            f"https://{address}",
            interceptors=[NodeAuthHttpInterceptor(key, key.public_key())],
            verify=context,
            timeout=_TIMEOUT,
        )
        self._node = Node()

    def __enter__(self) -> "Fleet":
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def activate(self) -> int:
        """Join; gives the node's id, which stays the same for the same key."""
        request = ActivateNodeRequest(
            public_key=self._public, heartbeat_interval=HEARTBEAT_DEFAULT_INTERVAL
        )
        answer = self._call(self._client.ActivateNode, request)
        self._node = Node(node_id=answer.node_id)
        return int(answer.node_id)

    def deactivate(self, node: int) -> bool:
        """Leave, or end what an earlier process of this node left open; False when nothing was.

        Nothing is open any more, for instance, when the node was away longer than a session lasts.

        The coordinator then knows at once that no answer will come to what it had asked.
        """
        try:
            self._call(self._client.DeactivateNode, DeactivateNodeRequest(node_id=node))
        except NotAdmitted:
            return False
        return True

    def require_enrolled(self, node: int) -> None:
        """Raise `NotAdmitted` unless the key is known. Changes nothing: a node in session stays.

        `node` is its number, 0 while it has none.
        """
        request = GetRunRequest(node=Node(node_id=node), run_id=0)
        try:
            self._call(self._client.GetRun, request)
        except NotAdmitted as error:
            response = error.__cause__.response  # type: ignore[union-attr] # _call's own
            unauthorized = response.status_code == httpx.codes.UNAUTHORIZED
            # The key was looked at before the number, and the number is not known yet.
            if unauthorized and (node or _flower_code(response) is not None):
                raise

    def heartbeat(self) -> bool:
        """Say that this node lives; False when the coordinator does not know it any more."""
        request = SendNodeHeartbeatRequest(
            node=self._node, heartbeat_interval=HEARTBEAT_DEFAULT_INTERVAL
        )
        return bool(self._call(self._client.SendNodeHeartbeat, request).success)

    def pull(self) -> Question | None:
        """Take the next message, which is never given again; None when there is none."""
        answer = self._call(self._client.PullMessages, PullMessagesRequest(node=self._node))
        if not answer.messages_list:
            return None
        head = message_from_proto(answer.messages_list[0])
        return Question(head=head, tree=answer.message_object_trees[0])

    def brings_code(self, question: Question) -> bool:
        """Whether the message's run has an app's code that a SuperNode would fetch and run."""
        request = GetRunRequest(node=self._node, run_id=question.run)
        return bool(self._call(self._client.GetRun, request).run.fab_hash)

    def content(self, question: Question) -> RecordDict:
        """Fetch what a message holds. Raises `BadMessage` when it does not decode, `RunEnded`."""
        names = {tree.object_id for tree in iterate_object_tree(question.tree)}
        fetched = 0

        def fetch(name: str) -> bytes:
            nonlocal fetched
            request = PullObjectRequest(node=self._node, run_id=question.run, object_id=name)
            answer = self._call(self._client.PullObject, request)
            if not answer.object_found:
                raise RunEnded(f"object {name[:12]} is not there any more")
            if not answer.object_available:
                raise ObjectUnavailableError(name)
            fetched += len(answer.object_content)
            if fetched > LARGEST_BYTES:
                wanted = f"at most {LARGEST_BYTES} bytes"
                raise BadMessage(Problem(name="message", value="more", wanted=wanted))
            return bytes(answer.object_content)

        try:
            contents = pull_objects(sorted(names), fetch)
            message = inflate_object_from_contents(question.tree.object_id, contents)
            content = message.content
        except MedsynthError:
            raise
        except Exception as error:
            # An edge: bytes that a peer made up raise whatever Flower's readers raise.
            value = type(error).__name__
            raise BadMessage(Problem(name="message", value=value, wanted="records")) from error
        self._call(
            self._client.ConfirmMessageReceived,
            ConfirmMessageReceivedRequest(
                node=self._node, run_id=question.run, message_object_id=question.tree.object_id
            ),
        )
        return content

    def answer(self, question: Question, answer: RecordDict | str) -> None:
        """Send the answer, or the name of an error. Raises `RunEnded` when nobody wants it."""
        head = question.head
        head.metadata.__dict__["_message_id"] = question.tree.object_id
        if isinstance(answer, str):
            reply = Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, answer), reply_to=head)
        else:
            reply = Message(answer, reply_to=head)
        with no_object_id_recompute():
            reply.metadata.__dict__["_message_id"] = reply.object_id
            objects = get_all_nested_objects(reply)
            request = PushMessagesRequest(
                node=self._node,
                messages_list=[message_to_proto(remove_content_from_message(reply))],
                message_object_trees=[get_object_tree(reply)],
                clientapp_runtime_list=[0.0],
            )
            told = self._call(self._client.PushMessages, request)
            wanted = set(told.objects_to_push)
            for name in [name for name in objects if name in wanted]:
                part = PushObjectRequest(
                    node=self._node,
                    run_id=question.run,
                    object_id=name,
                    object_content=objects[name].deflate(),
                    session_id=told.session_id,
                )
                if not self._call(self._client.PushObject, part).stored:
                    raise Unreachable(f"{self._address}: the coordinator did not store the answer")

    def _call(self, method: Callable[[Any], Any], request: Any) -> Any:
        try:
            return method(request)
        except httpx.HTTPStatusError as error:
            raise self._refusal(error.response) from error
        except (httpx.HTTPError, ssl.SSLError, OSError) as error:
            raise fault_of(error, self._address) from error
        except ValueError as error:  # what came is no protobuf
            raise Untrusted(
                f"{self._address}: the answer is not a coordinator's (a proxy's page?)"
            ) from error

    def _refusal(self, response: httpx.Response) -> ConnectionFailed | RunEnded:
        code = _flower_code(response)
        if code == ApiErrorCode.FLEET_RUN_STATUS_NOT_ALLOWED:
            return RunEnded("the run is not running any more")
        if code == ApiErrorCode.FLEET_NODE_DEACTIVATION_FAILED:
            return NotAdmitted(f"{self._address}: this node is not in session there")
        if code == ApiErrorCode.FLEET_NODE_ACTIVATION_FAILED:
            return NotAdmitted(
                f"{self._address}: the coordinator does not take this site's node key (is "
                "site.card enrolled there? is another node connected with the same key?)"
            )
        if response.status_code == httpx.codes.UNAUTHORIZED:
            late = not_in_time(response.headers.get("date"), now=time.time())
            return late or NotAdmitted(
                f"{self._address}: the coordinator does not take this site's node key (401; is "
                "site.card enrolled there?)"
            )
        if response.status_code == httpx.codes.NOT_FOUND:
            return Untrusted(f"{self._address}: what answers there is not a coordinator (404)")
        if response.status_code in (httpx.codes.BAD_REQUEST, httpx.codes.FORBIDDEN):
            return NotAdmitted(f"{self._address}: refused ({response.status_code}, code {code})")
        return Unreachable(f"{self._address}: HTTP {response.status_code}")


def _flower_code(response: httpx.Response) -> int | None:
    try:
        code = json.loads(response.text)["code"]
    except (ValueError, KeyError, TypeError):
        return None
    return code if isinstance(code, int) else None
