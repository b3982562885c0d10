"""Run the cases from a shell: `python -m posixcases [-b BED] [-l LAYER] [-k WORD] [-v]`."""

import argparse
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from . import beds, calls, frame, suite


def main() -> int:
    """Run what was chosen, print every failure and the figures; return 1 if anything failed."""
    parser = argparse.ArgumentParser(prog="posixcases", description=__doc__)
    parser.add_argument("-b", "--bed", default="ext4", choices=sorted(beds.BEDS))
    parser.add_argument("-l", "--layer", default="upper", choices=("upper", "lower"))
    parser.add_argument("-a", "--area", action="append", help="only this area")
    parser.add_argument("-k", "--word", default="", help="only cases with this in their name")
    parser.add_argument("-v", "--verbose", action="store_true", help="print skips and passes too")
    options = parser.parse_args()
    chosen = [
        c
        for c in frame.CASES
        if options.word in c.name and (not options.area or c.area in options.area)
    ]
    home = Path(tempfile.mkdtemp(prefix="posixcases-"))
    started = time.monotonic()
    try:
        with calls.own_mounts():
            results = suite.run_on(beds.BEDS[options.bed], home, options.layer, chosen)
    finally:
        shutil.rmtree(home, ignore_errors=True)
    for one in results:
        if one.outcome == "fail" or options.verbose:
            print(f"{one.outcome:4} {one.area}.{one.name}: {one.text}")
    if options.verbose:
        for one in sorted(results, key=lambda r: -r.seconds)[:10]:
            print(f"{one.seconds:6.2f} s {one.area}.{one.name}")
    tally = Counter(r.outcome for r in results)
    checks = sum(r.checks for r in results)
    print(
        f"{options.bed} {options.layer}: {len(results)} cases, {checks} checks: "
        f"{tally['pass']} passed, {tally['fail']} failed, {tally['skip']} skipped, {tally['limit']} documented limits "
        f"in {time.monotonic() - started:.1f} s"
    )
    return 1 if tally["fail"] else 0


if __name__ == "__main__":
    sys.exit(main())
