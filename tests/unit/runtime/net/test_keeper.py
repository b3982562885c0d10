"""Tests of when the service has work every minute."""

from __future__ import annotations

from pathlib import Path

from runtime.net import keeper, names
from runtime.paths import Paths


def test_the_minute_is_needed_while_a_container_has_a_network(tmp_path: Path) -> None:
    paths = Paths(tmp_path)
    assert not keeper.needed(paths)
    mark = names.mark(paths, 101)
    mark.parent.mkdir(parents=True)
    (mark.parent / "vbr-Host-Only.json").touch()
    assert not keeper.needed(paths)
    mark.touch()
    assert keeper.needed(paths)
