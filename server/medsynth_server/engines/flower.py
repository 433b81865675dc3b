"""The real engine: a Flower `Grid` whose nodes are hospitals, asked over the link.

Each plan is sealed for its site and laid out for the site's node to fetch; each answer's seal is
checked before anybody reads it. A node that was restarted is asked again at once, and its site
answers from what it keeps; one that stays away is dropped from the round and asked in the next.
"""

import logging
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from flwr.app import Array, ArrayRecord, Message
from torch import Tensor

from medsynth_common.errors import BadMessage, MedsynthError, Refused, TimedOut
from medsynth_common.identity import SigningKey, VerifyKey
from medsynth_common.identity.cards import SiteCard
from medsynth_common.identity.sealing import Sealed, check_update_seal, seal_plan, sealed_in
from medsynth_common.plan import RoundPlan
from medsynth_common.update import SiteUpdate
from medsynth_common.wire.forms import expected_update
from medsynth_common.wire.records import packed, plan_to_records, update_from_records
from medsynth_server.federation import Stopped
from medsynth_server.flower import train_message
from medsynth_server.flower.link import ROOM, Arriving, Gone, Link, Node, pem_of

log = logging.getLogger(__name__)

#: How often a node may be lost and asked again within one round.
_TRIES: Final = 5
#: Seconds for which a node that went away may come back before the round goes on without it.
GRACE: Final = 30.0
_POLL: Final = 0.25
#: Between two looks at nodes and answers when no answer has come, seconds.
_LOOK: Final = 1.0
_BEAT_SECONDS: Final = 5.0
#: What an error may be called; anything else that a node sends is no name of an error.
_ERROR_NAME: Final = re.compile(r"[A-Za-z][A-Za-z0-9]{0,63}")
#: An answer's objects: its records, and at least one chunk of so many bytes for its tensors.
_OBJECTS_BESIDE, _CHUNK = 32, 1 << 20
#: An answer of more bytes stays on disk.
LARGE: Final = 32 << 20


class NodeLost(MedsynthError):
    """A site's node went away in the middle of a round, and did not come back in time."""


class NotEnrolled(MedsynthError):
    """The site was taken out of the federation."""


@dataclass(kw_only=True)
class _Asked:
    """One site's open question.

    Attributes:
        site: whom it is for.
        node: the site's.
        plan: what it asks.
        key: the site's, for its seal.
        sealed: the seal on the plan as it was last sent.
        name: the message's, on the link; None while the node is away.
        activated: when the node had last joined as the question was laid out.
        tries: how often it has been laid out.
        lost: since when the node is away; None while it is not.
        arriving: the answer's parts, once its first was seen.

    """

    site: str
    node: int
    plan: RoundPlan
    key: VerifyKey
    sealed: Sealed | None = None
    name: str | None = None
    activated: str = ""
    tries: int = 0
    lost: float | None = None
    arriving: Arriving | None = None


class _Shared:
    """The weights of the plan that was laid out last, packed: most rounds ask all sites with one.

    It is packed, hashed and stored once, then, and not for every site.
    """

    def __init__(self, array: Callable[[bytes, str], Array]) -> None:
        self._array = array
        self._weights: Mapping[str, Tensor] = {}
        self._record: ArrayRecord | None = None

    def packed(self, weights: Mapping[str, Tensor]) -> ArrayRecord:
        """The weights as a record."""
        same = weights.keys() == self._weights.keys() and all(
            tensor is self._weights[name] for name, tensor in weights.items()
        )
        if self._record is None or not same:
            self._weights, self._record = weights, packed(weights, array=self._array)
        return self._record


