"""A process that must not outlive the one that started it."""

import os
import signal
import sys
import threading


def end_with_parent() -> None:
    """Send this process SIGTERM when standard input closes, as it does however a parent dies."""

    def watch() -> None:
        # Not sys.stdin: a thread that waits in there makes Python abort when it ends.
        while os.read(sys.stdin.fileno(), 1024):
            pass
        # To the process and not to this thread: its main thread may sit in a system call.
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="parent", daemon=True).start()
