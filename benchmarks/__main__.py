"""Runs every benchmark, or those named: `python -m benchmarks [NAME ...]`."""

import argparse
from collections.abc import Callable
from typing import Final

from benchmarks import dp_step, prepare_patient, verify

#: Name -> what runs it, prints it and writes `runs/bench/NAME.json`; True when its bar is met.
BENCHMARKS: Final[dict[str, Callable[[], bool]]] = {
    "dp_step": dp_step.main,
    "prepare_patient": prepare_patient.main,
    "verify": verify.main,
}


def main() -> int:
    """Run the benchmarks; 1 when one misses its bar."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(BENCHMARKS))
    names = parser.parse_args().names or list(BENCHMARKS)
    unknown = [name for name in names if name not in BENCHMARKS]
    if unknown:
        parser.error(f"no benchmark {', '.join(unknown)}; there are {', '.join(BENCHMARKS)}")
    met = [BENCHMARKS[name]() for name in names]
    return 0 if all(met) else 1


if __name__ == "__main__":
    raise SystemExit(main())
