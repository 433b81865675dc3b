"""Machines that are none: network namespaces on one bridge, each with an address of its own.

Linux, root and iproute2 only. Nothing outside the namespaces is touched.
"""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Final

_SUBNET: Final = "10.77.0"


class Network:
    """A bridge and some machines on it. Use it as a context manager.

    Args:
        machines: their names, at most nine characters each; they get addresses in this order.

    """

    def __init__(self, machines: Sequence[str]) -> None:
        # Another run of this program may be going on.
        self._prefix = f"ms{os.getpid()}"
        self._machines = list(machines)
        self._hub = f"{self._prefix}-hub"

    def __enter__(self) -> "Network":
        try:
            self._ip("netns", "add", self._hub)
            self._ip("-n", self._hub, "link", "add", "bridge", "type", "bridge")
            self._ip("-n", self._hub, "link", "set", "bridge", "up")
            for machine in self._machines:
                self._join(machine)
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._remove()

    def address(self, machine: str) -> str:
        """A machine's address on the bridge."""
        return f"{_SUBNET}.{1 + self._machines.index(machine)}"

    def start(self, machine: str, words: Sequence[object], log: Path) -> subprocess.Popen[bytes]:
        """Start `python -m ...` on a machine; what it prints is added to `log`."""
        inside = ["ip", "netns", "exec", self._name(machine), sys.executable, "-m"]
        with log.open("ab") as stream:
            return subprocess.Popen(
                [*inside, *map(str, words)], stdout=stream, stderr=stream, start_new_session=True
            )

    def link(self, machine: str, *, up: bool) -> None:
        """Pull a machine's cable, or plug it in."""
        self._ip("-n", self._hub, "link", "set", machine, "up" if up else "down")

    def _join(self, machine: str) -> None:
        name = self._name(machine)
        self._ip("netns", "add", name)
        peer = ("peer", "name", machine, "netns", self._hub)
        self._ip("link", "add", "eth0", "netns", name, "type", "veth", *peer)
        self._ip("-n", self._hub, "link", "set", machine, "master", "bridge", "up")
        self._ip("-n", name, "address", "add", f"{self.address(machine)}/24", "dev", "eth0")
        for device in ("lo", "eth0"):
            self._ip("-n", name, "link", "set", device, "up")

    def _remove(self) -> None:
        for name in (*map(self._name, self._machines), self._hub):
            subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)

    def _name(self, machine: str) -> str:
        return f"{self._prefix}-{machine}"

    @staticmethod
    def _ip(*words: str) -> None:
        subprocess.run(["ip", *words], check=True, capture_output=True, text=True)
