"""VZFS holds to POSIX and the Linux manual pages, on either transport and over either layer.

Files new in the mounted tree ("upper") show the file system by itself; files which start in a
template layer ("lower") add a copy-up to whatever a case does. The oracles run on demand:
`PYVZ_ORACLE=1 pytest tests/system/test_vzfs_conformance.py` lays the same cases over ext4 and
kernel overlayfs; a case that fails there is wrong.
"""

import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from posixcases import beds, frame, suite
from posixcases.fixtures import mounts_of_our_own  # noqa: F401  (autouse)

pytestmark = pytest.mark.root

SUBJECTS = [("vzfs-kernel", layer) for layer in ("upper", "lower")]
SUBJECTS += [("vzfs-plain", "lower")]
SUBJECTS += [("vzfs-resting", layer) for layer in ("upper", "lower")]
SUBJECTS += [("vzfs-pyfuse3", layer) for layer in ("upper", "lower")]
ORACLES = [("ext4", "upper"), ("overlayfs", "upper"), ("overlayfs", "lower")]
CHOSEN = SUBJECTS + (ORACLES if os.environ.get("PYVZ_ORACLE") else [])


@pytest.mark.parametrize("area", suite.AREAS)
@pytest.mark.parametrize(
    ("bed", "layer"), [pytest.param(*pair, id="-".join(pair)) for pair in CHOSEN]
)
def test_every_case_of_the_area_passes(
    home: Path, bed: str, layer: str, area: str, record_property: Callable[[str, object], None]
) -> None:
    kind = beds.BEDS[bed]
    if missing := kind.missing():
        pytest.skip(missing)
    cases = [c for c in frame.CASES if c.area == area]
    results = suite.run_on(kind, home, layer, cases)
    tally = Counter(r.outcome for r in results)
    record_property("cases", dict(tally))
    record_property("checks", sum(r.checks for r in results))
    wrong = [f"{r.name}: {r.text}" for r in results if r.outcome == "fail"]
    assert not wrong, f"{len(wrong)} of {len(cases)} cases fail:\n" + "\n".join(wrong[:40])
    assert not suite.lifted(bed, layer, results), "limits that are none any more"
    # A suite that skips its way through would pass on anything.
    assert tally["skip"] <= len(cases) * 0.2


def test_no_case_is_registered_twice() -> None:
    # Names of axes values are cut; what they call must still tell cases apart in a report.
    assert len(frame.CASES) > 7000
    assert len(suite.AREAS) >= 9
