"""Start a container running /bin/true and wait; run /bin/true in a running one. Against peers.

.venv/bin/python tests/bench/bench_start.py [--quick]
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.bench._harness import (
    BIN,
    LegacyHost,
    arguments,
    emit,
    installed,
    interleaved,
    report,
    run,
    scratch,
)

Act = Callable[[], None]


def busybox_root(place: Path) -> Path:
    """Make a minimal root file system for the peers and return it."""
    root = place / "rootfs"
    for name in ("bin", "dev", "proc", "sys", "etc", "tmp", "usr", "root", "run", "var"):
        (root / name).mkdir(parents=True)
    shutil.copy2("/bin/busybox", root / "bin/busybox")
    for applet in ("true", "sh", "sleep"):
        (root / "bin" / applet).symlink_to("busybox")
    (root / "etc/os-release").write_text("ID=bench\n")
    (root / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\n")
    (root / "usr/bin").symlink_to("../bin")
    return root


def bundle(place: Path, root: Path, runtime: str, command: list[str]) -> Path:
    """Write an OCI bundle which runs ``command`` and return it."""
    target = place / f"bundle-{runtime}-{command[0].rpartition('/')[2]}"
    target.mkdir()
    subprocess.run([runtime, "spec"], cwd=target, check=True, capture_output=True)
    spec = json.loads((target / "config.json").read_text())
    spec["process"]["terminal"] = False
    spec["process"]["args"] = command
    spec["process"].pop("rlimits", None)
    spec["root"] = {"path": str(root), "readonly": False}
    (target / "config.json").write_text(json.dumps(spec))
    return target


def lxc_config(place: Path, root: Path) -> Path:
    """Write a configuration for lxc and return it."""
    (place / "lxc").mkdir()
    conf = place / "lxc.conf"
    conf.write_text(
        f"lxc.rootfs.path = dir:{root}\nlxc.uts.name = bench\nlxc.mount.auto = proc sys\n"
        "lxc.net.0.type = empty\nlxc.apparmor.profile = unconfined\n"
    )
    return conf


class OciPeer:
    """runc or crun; ``run`` starts their commands."""

    def __init__(self, place: Path, root: Path, program: str, run: Callable[..., None]) -> None:
        self.program = program
        self.run = run
        self.once = bundle(place, root, program, ["/bin/true"])
        self.long = bundle(place, root, program, ["/bin/sleep", "600"])
        self._state = place / f"state-{program}"
        self._count = 0

    def start(self) -> None:
        """Run /bin/true in a new container."""
        self._count += 1
        self.run(
            self.program,
            "--root",
            self._state,
            "run",
            "--bundle",
            self.once,
            f"bench{os.getpid()}-{self._count}",
        )

    def open(self) -> None:
        """Start the long-running container."""
        # A shell between: the container keeps nobody's pipe open.
        words = f"{self.program} --root {self._state} run --detach --bundle {self.long} long"
        self.run("sh", "-c", f"{words} >/dev/null 2>&1")

    def exec(self) -> None:
        """Run /bin/true in it."""
        self.run(self.program, "--root", self._state, "exec", "long", "/bin/true")

    def close(self) -> None:
        """Remove it."""
        self.run(self.program, "--root", self._state, "delete", "--force", "long", ok=(0, 1))


def peers_start(place: Path, root: Path, run_legacy: Callable[..., None]) -> dict[str, Act]:
    """Return the peers that can start a container here."""
    acts: dict[str, Act] = {}
    if installed("systemd-nspawn"):
        acts["systemd-nspawn"] = lambda: run(
            "systemd-nspawn", "-q", "--register=no", "--keep-unit", "-D", root, "/bin/true"
        )
    if installed("podman"):
        store = [f"--root={place}/podman", f"--runroot={place}/podman-run"]
        limits = ["--ulimit", "nofile=1024:1024", "--ulimit", "nproc=4096:4096"]
        acts["podman"] = lambda: run_legacy(
            "podman", *store, "--cgroup-manager=cgroupfs", "run", "--rm", *limits, "--network=none",
            "--cgroups=disabled", "--rootfs", root, "/bin/true",
        )  # fmt: skip
    if installed("lxc-start"):
        conf = lxc_config(place, root)
        acts["lxc-start"] = lambda: run_legacy(
            "lxc-start", "-F", "-P", place / "lxc", "-n", "bench", "-f", conf, "--", "/bin/true"
        )
    return acts


def main() -> None:
    """Measure and print."""
    args = arguments(__doc__ or "")
    with scratch() as place:
        os.environ["VZ_ROOT"] = str(place / "vz")
        (place / "vz").mkdir()
        legacy = LegacyHost() if LegacyHost.wanted() else None
        try:
            emit(_measure(place, args.rounds, legacy.run if legacy else run))
        finally:
            if legacy is not None:
                legacy.close()
            run(BIN / "python", "-m", "tools.service", "--stop", place / "vz")


def _measure(place: Path, rounds: int, run_legacy: Callable[..., None]) -> list[dict[str, object]]:
    from runtime import nursery
    from runtime.container import Container
    from runtime.paths import Paths
    from runtime.progress import Silent
    from tools import environments
    from tools._command import Context

    root = busybox_root(place)
    pctl = BIN / "pctl"
    cold = {**os.environ, "VZ_SERVICE": "no"}
    run(pctl, "create", "101", "--ostemplate", "busybox", "--force")
    run(pctl, "create", "102", "--ostemplate", "busybox", "--force")
    # What a process has that uses the API, and no more; it is warm after the first round.
    nursery.begin()
    context = Context("bench", Paths.from_environment(), quiet=True)
    ct: Container = environments.find_container(context, "101")
    ct.progress = Silent()
    oci = [OciPeer(place, root, name, run_legacy) for name in ("runc", "crun") if installed(name)]

    def api_start() -> None:
        assert ct.run(["/bin/true"]) == 0

    results = []
    run(pctl, "run", "101", "/bin/true")
    time.sleep(1.0)  # the service that this command started
    starts: dict[str, Act] = {"pyvz API, warm process": api_start}
    starts["pyvz command, service warm"] = lambda: run(pctl, "run", "101", "/bin/true")
    starts["pyvz command, no service"] = lambda: run(pctl, "run", "101", "/bin/true", env=cold)
    for peer in oci:
        starts[peer.program] = peer.start
    starts.update(peers_start(place, root, run_legacy))
    results.append(report("start /bin/true and wait", interleaved(starts, rounds), base="runc"))

    run(pctl, "start", "102")
    running: Container = environments.find_container(context, "102")
    running.progress = Silent()

    def api_exec() -> None:
        assert running.exec(["/bin/true"]) == 0

    execs: dict[str, Act] = {"pyvz API, warm process": api_exec}
    execs["pyvz command, service warm"] = lambda: run(pctl, "exec3", "102", "/bin/true")
    execs["pyvz command, no service"] = lambda: run(pctl, "exec3", "102", "/bin/true", env=cold)
    for peer in oci:
        try:
            peer.open()
        except subprocess.CalledProcessError:
            continue
        execs[peer.program] = peer.exec
    results.append(report("exec /bin/true", interleaved(execs, rounds), base="runc"))
    for peer in oci:
        peer.close()
    run(pctl, "stop", "102", "--fast")
    return results


if __name__ == "__main__":
    main()
