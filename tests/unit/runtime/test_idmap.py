"""Ranges of user ids are given out once, and run out with a status of its own."""

import pytest

from runtime import idmap
from runtime.errors import NoResources
from runtime.paths import Paths


def test_when_all_ranges_are_taken_it_is_code_6(tmp_path, monkeypatch):
    monkeypatch.setattr(idmap, "SLOTS", 2)
    paths = Paths(tmp_path)
    paths.conf_dir.mkdir(parents=True)
    for ctid in (101, 102, 103):
        paths.ct_conf(ctid).touch()
    first = {idmap.claim(paths, ctid).first for ctid in (101, 102)}
    assert len(first) == 2
    with pytest.raises(NoResources) as error:
        idmap.claim(paths, 103)
    assert error.value.code == 6
    paths.ct_conf(101).unlink()
    assert idmap.claim(paths, 103).first in first
