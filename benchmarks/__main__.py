"""Runs the benchmarks, or those named, and makes `RESULTS.md`: `python -m benchmarks [NAME ...]`.

`python -m benchmarks results` only makes the page. Those in `LONG` run when they are named.
"""

import argparse
from collections.abc import Callable
from typing import Final

from benchmarks import deployed_round, prepare_patient, results, verify
from benchmarks.speed import dp_step, growth, local_round, start, synthesis, update_bytes
from benchmarks.utility import bench as utility

#: Name -> what runs it, prints it and writes `results/NAME.json`; True when no goal was missed.
BENCHMARKS: Final[dict[str, Callable[[], bool]]] = {
    "dp_step": dp_step.main,
    "local_round": local_round.main,
    "start": start.main,
    "synthesis": synthesis.main,
    "prepare_patient": prepare_patient.main,
    "update_bytes": update_bytes.main,
    "utility": utility.main,
    "verify": verify.main,
}
#: These take longer than ten minutes together with the others.
LONG: Final[dict[str, Callable[[], bool]]] = {
    "deployed_round": deployed_round.main,
    "growth": growth.main,
    "thousand_sites": growth.thousand_sites,
}
_PAGE_ALONE: Final = "results"


def main() -> int:
    """Run the benchmarks; 1 when one misses a goal."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    known = [*BENCHMARKS, *LONG, _PAGE_ALONE]
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(known))
    names = parser.parse_args().names or list(BENCHMARKS)
    unknown = [name for name in names if name not in known]
    if unknown:
        parser.error(f"no benchmark {', '.join(unknown)}; there are {', '.join(known)}")
    met = [(BENCHMARKS | LONG)[name]() for name in names if name != _PAGE_ALONE]
    results.render()
    return 0 if all(met) else 1


if __name__ == "__main__":
    raise SystemExit(main())
