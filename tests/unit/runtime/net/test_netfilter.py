"""Tests of NETFILTER's levels and of the modules that stand for them."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from runtime import seccomp, syscalls
from runtime.config import Config, ConfigFile
from runtime.defaults import DEFAULTS
from runtime.errors import NetfilterFailed
from runtime.net import netfilter
from runtime.net.netfilter import Level


def level(text: str, server: str = "") -> Level:
    return netfilter.level(
        Config(
            ctid=101,
            container=ConfigFile(text),
            server=ConfigFile(server),
            defaults=DEFAULTS,
        )
    )


def test_levels_and_modules_are_checked() -> None:
    assert netfilter.check("stateful") == "stateful"
    assert netfilter.check_modules("iptable_nat,ip_conntrack") == "iptable_nat ip_conntrack"
    for check, bad in ((netfilter.check, "some"), (netfilter.check_modules, "ext4")):
        with pytest.raises(NetfilterFailed) as raised:
            check(bad)
        assert raised.value.code == 106


def test_without_a_word_nothing_is_tracked() -> None:
    assert level("") is Level.STATELESS
    assert level("", 'NETFILTER="full"\n') is Level.FULL


@pytest.mark.parametrize(
    ("modules", "needed"),
    [
        ("ip_tables iptable_filter ipt_REJECT", Level.STATELESS),
        ("iptable_filter ipt_state", Level.STATEFUL),
        ("ip_conntrack iptable_nat", Level.FULL),
    ],
)
def test_modules_decide_the_level_where_none_is_set(modules: str, needed: Level) -> None:
    assert level(f'IPTABLES="{modules}"\n') is needed
    assert level(f'IPTABLES="{modules}"\nNETFILTER="disabled"\n') is Level.DISABLED


def test_the_servers_list_of_modules_decides_nothing() -> None:
    assert level("", 'IPTABLES="iptable_nat"\n') is Level.STATELESS


def test_only_two_levels_need_rules() -> None:
    assert netfilter.script(Level.FULL) == netfilter.script(Level.DISABLED) == ""
    assert "notrack" in netfilter.script(Level.STATELESS)
    assert "notrack" not in netfilter.script(Level.STATEFUL)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root loads such a filter")
@pytest.mark.parametrize("allowed", [True, False])
def test_the_filter_of_a_disabled_level_refuses_the_way_to_the_rules(allowed: bool) -> None:
    program = seccomp.program(netfilter=allowed)
    pid = os.fork()
    if pid == 0:
        status = 9
        try:
            syscalls.load_seccomp(program)
            # Other families of netlink, and other options of a socket, stay.
            socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0).close()
            plain = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
            plain.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, 64)
            status = 0
            try:
                socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12).close()
            except PermissionError:
                status |= 1
            for family, kind in ((socket.IPPROTO_IP, 64), (socket.IPPROTO_IPV6, 65)):
                try:
                    plain.setsockopt(family, kind, b"")
                except PermissionError:
                    status |= 2
                except OSError:
                    pass
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == (0 if allowed else 3)


def test_modules_of_the_server_are_loaded_or_named_with_why(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked = tmp_path / "asked"
    fake = tmp_path / "modprobe"
    fake.write_text(f'#!/bin/sh\necho "$3" >>{asked}\ntest "$3" != nf_missing\n')
    fake.chmod(0o755)
    monkeypatch.setattr(netfilter.shutil, "which", lambda _name, path="": str(fake))
    failed = netfilter.load_modules("xt_one,nf_missing ../x -r")
    assert asked.read_text().split() == ["xt_one", "nf_missing"]
    assert [reason.partition(":")[0] for reason in failed] == ["nf_missing", "'../x'", "'-r'"]
