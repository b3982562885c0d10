"""Network adapters of a machine added and changed: network, address, card; live where it can be."""

from __future__ import annotations

from collections.abc import Callable

from runtime.errors import BadAddress, InvalidOption, VethFailed
from vmm import devices, guestsettings, macs, networks
from vmm.change import Change
from vmm.devices import Adapter
from vmm.wish import Wish

#: What the server lets an adapter send and hear: settings of the same names in ``Wish``.
FILTERS = ("ipfilter", "macfilter", "preventpromisc")


def network_of(change: Change, wish: Wish) -> str:
    """Return the network a new or changed adapter is to join; raises VethFailed."""
    if wish.network is not None:
        return wish.network
    if wish.type is not None:
        return networks.for_type(wish.type)
    return networks.default(change.machine.paths)


def new(change: Change, wish: Wish) -> Adapter:
    """Return a new adapter; raises VethFailed, InvalidOption, InvalidValue."""
    if wish.mac not in (None, "auto"):
        mac: str | None = _check_mac(change, wish.mac or "", but="")
    else:
        mac = None
    card = _check_card(wish.card or "virtio")
    return networks.adapter(change.machine.paths, network_of(change, wish), card=card, mac=mac)


def _check_card(card: str) -> str:
    if card not in Adapter.cards:
        raise InvalidOption(f"no such network card: {card!r}", hint=", ".join(Adapter.cards))
    return card


def _check_mac(change: Change, text: str, *, but: str) -> str:
    mac = macs.check(text)
    for adapter in devices.adapters(change.domain):
        if adapter.mac.lower() == mac and adapter.name != but:
            raise VethFailed(f"{adapter.name} has the address {mac} already")
    return mac


def store_filters(change: Change, adapter: Adapter, wish: Wish) -> None:
    """Note what an adapter may send and hear, live where it has a tap in a bridge."""
    domain, name = change.domain, adapter.name
    given = {key: getattr(wish, key) for key in ("configure", *FILTERS)}
    for key, value in given.items():
        if value is not None:
            domain.set_setting(f"{name}.{key}", "yes" if value else "no")
    if all(given[key] is None for key in FILTERS):
        return
    if adapter.type != "routed":
        change.machine.progress.warn(
            f"{name}: only adapters on virtual networks of the server are filtered"
        )
    make_tap(change, adapter)


def store_addresses(change: Change, adapter: Adapter, wish: Wish) -> None:
    """Note addresses of an adapter, and set them inside if the machine runs."""
    domain, name = change.domain, adapter.name
    if not (wish.ipadd or wish.ipdel or wish.gateway is not None or wish.dhcp is not None):
        return
    have = domain.setting(f"{name}.ips").split()
    for word in wish.ipdel:
        have = [] if word == "all" else _without(have, word)
    have += [a for a in map(guestsettings.check_address, wish.ipadd) if a not in have]
    gateway = domain.setting(f"{name}.gateway")
    if wish.gateway is not None:
        gateway = guestsettings.check_gateway(wish.gateway) if wish.gateway else ""
    dhcp = (
        wish.dhcp if wish.dhcp is not None else not have and domain.setting(f"{name}.dhcp") == "yes"
    )
    domain.set_setting(f"{name}.ips", " ".join(have) or None)
    domain.set_setting(f"{name}.gateway", gateway or None)
    domain.set_setting(f"{name}.dhcp", "yes" if dhcp else None)
    if not change.running:
        change.machine.progress.warn(
            f"{name}: addresses are stored; pctl start --wait sets them inside"
        )
        return
    make_tap(change, adapter)
    domain = change.domain
    if not guestsettings.configured_inside(domain, name):
        return
    change.inside("set addresses", lambda agent: guestsettings.set_adapter(agent, domain, adapter))


def _without(have: list[str], word: str) -> list[str]:
    address = word.partition("/")[0]
    left = [item for item in have if item.partition("/")[0] != address]
    if left == have:
        raise BadAddress(f"the adapter does not have the address {word}")
    return left


def make_tap(change: Change, adapter: Adapter) -> None:
    """Have the server's end of an adapter in place before QEMU opens it."""
    networks.fit(change.domain)
    found = networks.tap(change.domain, adapter)
    if found is None:
        return
    paths, uuid = change.machine.paths, change.machine.record.uuid
    known = change.has_tap(found.ifname)
    change.hot(
        "make the server's end",
        lambda: networks.attach(paths, [found]),
        None if known else lambda: networks.detach(paths, uuid, [found.ifname]),
    )


def configure(change: Change, adapter: Adapter, wish: Wish) -> None:
    """Change an adapter; raises VethFailed, InvalidOption, InvalidValue, BadAddress."""
    name = adapter.name
    live = True
    if wish.network is not None or wish.type is not None:
        network = network_of(change, wish)
        before = adapter.element.get("type")
        networks.move(change.machine.paths, adapter, network)
        networks.remember(change.domain, name, network)
        live = adapter.element.get("type") == before and before != "user"
        if live and adapter.type == "bridged":
            update_live(change, name, lambda found: found.join("bridged", adapter.bridge))
        elif live:
            # The same tap in another bridge: the guest sees nothing of it.
            make_tap(change, adapter)
    if wish.mac is not None:
        adapter.mac = macs.new() if wish.mac == "auto" else _check_mac(change, wish.mac, but=name)
        live = False
    if wish.card is not None:
        adapter.card = _check_card(wish.card)
        live = False
    if not live:
        change.later(name)
    store_filters(change, adapter, wish)
    store_addresses(change, adapter, wish)


def update_live(change: Change, name: str, edit: Callable[[Adapter], None]) -> None:
    """Let the running machine's adapter be as ``edit`` makes it."""
    if not change.running:
        return
    found = devices.named(change.machine.live(), name)
    assert isinstance(found, Adapter)
    edit(found)
    change.update(found.element)
