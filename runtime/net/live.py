"""Makes a running container follow its network settings (named by ``net.settings``)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from runtime.net import attach, bridged, guestcfg
from runtime.net.model import ContainerNet
from runtime.net.server import Server

if TYPE_CHECKING:
    from runtime.config import Config
    from runtime.container import Container

_NETWORK = ("IP_ADDRESS", "NETIF", "NETDEV", "USE_VENET_MASK")
_RATES = ("RATE", "RATEBOUND")


def _changed(before: Config, after: Config, keys: tuple[str, ...]) -> bool:
    return any((before.get(key) or "") != (after.get(key) or "") for key in keys)


def apply_network(ct: Container, before: Config, after: Config) -> None:
    """Give a running container other addresses or adapters; raises as ``attach.apply_live``."""
    if not _changed(before, after, _NETWORK):
        return
    attach.apply_live(ct.paths, ct.ctid, before, after, ct.init_pid)
    guestcfg.network(ct, before, after)
    old, new = ContainerNet.of(ct.ctid, before), ContainerNet.of(ct.ctid, after)
    by_dhcp = {adapter.ifname for adapter in old.adapters if adapter.dhcp or adapter.dhcp6}
    bridged.configure_guests(
        # Whoever had an address for it may have cleared it when told to let it go.
        ct.init_pid,
        [adapter for adapter in new.adapters if adapter.ifname in by_dhcp],
    )


def apply_dns(ct: Container, before: Config, after: Config) -> None:
    """Tell a running container its name servers; raises ActionScriptFailed."""
    if _changed(before, after, ("NAMESERVER", "SEARCHDOMAIN")):
        guestcfg.dns(ct, after)


def apply_rate(ct: Container, before: Config, after: Config) -> None:
    """Shape a running container's traffic anew; nothing while TRAFFIC_SHAPING is off."""
    if _changed(before, after, _RATES):
        with Server(ct.paths) as server, server.locked():
            server.shape_one(ct.ctid, after)
