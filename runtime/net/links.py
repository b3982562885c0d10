"""Links, addresses, routes, neighbours of one network namespace, through rtnetlink(7).

pyroute2 is loaded when the first socket is opened: its import takes longer than most commands.
Everything here replaces or ignores what is already as wanted, so that any of it may be repeated.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runtime import syscalls
from runtime.errors import SystemFailure
from runtime.net.contexts import Closing
from runtime.net.names import PROTOCOL

if TYPE_CHECKING:
    from collections.abc import Callable

# linux/if.h
IFF_UP = 0x1
IFF_NOARP = 0x80
IFF_MULTICAST = 0x1000
# linux/neighbour.h
_NTF_PROXY = 0x08
# linux/if_addr.h
_IFA_F_NODAD = 0x02
# linux/rtnetlink.h
SCOPE_GLOBAL = 0
SCOPE_LINK = 253
SCOPE_HOST = 254


def open_namespace(pid: int) -> int:
    """Return a descriptor of the network namespace of process ``pid``; raises OSError.

    Close it soon: it keeps the links of a container alive that has died.
    """
    return os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)


@contextmanager
def entered(netns_fd: int | None) -> Iterator[None]:
    """Be in a network namespace (None: stay) with this thread, and come back; raises OSError."""
    if netns_fd is None:
        yield
        return
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        syscalls.setns(netns_fd, syscalls.CLONE_NEWNET)
        try:
            yield
        finally:
            syscalls.setns(home, syscalls.CLONE_NEWNET)
    finally:
        os.close(home)


def set_sysctl(name: str, value: str, *, missing_ok: bool = False) -> None:
    """Write ``/proc/sys/net/NAME`` of this namespace; raises SystemFailure.

    Written as a path: sysctl(8) takes the dot in an interface's name for a separator.
    """
    path = Path("/proc/sys/net") / name
    try:
        if path.read_text(encoding="ascii").strip() != value:
            path.write_text(value, encoding="ascii")
    except FileNotFoundError:
        if not missing_ok:
            raise SystemFailure(f"the kernel has no setting net/{name}") from None
    except OSError as error:
        raise SystemFailure(f"cannot set net/{name} to {value}: {error.strerror}") from error


@dataclass(frozen=True, slots=True)
class Link:
    """One interface as the kernel describes it."""

    index: int
    name: str
    kind: str
    group: int
    mac: str
    up: bool
    master: int
    carrier: bool
    #: ARPHRD_*: 1 is Ethernet (linux/if_arp.h).
    hardware: int = 1
    #: The interface of the same namespace it stands on (a VLAN's, a macvlan's), 0 without.
    lower: int = 0


class Links(Closing):
    """A route socket in one network namespace; use it in a ``with``."""

    def __init__(self, netns_fd: int | None = None) -> None:
        """Open the socket in the namespace of ``netns_fd``, else in this one; raises OSError."""
        from pyroute2 import IPRoute

        self._namespace = netns_fd
        with entered(netns_fd):
            # Without strict checking the kernel ignores the filters of a dump.
            self.route: Any = IPRoute(strict_check=True)

    def close(self) -> None:
        """Close the socket."""
        self.route.close()

    # links

    def index(self, name: str) -> int | None:
        """Return the index of an interface, None when there is none of that name."""
        from pyroute2.netlink.exceptions import NetlinkError

        try:
            answer = self.route.link("get", ifname=name)
        except NetlinkError as error:
            if error.code == errno.ENODEV:
                return None
            raise _failed(error, f"look up {name}") from error
        return int(answer[0]["index"]) if answer else None

    def need(self, name: str) -> int:
        """Return the index of an interface; raises SystemFailure when there is none."""
        found = self.index(name)
        if found is None:
            raise SystemFailure(f"there is no network interface {name}")
        return found

    def names(self) -> set[str]:
        """Return the names of this thread's namespace's interfaces: far cheaper than ``all``."""
        with open("/proc/thread-self/net/dev", encoding="ascii", errors="replace") as file:
            return {line.partition(":")[0].strip() for line in file if ":" in line}

    def all(self) -> list[Link]:
        """Return every interface."""
        return [_link(message) for message in self.route.get_links()]

    def link(self, name: str) -> Link | None:
        """Return one interface, or None."""
        index = self.index(name)
        return None if index is None else _link(self.route.link("get", index=index)[0])

    def by_index(self, index: int) -> Link | None:
        """Return one interface, or None."""
        from pyroute2.netlink.exceptions import NetlinkError

        try:
            return _link(self.route.link("get", index=index)[0])
        except NetlinkError as error:
            if error.code == errno.ENODEV:
                return None
            raise _failed(error, f"look up interface {index}") from error

    def add(self, name: str, kind: str, **settings: Any) -> int:
        """Make an interface and return its index; raises SystemFailure."""
        self._do(f"make {name}", self.route.link, "add", ifname=name, kind=kind, **settings)
        return self.need(name)

    def delete(self, name: str) -> bool:
        """Delete an interface; returns False when there is none. Raises SystemFailure."""
        index = self.index(name)
        if index is None:
            return False
        return self._do(
            f"delete {name}", self.route.link, "del", index=index, ignore=(errno.ENODEV,)
        )

    def change(self, index: int, **settings: Any) -> None:
        """Change attributes of an interface; raises SystemFailure."""
        self._do(f"change interface {index}", self.route.link, "set", index=index, **settings)

    def flags(self, index: int, on: int, off: int = 0) -> None:
        """Turn flags (IFF_*) of an interface on and off; raises SystemFailure."""
        self.change(index, flags=on, change=on | off)

    def drop_other_names(self, index: int) -> None:
        """Take an interface's alternative names away (ip-link(8), property); raises SystemFailure."""
        named = self.route.link("get", index=index)[0].get_attr("IFLA_PROP_LIST")
        for name in named.get_attrs("IFLA_ALT_IFNAME") if named else ():
            self._do(
                f"take the name {name} away",
                self.route.link,
                "property_del",
                index=index,
                altname=name,
            )

    # addresses

    def addresses(self, index: int) -> set[tuple[str, int]]:
        """Return (address, prefix length) of an interface, link-local IPv6 left out."""
        found = set()
        for message in self.route.get_addr(index=index):
            if message["index"] != index:
                continue
            address = message.get_attr("IFA_LOCAL") or message.get_attr("IFA_ADDRESS")
            if not (message["family"] == socket.AF_INET6 and message["scope"] == SCOPE_LINK):
                found.add((address, message["prefixlen"]))
        return found

    def add_address(self, index: int, address: str, prefix: int, **settings: Any) -> None:
        """Give an interface an address, again if it has it; raises SystemFailure.

        Addresses are assigned knowingly: no duplicate detection delays the use of IPv6 ones.
        """
        if ":" in address:
            settings.setdefault("flags", _IFA_F_NODAD)
        self._do(
            f"set address {address}",
            self.route.addr,
            "replace",
            index=index,
            address=address,
            prefixlen=prefix,
            **settings,
        )

    def delete_address(self, index: int, address: str, prefix: int) -> None:
        """Take an address away; absent is success. Raises SystemFailure."""
        self._do(
            f"remove address {address}",
            self.route.addr,
            "del",
            index=index,
            address=address,
            prefixlen=prefix,
            ignore=(errno.EADDRNOTAVAIL, errno.ENODEV),
        )

    # routes

    def set_route(self, destination: str, index: int, **settings: Any) -> None:
        """Route ``destination`` (CIDR or ``default``) through an interface; raises SystemFailure."""
        settings.setdefault("proto", PROTOCOL)
        version = 6 if ":" in destination or settings.get("family") == socket.AF_INET6 else 4
        settings["family"] = socket.AF_INET6 if version == 6 else socket.AF_INET
        if destination == "default":
            destination = "::/0" if version == 6 else "0.0.0.0/0"
        self._do(
            f"route {destination}",
            self.route.route,
            "replace",
            dst=destination,
            oif=index,
            **settings,
        )

    def delete_route(self, destination: str, index: int, **settings: Any) -> None:
        """Remove a route of ours; absent is success. Raises SystemFailure."""
        settings.setdefault("proto", PROTOCOL)
        self._do(
            f"remove the route to {destination}",
            self.route.route,
            "del",
            dst=destination,
            oif=index,
            family=socket.AF_INET6 if ":" in destination else socket.AF_INET,
            ignore=(errno.ESRCH, errno.ENODEV, errno.ENETUNREACH),
            **settings,
        )

    def routes(
        self, index: int | None = None, *, protocol: int | None = PROTOCOL
    ) -> set[tuple[str, int]]:
        """Return (destination, interface) of routes, those of ours unless told otherwise."""
        found = set()
        wanted = {} if index is None else {"oif": index}
        if protocol is not None:
            wanted["proto"] = protocol
        for family in (socket.AF_INET, socket.AF_INET6):
            # The kernel filters (strict checking): a server has thousands of routes.
            request = {"family": family, "table": 254, "dump_filter": None, **wanted}
            for message in self.route.route("dump", **request):
                destination = message.get_attr("RTA_DST")
                if destination is not None:
                    place = (f"{destination}/{message['dst_len']}", message.get_attr("RTA_OIF"))
                    found.add(place)
        return found

    def default_devices(self) -> list[int]:
        """Return the interfaces the default routes lead through, the preferred one first."""
        found: dict[int, int] = {}
        with (
            entered(self._namespace),
            socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0) as sock,
        ):
            for family in (socket.AF_INET, socket.AF_INET6):
                for metric, oif in _default_routes(sock, family):
                    found[oif] = min(metric, found.get(oif, metric))
        return sorted(found, key=lambda oif: found[oif])

    # neighbours

    def set_proxy(self, address: str, index: int) -> None:
        """Answer for ``address`` on an interface (proxy ARP or ND); raises SystemFailure."""
        self._proxy("replace", address, index, protocol=PROTOCOL)

    def delete_proxy(self, address: str, index: int) -> None:
        """Answer for ``address`` no longer; absent is success. Raises SystemFailure."""
        self._proxy("del", address, index, ignore=(errno.ENOENT, errno.ENODEV))

    def _proxy(self, word: str, address: str, index: int, **more: Any) -> None:
        self._do(
            f"{word} the answers for {address}",
            self.route.neigh,
            word,
            dst=address,
            ifindex=index,
            family=socket.AF_INET6 if ":" in address else socket.AF_INET,
            flags=_NTF_PROXY,
            state=0,
            **more,
        )

    def proxies(self) -> set[tuple[str, int]]:
        """Return (address, interface) of every proxy entry of ours."""
        found = set()
        for family in (socket.AF_INET, socket.AF_INET6):
            # With a filter of its own pyroute2 would keep the flags out of the request, and the
            # kernel lists proxy entries only when asked for them.
            request = {"family": family, "flags": _NTF_PROXY, "dump_filter": None}
            for message in self.route.neigh("dump", **request):
                if message["flags"] & _NTF_PROXY and message.get_attr("NDA_PROTOCOL") == PROTOCOL:
                    found.add((message.get_attr("NDA_DST"), message["ifindex"]))
        return found

    def _do(
        self,
        what: str,
        act: Callable[..., Any],
        word: str,
        *,
        ignore: tuple[int, ...] = (),
        **settings: Any,
    ) -> bool:
        """Do one request; returns False for an error that is to be ignored."""
        from pyroute2.netlink.exceptions import NetlinkError

        try:
            act(word, **settings)
        except NetlinkError as error:
            if error.code in ignore:
                return False
            raise _failed(error, what) from error
        return True


