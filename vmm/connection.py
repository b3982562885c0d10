"""The way to libvirt: a configured URI, the server's running libvirt, or a libvirtd of our own.

A libvirtd of our own that is in use is preferred over the server's, so that machines do not get
out of sight when somebody starts the latter. A system moved by ``--root`` never uses the server's.
"""

from __future__ import annotations

import functools
import os
import sys
import threading
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, Self

from runtime.errors import ConfigMissing, NoKernelSupport, SystemFailure
from runtime.paths import Paths
from runtime.progress import Progress, Silent
from vmm import acceleration, daemon
from vmm.faults import NO_DOMAIN, translate, translated

if TYPE_CHECKING:
    import libvirt

_ADDRESS_BYTES = 107


class Hypervisor:
    """A lazily opened connection; use it in a ``with`` block."""

    def __init__(
        self,
        paths: Paths,
        *,
        uri: str | None = None,
        accelerate: str | None = None,
        progress: Progress | None = None,
    ) -> None:
        """Connect to ``uri`` (LIBVIRT_URI) or whatever there is, when first needed."""
        self.paths = paths
        self.progress: Progress = progress or Silent()
        self._uri = uri or None
        self._accelerate = accelerate
        self._raw: libvirt.virConnect | None = None
        self._directory_fd = -1
        self.own = daemon.Daemon(paths)

    @property
    def raw(self) -> libvirt.virConnect:
        """libvirt's own connection; raises NoKernelSupport (not installed), SystemFailure."""
        if self._raw is None:
            self._raw = self._open()
        return self._raw

    @functools.cached_property
    def acceleration(self) -> acceleration.Acceleration:
        """How guests run here."""
        return acceleration.choose(self._accelerate)

    def close(self) -> None:
        """Close the connection."""
        if self._raw is not None:
            import libvirt

            # A daemon that died in between took the connection with it.
            with suppress(libvirt.libvirtError):
                self._raw.close()
            self._raw = None
        if self._directory_fd >= 0:
            os.close(self._directory_fd)
            self._directory_fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close; an error of libvirt's that nobody expected (it died) becomes one of ours."""
        self.close()
        libvirt = sys.modules.get("libvirt")
        if libvirt is not None and isinstance(error, libvirt.libvirtError):
            raise translate(error, "libvirt") from error

    def choose_uri(self) -> str:
        """Return the URI to connect to, starting a libvirtd of our own if there is no other."""
        if self._uri is not None:
            return self._uri
        if self.paths.is_default and not self.own.used() and daemon.system_socket() is not None:
            return "qemu:///system"
        self.own.start()
        return f"qemu+unix:///system?socket={self._address()}"

    def domain(self, uuid: str) -> libvirt.virDomain:
        """Return libvirt's domain of a machine; raises ConfigMissing."""
        with translated(f"looking for machine {uuid}"):
            return self.raw.lookupByUUIDString(uuid)

    def find(self, uuid: str) -> libvirt.virDomain | None:
        """Return libvirt's domain, or None when libvirt does not know it."""
        import libvirt

        try:
            return self.raw.lookupByUUIDString(uuid)
        except libvirt.libvirtError as error:
            if error.get_error_code() == NO_DOMAIN:
                return None
            raise translate(error, f"looking for machine {uuid}") from error

    def _address(self) -> str:
        """Return the socket's path, through a descriptor where it is too long for an address."""
        path = self.own.socket
        if len(os.fsencode(path)) <= _ADDRESS_BYTES:
            return os.fspath(path)
        self._directory_fd = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        return f"/proc/self/fd/{self._directory_fd}/{path.name}"

    def _open(self) -> libvirt.virConnect:
        try:
            import libvirt
        except ImportError as error:
            raise NoKernelSupport(
                "virtual machines need libvirt and its Python module, which are not installed",
                hint=f"apt-get install --no-install-recommends {' '.join(daemon.PACKAGES)}",
            ) from error
        # Errors reach us as exceptions; libvirt would print each on stderr as well.
        libvirt.registerErrorHandler(_ignore, None)
        uri = self.choose_uri()
        try:
            return libvirt.open(uri)
        except libvirt.libvirtError as error:
            raise SystemFailure(
                f"cannot connect to libvirt at {uri}: {error.get_error_message()}",
                hint="LIBVIRT_URI in vz.conf chooses another",
            ) from error


def _ignore(_context: object, _error: object) -> None:
    """Swallow what libvirt would print."""


@functools.cache
def start_events() -> None:
    """Run libvirt's event loop in a thread: streams and events need it, once a process.

    It must be called before the connection is opened.
    """
    import libvirt

    libvirt.virEventRegisterDefaultImpl()

    def loop() -> None:
        while True:
            libvirt.virEventRunDefaultImpl()

    threading.Thread(target=loop, name="libvirt-events", daemon=True).start()


def missing(name: str) -> ConfigMissing:
    """Return the error for a machine that does not exist."""
    return ConfigMissing(f"no virtual machine is called {name}", hint="pctl list -a --vmtype vm")
