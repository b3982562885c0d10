"""NETFILTER: how much of the kernel's packet filter a container has, and IPTABLES, its old words.

``disabled`` is a seccomp filter: no rules at all. Between the other levels the kernel itself does
not tell: connections are tracked, and addresses translated, in each network namespace for whoever
writes such a rule. So a table is put into the namespace before the container's own:

- ``stateless``: no packet is tracked (nft(8), notrack), whatever rules ask for. ``ct state`` is
  ``untracked``, NAT never happens, and nothing is spent on either.
- ``stateful``: connections are tracked, and get the addresses they have already as translation.

The table belongs to a socket (NFT_TABLE_F_OWNER, Linux 5.12): nobody else can change it, and it
goes with the socket, which the supervisor keeps. Somebody determined can still have packets
tracked before the table sees them: a level decides what ordinary rules do, and defends nothing.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import stat
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from enum import StrEnum
from typing import TYPE_CHECKING

from runtime.errors import NetfilterFailed
from runtime.net.links import entered, open_namespace
from runtime.net.nft import Nft, NftFailed

if TYPE_CHECKING:
    from runtime.config import Config

TABLE = "pyvz_level"
_MODULE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,55}")
#: The first place there is; the first after conntrack's (linux/netfilter_ipv4.h).
_FIRST, _AFTER_CONNTRACK = -(2**31), -199


class Level(StrEnum):
    """What a container may use of netfilter, less before more."""

    DISABLED = "disabled"
    STATELESS = "stateless"
    STATEFUL = "stateful"
    FULL = "full"


#: Modules of vz.conf(5)'s IPTABLES by the level that has what they did.
_MODULES = {
    Level.STATELESS: """
        ip_tables ip6_tables iptable_filter ip6table_filter iptable_mangle ip6table_mangle
        ipt_limit ipt_multiport ipt_tos ipt_TOS ipt_REJECT ipt_TCPMSS ipt_tcpmss ipt_ttl ipt_LOG
        ipt_length ipt_owner ipt_recent xt_mac xt_comment ip_set
        """.split(),  # noqa: SIM905 # one word a module reads better than a list
    Level.STATEFUL: """
        nf_conntrack ip_conntrack ip_conntrack_ftp ip_conntrack_irc ipt_conntrack ipt_state
        ipt_helper
        """.split(),  # noqa: SIM905
    Level.FULL: """
        iptable_nat ip6table_nat nf_nat ip_nat ip_nat_ftp ip_nat_irc ipt_REDIRECT
        """.split(),  # noqa: SIM905
}
_LEVEL_OF = {module: level for level, modules in _MODULES.items() for module in modules}


def check(text: str) -> str:
    """Check a level; raises NetfilterFailed."""
    if text not in list(Level):
        raise NetfilterFailed(f"unknown level of netfilter: {text[:40]!r}", hint=", ".join(Level))
    return text


def check_modules(text: str) -> str:
    """Check names of iptables modules; raises NetfilterFailed."""
    words = text.replace(",", " ").split()
    for word in words:
        if word not in _LEVEL_OF:
            raise NetfilterFailed(f"unknown iptables module: {word[:40]!r}", hint="--netfilter")
    return " ".join(words)


def load_modules(text: str) -> list[str]:
    """Load vz.conf's IPTABLES_MODULES, modprobe(8); return those that cannot be had, with why.

    What is built into the kernel is there. Containers cannot load modules by themselves, though
    the kernel loads most when a rule needs them.
    """
    failed = []
    program = shutil.which("modprobe", path="/usr/sbin:/sbin:/usr/bin:/bin")
    for name in text.replace(",", " ").split():
        if os.path.isdir(f"/sys/module/{name.replace('-', '_')}"):
            continue
        if not _MODULE.fullmatch(name):
            failed.append(f"{name[:40]!r}: no name of a module")
            continue
        if program is None:
            failed.append(f"{name}: modprobe is not installed")
            continue
        done = subprocess.run(
            [program, "-q", "--", name],
            check=False,
            capture_output=True,
            stdin=subprocess.DEVNULL,
            env={"PATH": "/usr/sbin:/sbin:/usr/bin:/bin", "LC_ALL": "C"},
        )
        if done.returncode:
            failed.append(f"{name}: the kernel has no such module")
    return failed


def level(config: Config) -> Level:
    """Return a container's level: its NETFILTER, what its IPTABLES need, or the server's NETFILTER.

    Raises NetfilterFailed.
    """
    own: Mapping[str, str] = {} if config.container is None else config.container.items()
    if not own.get("NETFILTER") and own.get("IPTABLES"):
        needed = {_LEVEL_OF[word] for word in check_modules(own["IPTABLES"]).split()}
        return max(needed, key=list(Level).index)
    return Level(check(config.get("NETFILTER") or Level.FULL))


def script(wanted: Level) -> str:
    """Return the nft script that makes ``wanted`` true, "" where nothing is to be done."""
    why = f"NETFILTER={wanted} of this container, set by its server"
    lines = [f'add table inet {TABLE} {{ flags owner; comment "{why}"; }}']
    if wanted is Level.STATELESS:
        for hook in ("prerouting", "output"):
            kind = f"type filter hook {hook} priority {_FIRST}; policy accept;"
            lines += [
                f"add chain inet {TABLE} {hook} {{ {kind} }}",
                f"add rule inet {TABLE} {hook} notrack",
            ]
    elif wanted is Level.STATEFUL:
        for hook, act, address in (
            ("prerouting", "dnat", "daddr"),
            ("output", "dnat", "daddr"),
            ("input", "snat", "saddr"),
            ("postrouting", "snat", "saddr"),
        ):
            kind = f"type nat hook {hook} priority {_AFTER_CONNTRACK}; policy accept;"
            lines.append(f"add chain inet {TABLE} {hook} {{ {kind} }}")
            # The first translation a connection gets is its last: the one to what it has.
            lines += [
                f"add rule inet {TABLE} {hook} {act} {ip} to {ip} {address}" for ip in ("ip", "ip6")
            ]
    else:
        return ""
    return "\n".join(lines) + "\n"


def hold(pid: int, wanted: Level) -> int:
    """Make ``wanted`` true in the network namespace of process ``pid`` while a descriptor is open.

    Returns the descriptor, -1 where nothing is to be done; it keeps the namespace too. Raises
    NetfilterFailed, NoKernelSupport, OSError.
    """
    text = script(wanted)
    if not text:
        return -1
    netns_fd = open_namespace(pid)
    try:
        with entered(netns_fd):
            before = _sockets()
            with Nft() as context:
                # libnftables does not say which its socket is.
                (socket_fd,) = _sockets() - before
                context.run(text)
                return fcntl.fcntl(socket_fd, fcntl.F_DUPFD_CLOEXEC, 3)
    except NftFailed as error:
        raise NetfilterFailed(
            f"NETFILTER={wanted} cannot be had: {error.message}",
            hint="it takes Linux 5.12; --netfilter full does without",
        ) from error
    finally:
        os.close(netns_fd)


def _sockets() -> set[int]:
    """Return the descriptors of this process that are sockets."""
    found = set()
    for fd in os.listdir("/proc/self/fd"):
        with suppress(OSError):  # the listing's own
            if stat.S_ISSOCK(os.fstat(int(fd)).st_mode):
                found.add(int(fd))
    return found
