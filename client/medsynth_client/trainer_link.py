"""The node's half of the socket between node and trainer: a plan in, an update or a name out."""

from pathlib import Path
from typing import Final

import grpc

from medsynth_common.errors import TimedOut, TrainerDied
from medsynth_common.plan import RoundPlan
from medsynth_common.update import SiteUpdate
from medsynth_common.wire.parts import plan_parts, update_from_parts
from medsynth_common.wire.trainer_rpc import TrainerClient

#: How long a trainer may take to come up, or to come back, before a plan is given up, seconds.
START_SECONDS: Final = 120.0
#: Longest time for one plan, seconds.
LONGEST_PLAN: Final = 24 * 3600.0


class TrainerLink:
    """Hands plans to the trainer on `socket`."""

    def __init__(self, socket: Path, *, start: float = START_SECONDS) -> None:
        self._socket = socket
        self._start = start

    def carry(self, plan: RoundPlan, *, timeout: float) -> SiteUpdate | str:
        """Give the trainer's update, or the name of its error.

        Raises:
            TrainerDied: it ended meanwhile, or did not come up.
            TimedOut: it did not answer within `timeout` seconds, at most a day.
            BadMessage: what it sent is no update.

        """
        client = TrainerClient(self._socket)
        try:
            client.describe(timeout=self._start)
            parts = client.carry(plan_parts(plan), timeout=min(timeout, LONGEST_PLAN))
            return update_from_parts(parts)
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED and client.serving(timeout=5.0):
                raise TimedOut(f"the trainer took longer than {timeout:.0f} s") from error
            raise TrainerDied(f"the trainer is gone ({error.code().name})") from error
        finally:
            client.close()