class LinkFailed(SystemFailure):
    """The kernel refused a change of the network; ``errno`` tells why."""

    errno = 0


def _failed(error: Any, what: str) -> LinkFailed:
    failed = LinkFailed(f"cannot {what}: {os.strerror(error.code)}")
    failed.errno = error.code
    return failed


def _link(message: Any) -> Link:
    info = message.get_attr("IFLA_LINKINFO")
    kind = info.get_attr("IFLA_INFO_KIND") if info else ""
    # A veth's other end is told in the same words, and so is what lies in another namespace.
    stands = kind != "veth" and message.get_attr("IFLA_LINK_NETNSID") is None
    return Link(
        index=message["index"],
        name=message.get_attr("IFLA_IFNAME"),
        kind=kind or "",
        group=message.get_attr("IFLA_GROUP") or 0,
        mac=message.get_attr("IFLA_ADDRESS") or "",
        up=bool(message["flags"] & IFF_UP),
        master=message.get_attr("IFLA_MASTER") or 0,
        carrier=bool(message.get_attr("IFLA_CARRIER")),
        hardware=message["ifi_type"],
        lower=message.get_attr("IFLA_LINK") or 0 if stands else 0,
    )


# linux/netlink.h, linux/rtnetlink.h
_RTM_GETROUTE = 26
_RTM_NEWROUTE = 24
_NLMSG_DONE, _NLMSG_ERROR = 3, 2
_NLM_F_REQUEST_DUMP = 0x301
_RTA_OIF, _RTA_PRIORITY, _RTA_MULTIPATH = 4, 6, 9
_RT_TABLE_MAIN = 254
_RTN_UNICAST = 1


