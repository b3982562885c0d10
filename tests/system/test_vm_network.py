"""Machines on the virtual networks, in a network namespace of the test's own."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from runtime.paths import Paths
from vmm.daemon import Daemon

pytestmark = pytest.mark.kvm

BIN = Path(__file__).resolve().parents[2] / ".venv" / "bin"


class Server:
    """A system whose commands, and libvirtd, run in a network namespace of their own."""

    def __init__(self, template_area: Path) -> None:
        """Make the namespace, held by a process that only waits."""
        self.root = Path(tempfile.mkdtemp(prefix="pyvz-vmnet-", dir="/var/tmp"))
        self.paths = Paths(self.root)
        (self.root / "vz").mkdir()
        (self.root / "vz/template").symlink_to(template_area)
        self.paths.etc.mkdir(parents=True)
        self._holder = subprocess.Popen(["unshare", "--net", "sleep", "600"])

    def call(self, *words: str) -> str:
        """Run a program in the namespace; it must succeed."""
        done = subprocess.run(
            ["nsenter", f"--net=/proc/{self._holder.pid}/ns/net", "--", *words],
            capture_output=True,
            text=True,
            check=False,
            env={"PATH": f"{BIN}:/usr/sbin:/usr/bin:/sbin:/bin", "VZ_ROOT": str(self.root),
                 "VZ_SERVICE": "no"},
        )  # fmt: skip
        assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
        return done.stdout

    def links(self) -> dict[str, str]:
        """Return interface → bridge it is in (or an empty string)."""
        found = json.loads(self.call("ip", "-j", "link"))
        return {link["ifname"]: link.get("master", "") for link in found}

    def close(self) -> None:
        """Remove everything."""
        Daemon(self.paths).stop()
        self._holder.kill()
        self._holder.wait()
        shutil.rmtree(self.root, ignore_errors=True)


@pytest.fixture
def server(template_area: Path) -> Iterator[Server]:
    """A system in its own network namespace."""
    made = Server(template_area)
    try:
        made.call("ip", "link", "set", "lo", "up")
        yield made
        made.call("pctl", "delete", "net", "--force")
    finally:
        made.close()


def test_a_machine_on_its_networks_is_reached_and_leaves_no_link(server: Server) -> None:
    networks = server.paths.etc / "networks"
    networks.mkdir()
    (networks / "Host-Only.conf").write_text('TYPE="host-only"\nIP="192.0.2.1/24"\n')
    server.paths.global_config.write_text(
        'TRAFFIC_SHAPING="yes"\nBANDWIDTH="up0:100000"\nTOTALRATE="*:1:4096"\nRATE="*:1:8"\n'
    )
    server.paths.networks_classes.parent.mkdir(parents=True)
    server.paths.networks_classes.write_text("1 0.0.0.0/0\n")
    server.call("ip", "link", "add", "up0", "type", "veth", "peer", "name", "up1")
    before = server.links()
    server.call("pctl", "create", "net", "-d", "golden")
    server.call("pctl", "set", "net", "--rate", "1:512", "--ratebound", "yes")
    server.call("pctl", "set", "net", "--device-set", "net0", "--type", "host-only",
                "--ipadd", "192.0.2.5/24")  # fmt: skip
    server.call("pctl", "set", "net", "--device-set", "net0", "--preventpromisc", "yes")
    server.call("pctl", "start", "net", "--wait")
    # What was stored while the machine was stopped is set inside after its start.
    assert "192.0.2.5/24" in server.call("pctl", "exec", "net", "ip addr show eth0")
    server.call("pctl", "exec", "net", "ping -c 1 -W 3 192.0.2.1")
    tap = next(name for name, bridge in server.links().items() if bridge == "vbr-Host-Only")
    # It hears only what is for it, until it is told otherwise while it runs.
    assert f"jump in_{tap}" in server.call("nft", "list", "map", "bridge", "pyvz_guard", "heard")
    server.call("pctl", "set", "net", "--device-set", "net0", "--preventpromisc", "no")
    assert f"in_{tap}" not in server.call("nft", "list", "table", "bridge", "pyvz_guard")
    # Its share of the uplink, changed while it runs.
    assert "rate 512Kbit ceil 512Kbit" in server.call("tc", "class", "show", "dev", "up0")
    server.call("pctl", "set", "net", "--rate", "1:1024", "--ratebound", "no")
    assert "rate 1024Kbit ceil 4096Kbit" in server.call("tc", "class", "show", "dev", "up0")
    # Host-routed: the server has a route to the address, the guest a way to everywhere.
    server.call("pctl", "set", "net", "--device-add", "net", "--type", "routed",
                "--ipadd", "198.51.100.7/32")  # fmt: skip
    assert "198.51.100.7 dev vme" in server.call("ip", "route")
    assert "default dev eth1" in server.call("pctl", "exec", "net", "ip route")
    shown = server.call("pctl", "list", "-i", "net")
    assert "net1 (+) type=routed network='Routed'" in shown
    assert "net0 (+) type=host-only network='Host-Only'" in shown
    server.call("pctl", "stop", "net")
    left = server.links()
    assert tap not in left
    assert "rate 1024Kbit" not in server.call("tc", "class", "show", "dev", "up0")
    assert {name for name in left if name not in before} == {"vbr-Host-Only"}
