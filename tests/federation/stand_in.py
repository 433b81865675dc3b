"""A stand-in hospital: a node that speaks the link's protocol, and says what a test wants."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from flwr.app import Error, Message, RecordDict
from flwr.app.message import remove_content_from_message
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    DeactivateNodeRequest,
    PullMessagesRequest,
    PushMessagesRequest,
)
from flwr.proto.message_pb2 import PullObjectRequest, PushObjectRequest
from flwr.proto.node_pb2 import Node
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    iterate_object_tree,
)
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

from medsynth_common.identity import SigningKey
from medsynth_common.identity.cards import SiteCard
from medsynth_common.plan import RoundPlan
from medsynth_common.wire.records import plan_from_records

#: What a stand-in makes of a plan: an answer's content, an error's name, or silence.
Saying = Callable[[RoundPlan], RecordDict | str | None]


@dataclass
class StandIn:
    """One site's node, in a thread."""

    site: str
    say: Saying = lambda plan: "PolicyRefusal"
    node_key: Any = field(default_factory=lambda: ec.generate_private_key(ec.SECP384R1()))
    signing_key: SigningKey = field(default_factory=SigningKey.generate)
    seen: list[RoundPlan] = field(default_factory=list)
    failed: BaseException | None = None

    def __post_init__(self) -> None:
        self._stop = threading.Event()
        self.idle = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True)

    @property
    def card(self) -> SiteCard:
        public = self.node_key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
        return SiteCard(
            site=self.site, node_key=public.decode(), signing_key=self.signing_key.public.text
        )

    def start(self, address: str, ca: bytes) -> "StandIn":
        self._address, self._ca = address, ca
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._stop.clear()
        self._thread.start()
        return self

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(20)
        assert not self._thread.is_alive()

    def _work(self) -> None:
        try:
            with self.client() as client:
                self._serve(client)
        except Exception as error:
            self.failed = error
        finally:
            self.idle.set()

    def client(self) -> Any:
        keys = self.node_key, self.node_key.public_key()
        return FleetHttpClient.from_server_address(
            self._address, False, self._ca, interceptors=[NodeAuthHttpInterceptor(*keys)]
        )

    def _serve(self, client: Any) -> None:
        key = public_key_to_bytes(self.node_key.public_key())
        joined = client.ActivateNode(ActivateNodeRequest(public_key=key, heartbeat_interval=600))
        node = Node(node_id=joined.node_id)
        try:
            while not self._stop.wait(0.05):
                found = client.PullMessages(PullMessagesRequest(node=node))
                if found.messages_list:
                    self.idle.clear()
                    self._answer(client, node, found)
                    self.idle.set()
        finally:
            client.DeactivateNode(DeactivateNodeRequest(node_id=node.node_id))

    def _answer(self, client: Any, node: Node, found: Any) -> None:
        head, tree = message_from_proto(found.messages_list[0]), found.message_object_trees[0]
        run = head.metadata.run_id
        contents = {}
        for part in iterate_object_tree(tree):
            ask = PullObjectRequest(node=node, run_id=run, object_id=part.object_id)
            pulled = client.PullObject(ask)
            assert pulled.object_available
            contents[part.object_id] = pulled.object_content
        question = inflate_object_from_contents(tree.object_id, contents)
        question.metadata.__dict__["_message_id"] = tree.object_id
        plan = plan_from_records(question.content)
        self.seen.append(plan)
        said = self.say(plan)
        if said is None:
            return
        content = Error(1, said) if isinstance(said, str) else said
        answer = Message(content, reply_to=question)
        self.push(client, node, answer)

    def push(self, client: Any, node: Node, answer: Message) -> None:
        answer.metadata.__dict__["_message_id"] = answer.object_id
        objects = get_all_nested_objects(answer)
        pushed = client.PushMessages(
            PushMessagesRequest(
                node=node,
                messages_list=[message_to_proto(remove_content_from_message(answer))],
                message_object_trees=[get_object_tree(answer)],
            )
        )
        for name in pushed.objects_to_push:
            client.PushObject(
                PushObjectRequest(
                    node=node,
                    run_id=answer.metadata.run_id,
                    session_id=pushed.session_id,
                    object_id=name,
                    object_content=objects[name].deflate(),
                )
            )
