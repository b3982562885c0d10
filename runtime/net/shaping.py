"""Traffic shaping by class (guide §4.4): HTB on the uplink, chosen by nftables.

``1:`` → ``1:1`` (BANDWIDTH) → ``1:f00C`` (TOTALRATE of class C) → ``1:(slot·16+C)`` an environment's
RATE, with TOTALRATE or, when bound, RATE as its ceiling. What no rule puts into a class (the
host's own traffic) passes unshaped; the rules are in ``shaping_rules``.

Only what leaves through the uplink is shaped. The incoming direction is the opt-in
TRAFFIC_SHAPING_INCOMING, through an ifb device.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress

from runtime.errors import NoKernelSupport, ShapingFailed
from runtime.net import names, slots
from runtime.net import shaping_rules as rules
from runtime.net.classes import Table
from runtime.net.links import IFF_UP, LinkFailed, Links
from runtime.net.names import TABLE_SHAPING
from runtime.net.nft import Nft, NftFailed
from runtime.net.rates import Plan, Share
from runtime.net.shaping_rules import Shaped

_MAJOR = 1 << 16
_T = TABLE_SHAPING
#: Everybody takes the same share of what nobody is guaranteed (the guide's worked example).
_QUANTUM_BYTES = 30000
_LEAST_QUEUE_BYTES = 6056  # four full frames: less would drop whole bursts of TCP's start
_QUEUE_S = 0.1
_LEAST_BURST_BYTES = 3100


def queue_bytes(kbps: int) -> int:
    """Return the length of a queue that empties in 100 ms at ``kbps``."""
    return max(_LEAST_QUEUE_BYTES, int(kbps * 125 * _QUEUE_S))


def burst_bytes(kbps: int) -> int:
    """Return how much may leave at once: 2 ms of the rate, two frames at least."""
    return max(_LEAST_BURST_BYTES, kbps * 125 // 500)


def _set_class(
    host: Links, index: int, minor: int, parent: int, share: Share, mpu: int = 0
) -> None:
    from pyroute2.netlink.exceptions import NetlinkError

    try:
        host.route.tc(
            "replace-class",
            "htb",
            index=index,
            handle=_MAJOR | minor,
            parent=_MAJOR | parent,
            rate=f"{share.rate}kbit",
            ceil=f"{share.ceiling}kbit",
            burst=burst_bytes(share.rate),
            cburst=burst_bytes(share.ceiling),
            quantum=_QUANTUM_BYTES,
            mpu=mpu,
        )
    except NetlinkError as error:
        raise ShapingFailed(f"cannot make class 1:{minor:x}: {error}") from error


def _set_leaf(host: Links, index: int, minor: int, kbps: int) -> None:
    from pyroute2.netlink.rtnl.tcmsg import plugins

    # Both fifos have the same options (struct tc_fifo_qopt); pyroute2 only knows pfifo.
    plugins.setdefault("bfifo", plugins["pfifo"])
    # The handle of the leaf: its class's minor number as a major one; 1: is the root's.
    host.route.tc(
        "replace",
        "bfifo",
        index=index,
        handle=(minor << 16),
        parent=_MAJOR | minor,
        limit=queue_bytes(kbps),
    )


def _root_is_ours(host: Links, index: int) -> bool:
    return any(
        message.get_attr("TCA_KIND") == "htb" and message["handle"] == _MAJOR
        for message in host.route.get_qdiscs(index=index)
        if message["index"] == index
    )


def _tree(host: Links, device: str, plan: Plan, environments: Sequence[Shaped]) -> None:
    """Build or adjust the tree of one device and drop classes of nobody."""
    from pyroute2.netlink.exceptions import NetlinkError

    index = host.need(device)
    if not _root_is_ours(host, index):
        try:
            host.route.tc("replace", "htb", index=index, handle=_MAJOR, default=0)
        except NetlinkError as error:
            raise NoKernelSupport(
                "the kernel cannot shape traffic: it lacks sch_htb", hint="modprobe sch_htb"
            ) from error
    whole = Share(plan.bandwidth, plan.bandwidth)
    _set_class(host, index, 1, 0, whole)
    kept = {1}
    for number, total in plan.totals.items():
        kept.add(slots.total_minor(number))
        _set_class(host, index, slots.total_minor(number), 1, Share(total, total))
    for environment in environments:
        kept |= _environment_classes(host, index, plan, environment)
    _drop_classes(host, index, kept)


def _environment_classes(host: Links, index: int, plan: Plan, environment: Shaped) -> set[int]:
    made = set()
    for number, share in environment.shares.get(plan.device, {}).items():
        minor = slots.minor(environment.slot, number)
        mpu = plan.mpu.get(number, 0)
        _set_class(host, index, minor, slots.total_minor(number), share, mpu)
        _set_leaf(host, index, minor, share.ceiling)
        made.add(minor)
    return made


def _drop_classes(host: Links, index: int, kept: Iterable[int]) -> None:
    from pyroute2.netlink.exceptions import NetlinkError

    wanted = {_MAJOR | minor for minor in kept}
    present = [m["handle"] for m in host.route.get_classes(index=index) if m["index"] == index]
    # Children first: leaves have the smaller minors, save 1:1.
    for handle in sorted(present, key=lambda h: (h == _MAJOR | 1, h)):
        if handle not in wanted and handle >> 16 == 1:
            try:
                host.route.tc("del-class", index=index, handle=handle)
            except NetlinkError:
                continue


def apply(
    host: Links,
    nft: Nft,
    plans: Sequence[Plan],
    table: Table,
    environments: Sequence[Shaped],
    *,
    incoming: bool = False,
) -> None:
    """Shape exactly as planned; may be repeated. Raises ShapingFailed, NoKernelSupport."""
    links = {link.index: link for link in host.all()}
    by_name = {link.name: link for link in links.values()}
    missing = [plan.device for plan in plans if plan.device not in by_name]
    if missing:
        raise ShapingFailed(
            f"there is no interface {missing[0]} to shape", hint="see BANDWIDTH in vz.conf"
        )
    masters = {
        plan.device: links[by_name[plan.device].master].name
        for plan in plans
        if by_name[plan.device].master in links
    }
    for plan in plans:
        _tree(host, plan.device, plan, environments)
        if incoming:
            _ifb(host, plan.device)
            _tree(host, names.ifb(plan.device), plan, environments)
        else:
            host.delete(names.ifb(plan.device))
    try:
        nft.run(rules.script(plans, masters, table, environments, incoming=incoming))
    except NftFailed as error:
        raise ShapingFailed(error.message) from error


def _ifb(host: Links, device: str) -> None:
    name = names.ifb(device)
    if host.index(name) is None:
        try:
            host.add(name, "ifb")
        except LinkFailed as error:
            raise NoKernelSupport(
                "the kernel cannot shape incoming traffic: it lacks ifb", hint="modprobe ifb"
            ) from error
    host.flags(host.need(name), IFF_UP)


def add(
    host: Links, nft: Nft, plans: Sequence[Plan], environment: Shaped, *, incoming: bool = False
) -> None:
    """Add or change one environment in a server that is shaped already; raises ShapingFailed.

    What it had in the rules before and has no longer goes.
    """
    for plan in plans:
        devices = [plan.device] + ([names.ifb(plan.device)] if incoming else [])
        for device in devices:
            _environment_classes(host, host.need(device), plan, environment)
    lines = rules.strays(nft, plans, environment.slot, environment, incoming=incoming)
    lines += rules.elements(plans, environment, incoming=incoming)
    if lines:
        try:
            nft.run("\n".join(lines) + "\n")
        except NftFailed as error:
            raise ShapingFailed(error.message) from error


def drop(host: Links, nft: Nft, plans: Sequence[Plan], slot: int, *, incoming: bool) -> None:
    """Remove the classes and elements of the environment in ``slot``; absent is success."""
    from pyroute2.netlink.exceptions import NetlinkError

    lines = rules.strays(nft, plans, slot, None, incoming=incoming)
    if lines:
        with suppress(NftFailed):
            nft.run("\n".join(lines) + "\n")
    for plan in plans:
        for device in (plan.device, names.ifb(plan.device)):
            index = host.index(device)
            for number in plan.totals if index else ():
                handle = _MAJOR | slots.minor(slot, number)
                with suppress(NetlinkError):
                    host.route.tc("del-class", index=index, handle=handle)


def is_on(nft: Nft) -> bool:
    """Whether shaping is attached."""
    return ("inet", _T) in nft.tables()


def remove(host: Links, nft: Nft) -> None:
    """Detach everything: no qdisc, no rule, no ifb of ours stays. Twice is success."""
    script_lines = []
    for family in ("inet", "bridge", "netdev"):
        script_lines += [f"add table {family} {_T}", f"delete table {family} {_T}"]
    nft.run("\n".join(script_lines) + "\n")
    from pyroute2.netlink.exceptions import NetlinkError

    for link in host.all():
        if link.kind == "ifb" and link.name.startswith("ifb"):
            host.delete(link.name)
        elif _root_is_ours(host, link.index) and link.kind != "ifb":
            try:
                host.route.tc("del", index=link.index, handle=_MAJOR, root=True)
            except NetlinkError:
                continue
