"""The practice federation of docs/federation.md, followed word for word.

Every process of it, at both sides, is watched meanwhile: none looks up a name or opens a connection
beyond this machine.
"""

import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from federation.test_real_federation import free_port
from medsynth_server.record import RoundEvent, read_events

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "federation.md"
HEADING = "## Practise on one machine"
SECONDS = 600.0
#: Python loads this before anything else; audit events (PEP 578) cannot be got around.
WATCHER = """\
import os, sys

def note(event, arguments):
    if event in ("socket.connect", "socket.sendto", "socket.sendmsg"):
        address = arguments[1]
    elif event in ("socket.getaddrinfo", "socket.gethostbyname"):
        address = arguments[:1]
    else:
        return
    if isinstance(address, tuple):  # a Unix socket's address is text
        line = os.open(os.environ["ADDRESSES"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        os.write(line, f"{event} {address[0]}\\n".encode())
        os.close(line)

sys.addaudithook(note)
"""
HERE = {"localhost", "127.0.0.1", "::1", "None", ""}


def blocks(page: str, heading: str) -> Iterator[list[str]]:
    """The commands of a section; a line that is no command ends a block."""
    section = page.split(f"{heading}\n", 1)[1].split("\n## ", 1)[0]
    for block in re.split(r"\n(?!    )", section):
        if commands := [line.strip() for line in block.splitlines() if line.startswith("    ")]:
            yield commands


class Person:
    """Types what a page says, in a folder of their own."""

    def __init__(self, folder: Path, port: int) -> None:
        self.folder, self._port = folder, port
        self._terminals: list[subprocess.Popen[bytes]] = []
        programs = folder / "bin"
        programs.mkdir()
        for program in ("server", "client"):
            # As pip installs them, whatever this Python is called.
            script = programs / f"medsynth-{program}"
            script.write_text(f'#!/bin/sh\nexec {sys.executable} -m medsynth_{program} "$@"\n')
            script.chmod(0o755)
        (programs / "sitecustomize.py").write_text(WATCHER)
        self.addresses = folder / "addresses"
        path = f"{programs}{os.pathsep}{os.environ['PATH']}"
        self._environment = {
            **os.environ,
            "PATH": path,
            "PYTHONPATH": f"{programs}{os.pathsep}{os.environ.get('PYTHONPATH', '')}",
            "ADDRESSES": str(self.addresses),
            "OMP_NUM_THREADS": "1",
        }
        (folder / "deploy").symlink_to(ROOT / "deploy")

    def types(self, command: str) -> str:
        """Run a command to its end; gives what it printed."""
        done = subprocess.run(
            self._words(command),
            cwd=self.folder,
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
        return done.stdout

    def opens_a_terminal_for(self, command: str) -> Path:
        """Start a command; gives what is printed there, as a file."""
        shown = self.folder / f"terminal-{len(self._terminals)}"
        with shown.open("wb") as stream:
            started = subprocess.Popen(
                self._words(command),
                cwd=self.folder,
                env=self._environment,
                stdout=stream,
                stderr=stream,
            )
        self._terminals.append(started)
        return shown

    def waits_for(self, words: str, shown: Path) -> None:
        """Watch a terminal until it says something."""
        until = time.monotonic() + SECONDS
        while words not in shown.read_text():
            assert time.monotonic() < until, shown.read_text()
            assert all(one.poll() in (None, 0) for one in self._terminals), shown.read_text()
            time.sleep(0.2)

    def goes_home(self) -> None:
        """Close every terminal."""
        for one in self._terminals:
            one.terminate()
        for one in self._terminals:
            one.wait(60)

    def _words(self, command: str) -> list[str]:
        # The one thing that is not as on the page: a port that is free.
        return shlex.split(command.replace("8443", str(self._port)))


@pytest.mark.slow
def test_the_page_is_followed_word_for_word_from_nothing_to_a_report(tmp_path: Path) -> None:
    person = Person(tmp_path, free_port())
    coordinator = tmp_path / "terminal-0"
    followed = 0
    try:
        for block in blocks(PAGE.read_text(), HEADING):
            for command in block:
                followed += 1
                if re.match(r"medsynth-\w+ run ", command):
                    shown = person.opens_a_terminal_for(command)
                    if shown == coordinator:
                        person.waits_for("serving at", shown)
                else:
                    person.types(command)
            if any("run hospital-2" in command for command in block):
                person.waits_for("report.html", coordinator)
    finally:
        person.goes_home()
    assert followed == 15
    asked = {line.partition(" ")[2] for line in person.addresses.read_text().splitlines()}
    assert asked & HERE, "the watcher saw nothing"
    assert asked <= HERE
    rounds = [
        event
        for event in read_events(tmp_path / "study" / "run" / "metrics.jsonl")
        if isinstance(event, RoundEvent)
    ]
    assert rounds[-1].stage == "adversarial"
    assert {site for event in rounds for site in event.sites} == {"site-1", "site-2"}
    assert (tmp_path / "study" / "run" / "report.html").is_file()


def test_a_section_s_commands_are_found() -> None:
    page = "## One\n\ntext\n\n    a b\n    c\n\nmore\n\n    d\n\n    e\n\n## Two\n\n    f\n"
    assert list(blocks(page, "## One")) == [["a b", "c"], ["d"], ["e"]]
