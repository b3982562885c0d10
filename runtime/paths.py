"""Every path of the system, from one root: ``--root DIR`` or ``VZ_ROOT`` moves them all."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Paths:
    """The places the system keeps things; ``root`` is ``/`` on a real server.

    The three areas named in vz.conf (``TEMPLATE``, ``VE_PRIVATE``, ``VE_ROOT``) may be moved one
    by one; ``area()`` resolves such a value below the root.
    """

    root: Path = field(default_factory=lambda: Path("/"))
    #: TEMPLATE of vz.conf.
    template_area: str = "/vz/template"

    @classmethod
    def from_environment(cls, root: str | None = None) -> Paths:
        """Return the paths below ``root``, else below ``VZ_ROOT``, else of the server itself."""
        chosen = root or os.environ.get("VZ_ROOT") or "/"
        return cls(Path(os.path.abspath(chosen)))

    @property
    def is_default(self) -> bool:
        """Whether this is the server itself, not a moved system."""
        return self.root == Path("/")

    @property
    def tag(self) -> str:
        """Return the suffix which keeps kernel-wide names (cgroups, links) of moved systems apart.

        Empty for the server itself.
        """
        if self.is_default:
            return ""
        import hashlib  # 5 ms: only moved systems need it

        return "-" + hashlib.sha256(os.fsencode(self.root)).hexdigest()[:8]

    def area(self, configured: str) -> Path:
        """Return a path from a configuration file, taken below the root."""
        return self.root / configured.lstrip("/")

    def with_template(self, configured: str | None) -> Paths:
        """Return them with the template area where TEMPLATE of vz.conf says, if it says so."""
        if configured and configured.strip("/"):
            return replace(self, template_area=configured)
        return self

    def typed(self, path: str) -> Path:
        """Return a path typed on a command line: as it is if it lies below the root, else as
        ``area`` takes it.
        """
        absolute = Path(os.path.abspath(path))
        return absolute if absolute.is_relative_to(self.root) else self.area(path)

    # configuration
    @property
    def etc(self) -> Path:
        return self.root / "etc/vz"

    @property
    def global_config(self) -> Path:
        return self.etc / "vz.conf"

    @property
    def conf_dir(self) -> Path:
        return self.etc / "conf"

    def ct_conf(self, ctid: int) -> Path:
        return self.conf_dir / f"{ctid}.conf"

    def sample(self, name: str) -> Path:
        return self.conf_dir / f"ve-{name}.conf-sample"

    @property
    def names(self) -> Path:
        """Directory of symbolic links NAME → ../conf/CTID.conf."""
        return self.etc / "names"

    @property
    def dists(self) -> Path:
        return self.etc / "dists"

    @property
    def networks_classes(self) -> Path:
        return self.conf_dir / "networks_classes"

    # areas
    @property
    def vz(self) -> Path:
        return self.root / "vz"

    @property
    def template(self) -> Path:
        return self.area(self.template_area)

    @property
    def template_cache(self) -> Path:
        return self.template / "cache"

    @property
    def private_dir(self) -> Path:
        return self.vz / "private"

    def private(self, ctid: int) -> Path:
        return self.private_dir / str(ctid)

    @property
    def root_dir(self) -> Path:
        return self.vz / "root"

    def ct_root(self, ctid: int) -> Path:
        """Mount point of a container's merged tree."""
        return self.root_dir / str(ctid)

    @property
    def lock_dir(self) -> Path:
        return self.vz / "lock"

    @property
    def dump_dir(self) -> Path:
        return self.vz / "dump"

    @property
    def tmp(self) -> Path:
        return self.vz / "tmp"

    @property
    def actionlog(self) -> Path:
        return self.vz / "actionlog"

    @property
    def machines(self) -> Path:
        """Default home of virtual machine bundles."""
        return self.root / "var/parallels"

    @property
    def backups(self) -> Path:
        return self.vz / "backups"

    # variable state
    def quota_file(self, ctid: int) -> Path:
        return self.root / f"var/vzquota/quota.{ctid}"

    @property
    def lib(self) -> Path:
        """State that outlives a reboot (slots, counters, journal)."""
        return self.root / "var/lib/vz"

    @property
    def journal(self) -> Path:
        return self.lib / "journal"

    @property
    def log_dir(self) -> Path:
        return self.root / "var/log"

    @property
    def log(self) -> Path:
        return self.log_dir / "vzctl.log"

    @property
    def run(self) -> Path:
        """State that a reboot empties."""
        return self.root / "run/vz"

    def ct_state(self, ctid: int) -> Path:
        return self.run / "ct" / f"{ctid}.json"

    def socket(self, name: str) -> Path:
        """Return the path of a unix socket of ours (see ``unixsocket`` for long ones)."""
        return self.run / f"{name}.sock"
