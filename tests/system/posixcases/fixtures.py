"""Fixtures of the modules that lay tests upon file systems."""

from collections.abc import Iterator

import pytest

from . import calls


@pytest.fixture(scope="module", autouse=True)
def mounts_of_our_own() -> Iterator[None]:
    """Keep the mounts of a module out of every namespace others make."""
    with calls.own_mounts():
        yield
