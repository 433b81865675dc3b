"""Messages and answers, and the identity that lets a process make them."""

import logging

from flwr.app import Error, Message, MessageType, RecordDict
from flwr.common.constant import SUPERLINK_NODE_ID, ErrorCode
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

# Flower logs through its own handler, every refused request of a stranger's as an error; what a run
# tells its user comes from our own progress.
logging.getLogger("flwr").setLevel(logging.CRITICAL)


def start_identity(run_id: int) -> Run:
    """Say who this process is, which Flower wants before it lets a message be made."""
    TaskIdentity.task_id, TaskIdentity.run_id = 1, run_id
    TaskIdentity.node_id = SUPERLINK_NODE_ID
    return Run.create_empty(run_id=run_id)


def train_message(content: RecordDict, node_id: int, *, ttl: float | None = None) -> Message:
    """Address a plan to a node; after `ttl` seconds (Flower's default: 12 hours) it is void."""
    return Message(content, dst_node_id=node_id, message_type=MessageType.TRAIN, ttl=ttl)


def reply(content: RecordDict, to: Message) -> Message:
    """Answer a message."""
    return Message(content, reply_to=to)


def error_reply(name: str, to: Message) -> Message:
    """Answer a message with the name of an error."""
    return Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, name), reply_to=to)


def give_message_id(message: Message, message_id: str) -> None:
    """Name a message, as a SuperLink would."""
    message.metadata.__dict__["_message_id"] = message_id