class FlowerGrid:
    """Sites behind a link.

    Args:
        link: to their nodes.
        cards: the enrolled sites' cards, as they are now.
        key: the coordinator's, for plans.
        quorum: how many sites must be in touch before any is asked.
        join_deadline: seconds to wait for so many.
        tell: says something that a person should see.
        stopping: whether the run should end rather than wait.
        grace: seconds for which a lost node may come back within a round.

    """

    def __init__(
        self,
        link: Link,
        cards: Callable[[], Mapping[str, SiteCard]],
        key: SigningKey,
        *,
        quorum: int,
        join_deadline: float,
        tell: Callable[[str], None],
        stopping: Callable[[], bool] = lambda: False,
        grace: float = GRACE,
    ) -> None:
        self._link, self._cards, self._key = link, cards, key
        self._quorum, self._join_deadline = quorum, join_deadline
        self._tell, self._stopping, self._grace = tell, stopping, grace
        self._node_of: dict[str, int] = {}
        self._pems: dict[str, bytes] = {}
        # Also of sites that were taken out, whose questions may still be open.
        self._sites: dict[int, str] = {}
        self._keys: dict[str, VerifyKey] = {}
        self._enrolling = threading.Lock()  # a status board looks from another thread
        self._beaten = float("-inf")
        self.enrol()

    def enrol(self) -> None:
        """Read the cards anew: let in whom there is a card for, and nobody else."""
        with self._enrolling:
            self._enrol(self._cards())

    def _enrol(self, cards: Mapping[str, SiteCard]) -> None:
        pems = {site: pem_of(card.node_key) for site, card in cards.items()}
        if pems != self._pems:
            self._node_of = {s: self._link.register(card.node_key) for s, card in cards.items()}
            self._sites |= {node: site for site, node in self._node_of.items()}
            self._keys |= {
                site: VerifyKey.parse(card.signing_key, name=site) for site, card in cards.items()
            }
            self._pems = pems

    def enrolled(self, pem: bytes) -> bool:
        """Whether a node with this public key may speak."""
        return pem in self._pems.values()

    def nodes(self) -> dict[str, Node]:
        """Every enrolled site's node, by the site's name."""
        self.enrol()
        nodes = self._link.nodes()
        return {site: nodes[node] for site, node in sorted(self._node_of.items())}

    def get_node_ids(self) -> Iterable[int]:
        """The nodes of all sites in touch, in the order of the sites' names.

        Raises:
            TimedOut: the quorum was not in touch within the time for joining.
            Stopped: the operator did not want to wait for it.

        """
        deadline = time.monotonic() + self._join_deadline
        told: list[str] | None = None
        while True:
            self._beat()
            nodes = self.nodes()
            here = [site for site, node in nodes.items() if node.online]
            if len(here) >= self._quorum:
                if told is not None:
                    self._tell(f"in touch: {', '.join(here)}")
                return [self._node_of[site] for site in here]
            missing = [site for site in nodes if site not in here]
            if missing != told:
                self._tell(self._waiting(here, missing))
                told = missing
            if self._stopping():
                raise Stopped("stopped while waiting for sites")
            if time.monotonic() > deadline:
                raise TimedOut(
                    f"{self._waiting(here, missing)}; waited {self._join_deadline:g} s: "
                    "see that their `medsynth-client run` is up, or lower the quorum"
                )
            time.sleep(_POLL)

    def _beat(self) -> None:
        """Keep the link's run alive, and learn here if it is not: else every node seems lost."""
        if time.monotonic() > self._beaten + _BEAT_SECONDS:
            self._link.beat()
            self._beaten = time.monotonic()

    def site_of(self, node: int) -> str:
        """The name of a node's site."""
        return self._sites[node]

    def ask(
        self, plans: Mapping[int, RoundPlan], *, timeout: float
    ) -> Iterator[tuple[int, SiteUpdate | str]]:
        """Ask, and give answers as they come; whoever has not answered in time is `TimedOut`.

        A large answer's weights stay on disk (`Shelf`) until they are combined.
        """
        deadline = time.monotonic() + timeout
        open_questions = [self._asked(node, plan) for node, plan in plans.items()]
        try:
            self._lay_out_all(open_questions, timeout)
            while open_questions:
                self._beat()
                late = time.monotonic() > deadline
                nodes = self.nodes()
                new = [asked.name for asked in open_questions if asked.name and not asked.arriving]
                found = self._link.answers(new)
                for asked in list(open_questions):
                    answer = self._look(asked, nodes, found.get(asked.name or ""), timeout)
                    if answer is None and late:
                        answer = TimedOut.__name__
                    if answer is not None:
                        open_questions.remove(asked)
                        self._forget(asked)
                        yield asked.node, answer
                if open_questions:
                    self._link.wait(min(_LOOK, max(0.0, deadline - time.monotonic())))
        finally:
            for asked in open_questions:
                self._forget(asked)

    def _waiting(self, here: list[str], missing: list[str]) -> str:
        if not (here or missing):
            return "waiting for sites: none is enrolled (medsynth-server sites add)"
        return (
            f"waiting for sites: {len(here)} in touch, {self._quorum} needed; "
            f"missing: {', '.join(missing) or 'none that is enrolled'}"
        )

    def _asked(self, node: int, plan: RoundPlan) -> _Asked:
        site = self._sites[node]
        return _Asked(site=site, node=node, plan=plan, key=self._keys[site])

    def _lay_out_all(self, questions: Iterable[_Asked], seconds: float) -> None:
        with self._link.laying_out() as array:
            shared = _Shared(array)
            for asked in questions:
                self._lay_out(asked, seconds, shared)

    def _lay_out(self, asked: _Asked, seconds: float, shared: _Shared) -> None:
        """Seal the plan anew and put it where the site's node finds it."""
        now = time.time()
        sealed = seal_plan(asked.plan, self._key, now=now, lifetime=seconds)
        asked.sealed = sealed_in(sealed)
        asked.activated = self._link.nodes()[asked.node].activated
        records = plan_to_records(sealed, weights=shared.packed(sealed.weights))
        message = train_message(records, asked.node, ttl=seconds + 60.0)
        asked.name, asked.arriving, asked.lost = self._link.ask(message), None, None
        asked.tries += 1

    def _look(
        self,
        asked: _Asked,
        nodes: Mapping[str, Node],
        found: Message | Gone | None,
        seconds: float,
    ) -> SiteUpdate | str | None:
        """Give the checked answer, or an error's name in its place; None while there is none."""
        node = nodes.get(asked.site)
        if node is None:
            return NotEnrolled.__name__
        try:
            if asked.name is not None and not isinstance(found, Gone):
                if (answer := self._answer(asked, found)) is not None:
                    return answer
                if node.online and node.activated == asked.activated:
                    return None
        except (BadMessage, Refused) as error:
            log.info("%s: %s: %s", asked.site, type(error).__name__, error)
            return type(error).__name__
        return self._lost(asked, node, seconds)

    def _answer(self, asked: _Asked, found: Message | None) -> SiteUpdate | str | None:
        """What the link has. Raises whatever is wrong with the answer."""
        assert asked.sealed is not None
        expected = expected_update(asked.plan).values()
        size = sum(tensor.numel() * tensor.element_size() for tensor in expected)
        if asked.arriving is None:
            if found is None:
                return None
            if found.has_error():
                return _error_name(found)
            asked.arriving = self._link.arriving(found, most=size // _CHUNK + _OBJECTS_BESIDE)
        content = self._link.collect(asked.arriving, most=size)
        if content is None:
            return None
        most = size + ROOM
        if size > LARGE:
            update = update_from_records(content, read=self._link.shelve, most=most)
        else:
            update = update_from_records(content, most=most)
        check_update_seal(update, asked.key, question=asked.sealed, now=time.time())
        return update

    def _lost(self, asked: _Asked, node: Node, seconds: float) -> str | None:
        """Ask a node that came back again; give one up that stays away."""
        self._forget(asked)
        if asked.lost is None:
            self._tell(f"{asked.site}: its node went away; it is asked again when it is back")
            asked.lost = time.monotonic()
        if asked.tries >= _TRIES or time.monotonic() > asked.lost + self._grace:
            return NodeLost.__name__
        if node.online:
            self._lay_out_all([asked], seconds)
        return None

    def _forget(self, asked: _Asked) -> None:
        if asked.name is not None:
            self._link.forget(asked.name, asked.arriving.root if asked.arriving else None)
        asked.name = asked.arriving = None


def _error_name(answer: Message) -> str:
    """The name of the error that a node sent, if it is one."""
    reason = str(answer.error.reason)
    return reason if _ERROR_NAME.fullmatch(reason) else BadMessage.__name__
