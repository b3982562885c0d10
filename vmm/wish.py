"""What a command line says of one device."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Wish:
    """What the command line says of a device; None where it says nothing."""

    image: str | None = None
    device: str | None = None
    type: str | None = None
    size: str | None = None
    iface: str | None = None
    position: int | None = None
    recreate: bool = False
    passthrough: bool = False
    network: str | None = None
    mac: str | None = None
    card: str | None = None
    ipadd: tuple[str, ...] = ()
    ipdel: tuple[str, ...] = ()
    dhcp: bool | None = None
    gateway: str | None = None
    #: Whether the agent sets addresses inside; whether the server drops frames of other addresses.
    configure: bool | None = None
    ipfilter: bool | None = None
    macfilter: bool | None = None
    #: Whether the server keeps frames for others from the adapter.
    preventpromisc: bool | None = None
    output: str | None = None
    socket: str | None = None
    socket_mode: str = "server"
