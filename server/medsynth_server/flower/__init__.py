"""The server's only files that know Flower's inner names, written against the pinned version.

`messages` makes and answers messages. `link` is the half of Flower's SuperLink that sites talk to:
`desk` answers their requests, `state` remembers runs and nodes, `objects` what messages consist of.
`tests/server/test_flower_contract.py` says which names these are; when it fails after an upgrade,
these are the files to mend.
"""

from medsynth_server.flower.messages import (
    error_reply,
    give_message_id,
    reply,
    start_identity,
    train_message,
)

__all__ = ["error_reply", "give_message_id", "reply", "start_identity", "train_message"]