def _default_routes(sock: socket.socket, family: int) -> Iterator[tuple[int, int]]:
    """Yield (metric, interface) of the default routes of the main table, rtnetlink(7).

    By hand: the kernel cannot be asked for these alone, and a server has thousands of others,
    which pyroute2 would take apart completely (0.04 ms each).
    """
    head = struct.pack("=IHHII", 28, _RTM_GETROUTE, _NLM_F_REQUEST_DUMP, 1, 0)
    sock.send(head + struct.pack("=BBBBBBBBI", family, 0, 0, 0, 0, 0, 0, 0, 0))
    while True:
        data = sock.recv(1 << 17)
        place = 0
        while place + 16 <= len(data):
            length, kind = struct.unpack_from("=IH", data, place)
            if kind in (_NLMSG_DONE, _NLMSG_ERROR) or length < 16:
                return
            destination_length, table, route_type = (
                data[place + 17], data[place + 20], data[place + 23],
            )  # fmt: skip
            plain = table == _RT_TABLE_MAIN and route_type == _RTN_UNICAST
            if kind == _RTM_NEWROUTE and plain and destination_length == 0:
                yield from _hops(data[place + 28 : place + length])
            place += (length + 3) & ~3


def _hops(attributes: bytes) -> Iterator[tuple[int, int]]:
    """Yield (metric, interface) of each next hop of one route."""
    metric, found, place = 0, [], 0
    while place + 4 <= len(attributes):
        length, kind = struct.unpack_from("=HH", attributes, place)
        if length < 4:
            break
        value = attributes[place + 4 : place + length]
        if kind == _RTA_OIF:
            found.append(struct.unpack_from("=I", value)[0])
        elif kind == _RTA_PRIORITY:
            metric = struct.unpack_from("=I", value)[0]
        elif kind == _RTA_MULTIPATH:
            # struct rtnexthop: length, flags, hops, interface; attributes follow.
            hop = 0
            while hop + 8 <= len(value):
                size = struct.unpack_from("=H", value, hop)[0]
                found.append(struct.unpack_from("=I", value, hop + 4)[0])
                hop += max(8, (size + 3) & ~3)
        place += (length + 3) & ~3
    for oif in found:
        yield metric, oif
