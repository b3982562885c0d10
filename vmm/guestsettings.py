"""What is set inside a guest by its agent: host name, addresses, DNS servers.

Everything goes as arguments to a fixed script, never as part of it. Linux guests only: the script
uses what the guest has (NetworkManager, systemd-networkd, plain ip).
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence

from runtime.errors import (
    AddAddressFailed,
    BadAddress,
    BadHostname,
    BadNameserver,
    BadSearchDomain,
    VzError,
)
from vmm.agent import Agent
from vmm.devices import Adapter, adapters
from vmm.domain import Domain

_LABEL = re.compile(r"(?!-)[A-Za-z0-9-]{1,63}(?<!-)")
# An adapter that was just plugged in appears a moment later.
_FIND = """
for try in 1 2 3 4 5; do
  for dir in /sys/class/net/*; do
    [ "$(cat "$dir/address" 2>/dev/null)" = "$mac" ] && dev=${dir##*/} && break 2
  done
  sleep 1
done
"""
_HOSTNAME = """
if command -v hostnamectl >/dev/null 2>&1 && hostnamectl set-hostname "$1" 2>/dev/null; then exit 0; fi
printf '%s\\n' "$1" >/etc/hostname && hostname "$1"
"""
_RESOLVER = """
umask 22; file=/etc/resolv.conf
[ -L "$file" ] && rm -f "$file"
: >"$file.new"
[ -z "$1" ] || printf 'search %s\\n' "$1" >>"$file.new"
shift
for server; do printf 'nameserver %s\\n' "$server" >>"$file.new"; done
mv "$file.new" "$file"
"""
# $1: hardware address, $2: flush or keep, $3: gateway or nothing, then addresses
_ADDRESSES = """
mac=$1; mode=$2; gateway=$3; shift 3
@FIND@
[ -n "$dev" ] || { echo "no interface has the address $mac" >&2; exit 1; }
ip link set "$dev" up || exit
[ "$mode" = keep ] || ip addr flush dev "$dev" scope global || exit
for address; do ip addr add "$address" dev "$dev" || exit; done
case $gateway in
  '') ;;
  dev) ip route replace default dev "$dev" ;;
  *) ip route replace default via "$gateway" dev "$dev" ;;
esac
"""
_DHCP = """
mac=$1
@FIND@
[ -n "$dev" ] || { echo "no interface has the address $mac" >&2; exit 1; }
ip link set "$dev" up && ip addr flush dev "$dev" scope global
for client in dhclient dhcpcd; do
  command -v $client >/dev/null 2>&1 && exec $client "$dev"
done
exec udhcpc -i "$dev" -n -q -t 3 -T 1 -s "$([ -x /bin/udhcpc.sh ] && echo /bin/udhcpc.sh || echo /usr/share/udhcpc/default.script)"
"""


def is_hostname(text: str) -> bool:
    """Whether ``text`` is a host name (RFC 1123)."""
    return len(text) <= 253 and all(_LABEL.fullmatch(part) for part in text.split("."))


def check_servers(text: str) -> list[str]:
    """Return DNS servers, separated by spaces or commas; raises BadNameserver."""
    words = text.replace(",", " ").split()
    for word in words:
        try:
            ipaddress.ip_address(word)
        except ValueError:
            raise BadNameserver(f"not the address of a DNS server: {word!r}") from None
    return words


def check_domains(text: str) -> list[str]:
    """Return search domains, separated by spaces or commas; raises BadSearchDomain."""
    words = text.replace(",", " ").split()
    for word in words:
        if not is_hostname(word.rstrip(".")):
            raise BadSearchDomain(f"not a domain: {word!r}")
    return words


def check_address(text: str) -> str:
    """Return ADDRESS/PREFIX; an address alone gets a prefix of its own. Raises BadAddress."""
    try:
        interface = ipaddress.ip_interface(text)
    except ValueError:
        raise BadAddress(f"not an address: {text!r}", hint="write 192.0.2.5/24") from None
    if interface.ip.is_unspecified or interface.ip.is_multicast:
        raise BadAddress(f"no adapter can have this address: {text!r}")
    return str(interface)


def check_gateway(text: str) -> str:
    """Return a gateway's address; raises BadAddress."""
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        raise BadAddress(f"not the address of a gateway: {text!r}") from None


def set_hostname(agent: Agent, name: str) -> None:
    """Set the host name; raises BadHostname."""
    _run(agent, _HOSTNAME, [name], BadHostname)


def set_resolver(agent: Agent, servers: Sequence[str], domains: Sequence[str]) -> None:
    """Set DNS servers and search domains; raises BadNameserver."""
    _run(agent, _RESOLVER, [" ".join(domains), *servers], BadNameserver)


def set_addresses(
    agent: Agent, mac: str, addresses: Sequence[str], *, gateway: str = "", keep: bool = False
) -> None:
    """Give the interface with a hardware address its addresses; raises AddAddressFailed.

    ``gateway`` "dev" means that whoever is behind the interface answers for everybody.
    """
    _run(
        agent,
        _ADDRESSES,
        [mac.lower(), "keep" if keep else "flush", gateway, *addresses],
        AddAddressFailed,
    )


def use_dhcp(agent: Agent, mac: str) -> None:
    """Let the interface ask for an address; raises AddAddressFailed."""
    _run(agent, _DHCP, [mac.lower()], AddAddressFailed)


def set_adapter(agent: Agent, domain: Domain, adapter: Adapter) -> None:
    """Set inside what the description says of an adapter; raises AddAddressFailed."""
    name = adapter.name
    addresses = domain.setting(f"{name}.ips").split()
    gateway = domain.setting(f"{name}.gateway")
    if addresses:
        routed = domain.setting(f"{name}.network") == "Routed"
        set_addresses(agent, adapter.mac, addresses, gateway=gateway or ("dev" if routed else ""))
    elif domain.setting(f"{name}.dhcp") == "yes":
        use_dhcp(agent, adapter.mac)
    else:
        set_addresses(agent, adapter.mac, [])


def set_all(agent: Agent, domain: Domain) -> None:
    """Set inside everything the description says: after a start. Raises VzError."""
    if domain.setting("hostname"):
        set_hostname(agent, domain.setting("hostname"))
    servers, searched = domain.setting("nameserver").split(), domain.setting("searchdomain").split()
    if servers or searched:
        set_resolver(agent, servers, searched)
    for adapter in adapters(domain):
        name = adapter.name
        wanted = domain.setting(f"{name}.ips") or domain.setting(f"{name}.dhcp") == "yes"
        if wanted and configured_inside(domain, name):
            set_adapter(agent, domain, adapter)


def configured_inside(domain: Domain, name: str) -> bool:
    """Whether the agent is to set the addresses of the adapter ``name``."""
    return domain.setting(f"{name}.configure") != "no"


def _run(agent: Agent, template: str, words: Sequence[str], error: type[VzError]) -> None:
    script = template.replace("@FIND@", _FIND)
    result = agent.run(["/bin/sh", "-c", script, "sh", *words], timeout_s=60)
    if result.status != 0:
        reason = result.stderr.decode("utf-8", "replace").strip().splitlines()
        raise error(f"inside the machine: {reason[-1] if reason else f'status {result.status}'}")
