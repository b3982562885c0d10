"""Guards: nobody sends from an address that is not theirs (nft(8)).

Host-routed adapters are checked against the routes: the way back to the source has to lead
through the interface the packet came from. Adapters on bridges have a chain each, entered before
the bridge learns where an address is; a port without a chain may send nothing at all.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass

from runtime.net.addresses import Address
from runtime.net.names import GROUP_BRIDGED, GROUP_ROUTED, TABLE_GUARD
from runtime.net.nft import Nft, NftFailed

_T = TABLE_GUARD


@dataclass(frozen=True, slots=True)
class Port:
    """What a bridge port may do: send from this MAC and these addresses (empty: any)."""

    ifname: str
    mac: str
    addresses: tuple[Address, ...] = ()
    #: False: no guard at all (mac_filter=off).
    guarded: bool = True
    #: True: it hears only frames for its MAC, and those for groups and for all.
    sealed: bool = False


def host_script() -> str:
    """Return the tables without any port; what exists stays."""
    return f"""
add table inet {_T}
add set inet {_T} dropped {{ type ifname; size 65535; flags dynamic; counter; }}
add set inet {_T} hostonly {{ type ifname; }}
add chain inet {_T} pre {{ type filter hook prerouting priority -310; policy accept; }}
flush chain inet {_T} pre
add rule inet {_T} pre iifgroup {GROUP_ROUTED} fib saddr . iif oif missing update @dropped {{ iifname }} drop
add chain inet {_T} forward {{ type filter hook forward priority -20; policy accept; }}
flush chain inet {_T} forward
add set inet {_T} within {{ type ifname . ifname; }}
add rule inet {_T} forward iifname . oifname @within accept
add rule inet {_T} forward iifname @hostonly drop
add rule inet {_T} forward oifname @hostonly drop
add table bridge {_T}
add map bridge {_T} ports {{ type ifname : verdict; }}
add chain bridge {_T} pre {{ type filter hook prerouting priority -300; policy accept; }}
flush chain bridge {_T} pre
add rule bridge {_T} pre iifgroup != {GROUP_BRIDGED} accept
add rule bridge {_T} pre iifname vmap @ports
add rule bridge {_T} pre counter drop comment "no guard yet"
"""


def _eui64(mac: str) -> ipaddress.IPv6Address:
    """Return the link-local address of a MAC address (RFC 4291, appendix A)."""
    raw = bytes.fromhex(mac.replace(":", ""))
    tail = bytes([raw[0] ^ 2]) + raw[1:3] + b"\xff\xfe" + raw[3:]
    return ipaddress.IPv6Address(b"\xfe\x80" + bytes(6) + tail)


def port_script(port: Port) -> str:
    """Return the script that puts a port's chain in place, whatever was there before."""
    chain = f"bridge {_T} {port.ifname}"
    lines = [f"add chain {chain}", f"flush chain {chain}"]

    def rule(text: str) -> None:
        lines.append(f"add rule {chain} {text}")

    def drop(match: str, why: str) -> None:
        rule(f'{match} counter drop comment "{why}"')

    if port.guarded:
        drop(f"ether saddr != {port.mac}", "mac")
        drop(f"ether type arp arp saddr ether != {port.mac}", "arp sender")
        drop("ether type ip udp sport 67", "dhcp server")
        drop("ether type ip6 icmpv6 type { nd-router-advert, nd-redirect }", "router advertisement")
        drop("ether type ip6 udp sport 547", "dhcp server")
        drop("ether type != { arp, ip, ip6 }", "other protocol or vlan")
        if port.addresses:
            own4 = [str(a) for a in port.addresses if a.version == 4]
            link_local = _eui64(port.mac)
            own6 = [a for a in (*port.addresses, link_local) if a.version == 6]
            set4 = f"{{ {', '.join(['0.0.0.0', *own4])} }}"
            drop(f"ether type arp arp saddr ip != {set4}", "arp address")
            rule("ether type arp accept")
            rule("ip saddr 0.0.0.0 ip daddr 255.255.255.255 udp sport 68 udp dport 67 accept")
            if own4:
                drop(f"ether type ip ip saddr != {{ {', '.join(own4)} }}", "ip address")
            else:
                drop("ether type ip", "ip address")
            rule(
                "ip6 saddr :: icmpv6 type { nd-neighbor-solicit, nd-router-solicit, "
                "mld-listener-report, mld2-listener-report } accept"
            )
            texts = ", ".join(str(a) for a in own6)
            drop(f"ether type ip6 ip6 saddr != {{ {texts} }}", "ipv6 address")
            # nft has no word for the target of an advertisement: 128 bits behind 48 bytes.
            targets = ", ".join(f"0x{int(a):032x}" for a in own6)
            drop(
                f"icmpv6 type nd-neighbor-advert @nh,384,128 != {{ {targets} }}",
                "advertised address",
            )
    rule("accept")
    key = f'"{port.ifname}"'
    lines.append(f"add element bridge {_T} ports {{ {key} : jump {port.ifname} }}")
    return "\n".join(lines) + "\n" + (_seal_script(port) if port.sealed else _unseal(port.ifname))


