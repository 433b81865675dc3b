import platform
import subprocess
import sys

import pytest

#: Takes and frees memory, and prints how many bytes stayed with the process.
_PROGRAM = """
import sys
from pathlib import Path
from medsynth_common.allocator import keep_freed_memory

def held():
    return 4096 * int(Path("/proc/self/statm").read_text().split()[1])

if sys.argv[1] == "keep":
    keep_freed_memory()
before = held()
taken = bytearray(b"1") * (24 << 20)
del taken
print(held() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the allocator is not glibc's")
def test_freed_memory_stays_with_the_process() -> None:
    def left(how: str) -> int:
        command = [sys.executable, "-c", _PROGRAM, how]
        return int(subprocess.run(command, check=True, capture_output=True).stdout)

    assert left("as it is") < 4 << 20
    assert left("keep") > 20 << 20
