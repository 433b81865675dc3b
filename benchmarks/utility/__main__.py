"""Measures utility at one size: `python -m benchmarks.utility [SIZE] [--development]`."""

import argparse

from benchmarks.utility.bench import measure
from benchmarks.utility.presets import PRESETS


def main() -> int:
    """Run the bench, or go on with it; 1 when a goal is missed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.utility", description=__doc__)
    parser.add_argument("preset", nargs="?", choices=PRESETS, default="small")
    parser.add_argument(
        "--development",
        action="store_true",
        help="on the federation that settings are chosen on; the table is printed and not recorded",
    )
    parser.add_argument("--rows", default="", help="only rows whose name holds this")
    given = parser.parse_args()
    preset = PRESETS[given.preset]
    return 0 if measure(preset, development=given.development, only=given.rows) else 1


if __name__ == "__main__":
    raise SystemExit(main())