#: What each sealed port hears; the hook comes with the first of them.
_HEARD = f"add map bridge {_T} heard {{ type ifname : verdict; }}\n"


def _seal_script(port: Port) -> str:
    chain = f"bridge {_T} in_{port.ifname}"
    return f"""{_HEARD}
add chain bridge {_T} post {{ type filter hook postrouting priority 300; policy accept; }}
flush chain bridge {_T} post
add rule bridge {_T} post oifname vmap @heard
add chain {chain}
flush chain {chain}
add rule {chain} ether daddr {port.mac} accept
add rule {chain} ether daddr & 01:00:00:00:00:00 == 01:00:00:00:00:00 accept
add rule {chain} counter drop comment "for others"
add element bridge {_T} heard {{ "{port.ifname}" : jump in_{port.ifname} }}
"""


def _unseal(ifname: str) -> str:
    return _HEARD + _remove("heard", ifname, f"in_{ifname}")


def _remove(verdicts: str, ifname: str, chain: str) -> str:
    """Return the script that removes a chain and its element of a map, there or not."""
    element = f'bridge {_T} {verdicts} {{ "{ifname}" : jump {chain} }}'
    # Adding first makes deleting succeed: `destroy` is younger than the oldest nft we support.
    return (
        f"add chain bridge {_T} {chain}\nadd element {element}\ndelete element {element}\n"
        f"flush chain bridge {_T} {chain}\ndelete chain bridge {_T} {chain}\n"
    )


def remove_port_script(ifname: str) -> str:
    """Return the script that removes a port's chains, whether or not they are there."""
    return _remove("ports", ifname, ifname) + _unseal(ifname)


def present(tables: Set[tuple[str, str]]) -> bool:
    """Whether both tables are among those there are."""
    return ("inet", _T) in tables and ("bridge", _T) in tables


def ports(nft: Nft) -> set[str]:
    """Return the interfaces of the host that have a port's chain."""
    found: set[str] = set()
    with suppress(NftFailed):
        for entry in nft.query(f"list map bridge {_T} ports"):
            for key, _verdict in entry.get("map", {}).get("elem", []):
                found.add(key)
    return found


def set_host_only(nft: Nft, bridges: Iterable[str]) -> None:
    """Let nothing pass between these bridges and the rest of the world; raises NftFailed.

    What stays within one passes: with br_netfilter loaded, bridged packets see the inet hooks too.
    """
    script = f"flush set inet {_T} hostonly\nflush set inet {_T} within\n"
    names = list(bridges)
    if names:
        alone = ", ".join(f'"{name}"' for name in names)
        pairs = ", ".join(f'"{name}" . "{name}"' for name in names)
        script += f"add element inet {_T} hostonly {{ {alone} }}\n"
        script += f"add element inet {_T} within {{ {pairs} }}\n"
    nft.run(script)


def drops(nft: Nft, ifname: str) -> dict[str, int]:
    """Return reason → packets the guard has dropped from an adapter of the host's name."""
    found: dict[str, int] = {}
    try:
        listed = nft.query(f"list set inet {_T} dropped")
        chain = nft.query(f"list chain bridge {_T} {ifname}") if not ifname.endswith(".0") else []
    except NftFailed:
        return found
    for entry in listed:
        for element in entry.get("set", {}).get("elem", []):
            inner = element.get("elem", {})
            if inner.get("val") == ifname:
                found["source address"] = inner["counter"]["packets"]
    for entry in chain:
        rule = entry.get("rule", {})
        counters = [e["counter"]["packets"] for e in rule.get("expr", []) if "counter" in e]
        if counters and counters[0]:
            reason = rule.get("comment", "?")
            found[reason] = found.get(reason, 0) + counters[0]
    return found


def ports_of(names: Sequence[str]) -> str:
    """Return one script removing the chains of several ports."""
    return "".join(map(remove_port_script, names))
