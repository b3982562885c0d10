"""What the network of one container is to be, as plain data: made from its configuration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from runtime.net import addresses, names, netdevs, netif
from runtime.net.addresses import Ip
from runtime.net.netif import Adapter


@dataclass(frozen=True, slots=True)
class ContainerNet:
    """Addresses in host-routed mode, adapters in virtual networks, interfaces of the server."""

    ctid: int
    ips: tuple[Ip, ...] = ()
    adapters: tuple[Adapter, ...] = ()
    #: Whether the masks of addresses are used on venet0 (USE_VENET_MASK).
    masks: bool = False
    devices: tuple[str, ...] = ()

    @classmethod
    def of(cls, ctid: int, config: Mapping[str, str]) -> ContainerNet:
        """Return what a configuration asks for; raises BadAddress, VethFailed, NetdevFailed."""
        ipv6 = config.get("IPV6", "yes") != "no"
        ips = addresses.parse_list(config.get("IP_ADDRESS"))
        return cls(
            ctid,
            tuple(ip for ip in ips if ipv6 or ip.version == 4),
            netif.parse(config.get("NETIF"), ctid),
            config.get("USE_VENET_MASK", "no") == "yes",
            netdevs.parse(config.get("NETDEV")),
        )

    @property
    def venet(self) -> str:
        """The host's end of venet0."""
        return names.host_end(self.ctid, 0)

    def guest_prefix(self, ip: Ip) -> int:
        """Return the length of the prefix an address has on venet0 inside."""
        return ip.prefix if self.masks and ip.masked else ip.interface.max_prefixlen
