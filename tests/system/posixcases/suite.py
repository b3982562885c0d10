"""All areas together, and how a choice of cases is run on a bed."""

from collections.abc import Sequence
from pathlib import Path

from . import (  # noqa: F401  (importing an area registers its cases)
    attributes,
    data,
    folders,
    links,
    opens,
    owners,
    paths,
    permissions,
    renames,
    times,
)
from .beds import Bed
from .frame import CASES, Case, Result, run

AREAS = tuple(dict.fromkeys(c.area for c in CASES))


def run_on(kind: type[Bed], home: Path, layer: str, cases: Sequence[Case]) -> list[Result]:
    """Run cases with their files built in a layer ("upper": through the mount)."""
    bed = kind(home / "bed")
    below = bed.lower if layer == "lower" and bed.has_lower else bed.merged
    if below == bed.merged:
        bed.mount()
        between = lambda: None  # noqa: E731
    else:
        between = bed.mount
    try:
        return run(cases, bed.name, layer, below, bed.merged, between)
    finally:
        bed.abandon()
