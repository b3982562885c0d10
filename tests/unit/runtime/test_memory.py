"""How much memory a configuration gives: VSwap, and what older configurations meant."""

import pytest

from runtime.memory import Scheme, memory_of
from runtime.units import UNLIMITED

MIB = 1 << 20


def test_vswap_counts_pages_and_the_overcommit_multiplies_both():
    memory = memory_of(
        {"PHYSPAGES": "0:262144", "SWAPPAGES": "0:131072", "VM_OVERCOMMIT": "2"},
    )
    assert (memory.scheme, memory.ram_bytes, memory.swap_bytes) == (
        Scheme.VSWAP,
        1024 * MIB,
        512 * MIB,
    )
    assert memory.alloc_bytes == 3072 * MIB


def test_vswap_without_overcommit_lets_everything_be_allocated():
    assert memory_of({"PHYSPAGES": "65536:65536"}).alloc_bytes == UNLIMITED
    assert memory_of({"PHYSPAGES": "65536:65536"}).swap_bytes == 0


def test_beancounters_alone_become_ram_without_swap_and_a_factor():
    memory = memory_of({"PHYSPAGES": "0:9223372036854775807", "PRIVVMPAGES": "65536:131072"})
    assert (memory.scheme, memory.ram_bytes, memory.swap_bytes) == (Scheme.UBC, 256 * MIB, 0)
    assert memory.overcommit == 2


def test_slm_gives_its_limit_and_half_as_much_again_to_allocate():
    memory = memory_of(
        {
            "SLMMODE": "all",
            "SLMMEMORYLIMIT": "536870912",
            "PRIVVMPAGES": "2147483647:2147483647",
        }
    )
    assert (memory.scheme, memory.ram_bytes, memory.alloc_bytes) == (
        Scheme.SLM,
        512 * MIB,
        768 * MIB,
    )


def test_vswap_keys_win_over_the_older_ones_beside_them():
    memory = memory_of(
        {"PHYSPAGES": "65536", "SLMMODE": "slm", "SLMMEMORYLIMIT": "1", "PRIVVMPAGES": "1:1"}
    )
    assert memory.ram_bytes == 256 * MIB


@pytest.mark.parametrize("value", ["lots", "", "2147483647:2147483647"])
def test_without_a_readable_limit_there_is_none(value):
    memory = memory_of({"PRIVVMPAGES": value})
    assert (memory.scheme, memory.ram_bytes) == (Scheme.NONE, UNLIMITED)


@pytest.mark.parametrize(
    ("keys", "mib"),
    [
        ({"MEMGUARANTEE": "25"}, 64),
        ({"MEMGUARANTEE": "auto", "VMGUARPAGES": "8448:unlimited"}, 33),
        ({"VMGUARPAGES": "100:unlimited", "OOMGUARPAGES": "8448:2147483647"}, 33),
        ({"VMGUARPAGES": "999999:unlimited"}, 256),
        ({}, 0),
    ],
)
def test_the_guarantee_is_never_more_than_the_ram(keys, mib):
    assert memory_of({"PHYSPAGES": "65536", **keys}).guarantee_bytes == mib * MIB
