"""Traffic accounting by destination class (guide §4.4): nftables counters keyed by interface.

For each class and direction there is one dynamic set of counters keyed by the host's interface
name, so counters outlive the container's stop. Routed adapters are counted in family inet, ports
of bridges in family bridge; both see the packet from its IP header on. TCP is counted as the
stack hands it over: a segment that the card would cut into many counts its header once.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass
from pathlib import Path

from runtime import files
from runtime.errors import AccountingFailed
from runtime.net import names
from runtime.net.classes import Table
from runtime.net.names import GROUP_BRIDGE, GROUP_BRIDGED, GROUP_ROUTED, TABLE_ACCOUNTING
from runtime.net.nft import Nft, NftFailed
from runtime.paths import Paths

_T = TABLE_ACCOUNTING
_FAMILIES = ("inet", "bridge")
_GROUPS = {"inet": str(GROUP_ROUTED), "bridge": str(GROUP_BRIDGED)}
#: "in" is towards the container, counted on the way out of the host's end.
DIRECTIONS = ("in", "out")

#: (interface of the host, direction, class, IP version) → (packets, bytes)
Counters = dict[tuple[str, str, int, int], tuple[int, int]]


@dataclass(frozen=True, slots=True)
class Traffic:
    """What an environment received and sent in one class."""

    bytes_in: int = 0
    packets_in: int = 0
    bytes_out: int = 0
    packets_out: int = 0


def script(table: Table, restore: Mapping[str, Counters] | None = None) -> str:
    """Return the whole ruleset; counters that exist are kept, ``restore`` is for new tables."""
    return "".join(_family(family, table, (restore or {}).get(family, {})) for family in _FAMILIES)


def _family(family: str, table: Table, restore: Counters) -> str:
    lines = [f"add table {family} {_T}"]
    sides = ["in", "out"] + (["hin", "hout"] if family == "inet" else [])
    keys = {"in": "oifname", "out": "iifname", "hin": "iifname", "hout": "oifname"}
    lines += [f"add chain {family} {_T} none"]
    for number in table.numbers:
        for version in (4, 6):
            for direction in DIRECTIONS:
                lines.append(
                    f"add set {family} {_T} {direction}{version}_{number} "
                    "{ type ifname; size 65535; flags dynamic; counter; }"
                )
            for side in sides:
                chain = f"{family} {_T} {side}{version}_c{number}"
                target = f"{side.removeprefix('h')}{version}_{number}"
                lines += [
                    f"add chain {chain}",
                    f"flush chain {chain}",
                    f"add rule {chain} update @{target} {{ {keys[side]} }}",
                ]
    for version, kind in ((4, "ipv4_addr"), (6, "ipv6_addr")):
        ranges = table.ranges(version)
        for side in sides:
            name = f"{family} {_T} {side}{version}"
            lines += [
                f"add map {name} {{ type {kind} : verdict; flags interval; }}",
                f"flush map {name}",
            ]
            elements = ", ".join(
                f"{r.text()} : goto " + (f"{side}{version}_c{r.number}" if r.number else "none")
                for r in ranges
            )
            if elements:
                lines.append(f"add element {name} {{ {elements} }}")
    group = _GROUPS[family]
    ours = f"{{ {GROUP_ROUTED}, {GROUP_BRIDGED}, {GROUP_BRIDGE} }}"
    hooks = [
        ("out", "prerouting", -250, f"iifgroup != {group} accept", "daddr"),
        ("in", "postrouting", 350, f"oifgroup != {group} accept", "saddr"),
        ("hin", "input", 350, f"iifgroup {ours} accept", "saddr"),
        ("hout", "output", 350, f"oifgroup {ours} accept", "daddr"),
    ]
    for side, hook, priority, match, address in hooks:
        if side not in sides:
            continue
        chain = f"{family} {_T} {side}"
        lines += [
            f"add chain {chain} {{ type filter hook {hook} priority {priority}; policy accept; }}",
            f"flush chain {chain}",
            f"add rule {chain} {match}",
        ]
        if side in ("hin", "hout"):
            lines.append(f'add rule {chain} {keys[side]} "lo" accept')
        lines += [
            f"add rule {chain} ip {address} vmap @{side}4",
            f"add rule {chain} ip6 {address} vmap @{side}6",
        ]
    for (ifname, direction, number, version), (packets, size) in restore.items():
        if number in table.numbers:
            lines.append(
                f"add element {family} {_T} {direction}{version}_{number} "
                f'{{ "{ifname}" counter packets {packets} bytes {size} }}'
            )
    return "\n".join(lines) + "\n"


def present(nft: Nft) -> bool:
    """Whether the tables are in place."""
    return is_in(nft.tables())


def is_in(tables: Set[tuple[str, str]]) -> bool:
    """Whether the tables are among those there are."""
    return all((family, _T) in tables for family in _FAMILIES)


def read(nft: Nft) -> dict[str, Counters]:
    """Return the kernel's counters by family; empty where a table is missing."""
    found: dict[str, Counters] = {}
    tables = nft.tables()
    for family in _FAMILIES:
        counters: Counters = {}
        if (family, _T) in tables:
            for entry in nft.query(f"list table {family} {_T}"):
                counters.update(_elements(entry.get("set")))
        found[family] = counters
    return found


