"""Which packet goes into which class of shaping, as nftables scripts.

Outgoing traffic is told by the interface it comes from, in the forward hooks: what is set earlier,
the routing of the packet overwrites (``ip_forward`` sets the priority from the TOS). Incoming
traffic is told on the ifb device it is led through, where nothing is known yet but the packet: by
the address it is for, in virtual networks by the MAC address.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from runtime.net import names, slots
from runtime.net.classes import Table
from runtime.net.names import GROUP_BRIDGED, GROUP_ROUTED, TABLE_SHAPING
from runtime.net.nft import Nft, NftFailed
from runtime.net.rates import Plan, Share

_T = TABLE_SHAPING
_FAMILIES = (("inet", GROUP_ROUTED), ("bridge", GROUP_BRIDGED))
#: How the receiver of an incoming packet is told: name of the map, type of its keys, nft's words.
_RECEIVERS = (
    ("4", "ipv4_addr", "ip daddr"),
    ("6", "ipv6_addr", "ip6 daddr"),
    ("m", "ether_addr", "ether daddr"),
)


@dataclass(frozen=True, slots=True)
class Shaped:
    """An environment: its slot, its adapters' names on the host, what is sent to, its shares."""

    slot: int
    ifnames: tuple[str, ...]
    #: These and ``macs`` are needed for the incoming direction only.
    addresses: tuple[str, ...]
    #: device → class → share
    shares: Mapping[str, Mapping[int, Share]]
    #: Of adapters in virtual networks.
    macs: tuple[str, ...] = ()


def script(
    plans: Sequence[Plan],
    masters: Mapping[str, str],
    table: Table,
    environments: Sequence[Shaped],
    *,
    incoming: bool = False,
) -> str:
    """Return the script that replaces the choice of classes; ``masters``: device → its bridge."""
    lines: list[str] = []
    for family in ("inet", "bridge", "netdev"):
        lines += [f"add table {family} {_T}", f"delete table {family} {_T}"]
    for family, group in _FAMILIES:
        head = f"{family} {_T}"
        lines += [
            f"add table {head}",
            (
                f"add chain {head} forward "
                "{ type filter hook forward priority -150; policy accept; }"
            ),
            f"add chain {head} none",
        ]
        for place, plan in enumerate(plans):
            for number in plan.totals:
                lines += [
                    f"add map {head} s{place}_{number} {{ type ifname : classid; }}",
                    f"add chain {head} c{place}_{number}",
                    (
                        f"add rule {head} c{place}_{number} "
                        f"meta priority set iifname map @s{place}_{number}"
                    ),
                ]
            lines += _classes(head, place, plan, table)
            devices = [plan.device] + ([masters[plan.device]] if plan.device in masters else [])
            out = ", ".join(f'"{device}"' for device in devices)
            for version, word in ((4, "ip"), (6, "ip6")):
                lines.append(
                    f"add rule {head} forward iifgroup {group} oifname {{ {out} }} "
                    f"{word} daddr vmap @d{place}v{version}"
                )
    if incoming:
        lines += _incoming(plans, table)
    for environment in environments:
        lines += elements(plans, environment, incoming=incoming)
    return "\n".join(lines) + "\n"


def _classes(head: str, place: int, plan: Plan, table: Table) -> list[str]:
    """Return the maps that lead from the other side's address to the chain of its class."""
    lines = []
    for version, address in ((4, "ipv4_addr"), (6, "ipv6_addr")):
        name = f"{head} d{place}v{version}"
        lines.append(f"add map {name} {{ type {address} : verdict; flags interval; }}")
        ranges = ", ".join(
            f"{r.text()} : goto " + (f"c{place}_{r.number}" if r.number in plan.totals else "none")
            for r in table.ranges(version)
        )
        if ranges:
            lines.append(f"add element {name} {{ {ranges} }}")
    return lines


def _incoming(plans: Sequence[Plan], table: Table) -> list[str]:
    head = f"netdev {_T}"
    lines = [f"add table {head}", f"add chain {head} none"]
    for place, plan in enumerate(plans):
        for number in plan.totals:
            chain = f"{head} c{place}_{number}"
            lines.append(f"add chain {chain}")
            for letter, kind, words in _RECEIVERS:
                name = f"s{place}_{number}{letter}"
                lines += [
                    f"add map {head} {name} {{ type {kind} : classid; }}",
                    # Without an entry the rule ends here and the next one is tried.
                    f"add rule {chain} meta priority set {words} map @{name}",
                ]
        lines += _classes(head, place, plan, table)
        ifb = names.ifb(plan.device)
        lines += [
            (
                f"add chain {head} in{place} {{ type filter hook ingress "
                f'device "{plan.device}" priority 0; policy accept; }}'
            ),
            f'add rule {head} in{place} fwd to "{ifb}"',
            (
                f"add chain {head} out{place} {{ type filter hook egress "
                f'device "{ifb}" priority 0; policy accept; }}'
            ),
            f"add rule {head} out{place} ip saddr vmap @d{place}v4",
            f"add rule {head} out{place} ip6 saddr vmap @d{place}v6",
        ]
    return lines


def elements(plans: Sequence[Plan], environment: Shaped, *, incoming: bool) -> list[str]:
    """Return the lines that put one environment into every map."""
    lines = []
    for place, plan in enumerate(plans):
        for number in environment.shares.get(plan.device, {}):
            minor = slots.minor(environment.slot, number)
            for family, _group in _FAMILIES:
                lines += [
                    f'add element {family} {_T} s{place}_{number} {{ "{ifname}" : 1:{minor:x} }}'
                    for ifname in environment.ifnames
                ]
            if incoming:
                lines += [
                    f"add element netdev {_T} s{place}_{number}{letter} {{ {key} : 1:{minor:x} }}"
                    for letter, keys in _receivers(environment)
                    for key in keys
                ]
    return lines


def _receivers(environment: Shaped) -> Iterator[tuple[str, list[str]]]:
    yield "4", [address for address in environment.addresses if ":" not in address]
    yield "6", [address for address in environment.addresses if ":" in address]
    yield "m", list(environment.macs)


def strays(
    nft: Nft, plans: Sequence[Plan], slot: int, kept: Shaped | None, *, incoming: bool
) -> list[str]:
    """Return the lines that remove what the environment in ``slot`` has in maps beyond ``kept``.

    Looked up by its classes: what it had may have changed since without having been saved.
    """
    lines = []
    wanted = set(elements(plans, kept, incoming=incoming)) if kept is not None else set()
    for family, letters in (*((f, ("",)) for f, _g in _FAMILIES), ("netdev", ("4", "6", "m"))):
        if family == "netdev" and not incoming:
            continue
        for place, plan in enumerate(plans):
            for number in plan.totals:
                minor = f"1:{slots.minor(slot, number):x}"
                for letter in letters:
                    name = f"{family} {_T} s{place}_{number}{letter}"
                    for key in _keys(nft, name, minor):
                        text = f'"{key}"' if not letter else key
                        line = f"{name} {{ {text} : {minor} }}"
                        if f"add element {line}" not in wanted:
                            lines.append(f"delete element {line}")
    return lines


def _keys(nft: Nft, name: str, minor: str) -> list[str]:
    try:
        listed = nft.query(f"list map {name}")
    except NftFailed:
        return []
    return [
        key
        for entry in listed
        for key, value in entry.get("map", {}).get("elem", [])
        if value == minor
    ]
