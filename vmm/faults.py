"""libvirt's errors in the words and exit codes of the product."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from runtime.errors import (
    ConfigMissing,
    Locked,
    NoKernelSupport,
    NotPermitted,
    NotRunning,
    SystemFailure,
    ValidationFailed,
    VzError,
)

if TYPE_CHECKING:
    import libvirt

#: virErrorNumber (libvirt/virterror.h) → class. What is absent is a SystemFailure.
_CLASSES: dict[int, type[VzError]] = {
    3: NoKernelSupport,  # NO_SUPPORT
    27: ValidationFailed,  # XML_ERROR
    42: ConfigMissing,  # NO_DOMAIN
    67: ValidationFailed,  # CONFIG_UNSUPPORTED
    68: Locked,  # OPERATION_TIMEOUT
    84: NoKernelSupport,  # OPERATION_UNSUPPORTED
    87: Locked,  # RESOURCE_BUSY
    88: NotPermitted,  # ACCESS_DENIED
    92: ValidationFailed,  # XML_INVALID_SCHEMA
}
INVALID_ARGUMENT = 8
NO_DOMAIN = 42
OPERATION_INVALID = 55
AGENT_UNRESPONSIVE = 86
NO_DOMAIN_SNAPSHOT = 72


class AgentSilent(NotRunning):
    """The guest agent inside the machine does not answer."""

    code = 31


@contextmanager
def translated(doing: str, *, instead: type[VzError] | None = None) -> Iterator[None]:
    """Turn a libvirtError of the block into a VzError which says what was being done.

    ``instead`` is the class for errors that have no class of their own.
    """
    import libvirt

    try:
        yield
    except libvirt.libvirtError as error:
        raise translate(error, doing, instead) from error


def translate(
    error: libvirt.libvirtError, doing: str, instead: type[VzError] | None = None
) -> VzError:
    """Return the VzError for ``error``."""
    number = error.get_error_code()
    if number == AGENT_UNRESPONSIVE:
        return AgentSilent(
            f"{doing}: the guest agent does not answer",
            hint="install and start qemu-guest-agent in the guest, or wait until it has booted",
        )
    cls = _CLASSES.get(number) or instead or SystemFailure
    message = " ".join((error.get_error_message() or str(error)).split())
    return cls(f"{doing}: {message}")