def _elements(described: object) -> Counters:
    counters: Counters = {}
    if not isinstance(described, dict):
        return counters
    head, _, number = described["name"].partition("_")
    for element in described.get("elem", []):
        inner = element["elem"]
        counter = inner["counter"]
        key = (inner["val"], head[:-1], int(number), int(head[-1]))
        counters[key] = (counter["packets"], counter["bytes"])
    return counters


def _file(paths: Paths) -> Path:
    return paths.lib / "net" / "counters.json"


def save(paths: Paths, counters: Mapping[str, Counters]) -> None:
    """Write the counters durably; raises AccountingFailed."""
    flat = {
        family: {"|".join(map(str, key)): value for key, value in of_family.items()}
        for family, of_family in counters.items()
    }
    target = _file(paths)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        files.replace(target, json.dumps(flat, separators=(",", ":")).encode(), mode=0o600)
    except OSError as error:
        raise AccountingFailed(f"cannot save {target}: {error.strerror}") from error


def saved(paths: Paths) -> dict[str, Counters]:
    """Return the counters as they were last saved; empty without a readable file."""
    try:
        raw = json.loads(_file(paths).read_bytes())
        return {
            family: {
                (words[0], words[1], int(words[2]), int(words[3])): (value[0], value[1])
                for words, value in ((key.split("|"), value) for key, value in entries.items())
            }
            for family, entries in raw.items()
        }
    except (OSError, ValueError, LookupError, AttributeError):
        return {}


def load(nft: Nft, paths: Paths, table: Table) -> None:
    """Put the rules of a table of classes in place and keep what was counted.

    Where the tables of nftables are gone (a reboot, somebody's ``flush ruleset``), the counters
    go on from what was last saved. Raises AccountingFailed; the old rules are then untouched.
    """
    restore = {} if present(nft) else saved(paths)
    try:
        nft.run(script(table, restore))
    except NftFailed as error:
        raise AccountingFailed(error.message) from error


def unload(nft: Nft) -> None:
    """Remove the rules and their counters; absent is success."""
    for family in _FAMILIES:
        if (family, _T) in nft.tables():
            nft.run(f"delete table {family} {_T}")


def tick(paths: Paths, nft: Nft, table: Table) -> None:
    """Save the counters; put the tables back when somebody flushed them. Call it regularly."""
    if present(nft):
        save(paths, read(nft))
    else:
        load(nft, paths, table)


def forget(nft: Nft, ifnames: Iterable[str]) -> None:
    """Drop the counters of interfaces of the host: their environment was destroyed or reset."""
    doomed = set(ifnames)
    for family, counters in read(nft).items():
        script_lines = [
            f'delete element {family} {_T} {direction}{version}_{number} {{ "{ifname}" }}'
            for ifname, direction, number, version in counters
            if ifname in doomed
        ]
        if script_lines:
            nft.run("\n".join(script_lines) + "\n")


def by_environment(
    counters: Mapping[str, Counters],
    owners: Mapping[str, str],
    versions: tuple[int, ...] = (4, 6),
) -> dict[str, dict[int, Traffic]]:
    """Return environment → class → traffic; ``owners`` gives the machine of a tap by its name.

    What belongs to no environment is the host's, "0".
    """
    found: dict[str, dict[int, Traffic]] = {}
    for of_family in counters.values():
        for (ifname, direction, number, version), (packets, size) in of_family.items():
            if version not in versions:
                continue
            ctid = names.owner(ifname)
            who = str(ctid) if ctid is not None else owners.get(ifname, "0")
            classes = found.setdefault(who, {})
            old = classes.get(number, Traffic())
            if direction == "in":
                new = Traffic(
                    old.bytes_in + size, old.packets_in + packets, old.bytes_out, old.packets_out
                )
            else:
                new = Traffic(
                    old.bytes_in, old.packets_in, old.bytes_out + size, old.packets_out + packets
                )
            classes[number] = new
    return found
