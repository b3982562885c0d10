"""What a machine shows: video card, remote display (VNC), screenshots."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING, Any

from lxml.builder import E

from runtime import files, units
from runtime.errors import InvalidValue, SystemFailure
from vmm import registry
from vmm.domain import Domain, drop
from vmm.faults import translated

if TYPE_CHECKING:
    from pathlib import Path

    from vmm.change import Change
    from vmm.machine import Machine

FIRST_PORT = 5900
LAST_PORT = 65535
_MIB = 1 << 20
#: RFC 6143, 7.2.2: longer passwords are cut by the protocol.
_PASSWORD_BYTES = 8


def videosize(change: Change, text: str) -> None:
    """Set the video memory; raises InvalidValue."""
    size = units.amount(text, unit=_MIB)
    if not 1 <= size <= 256 or size & (size - 1):
        raise InvalidValue(f"the video memory is 1, 2, 4 … 256 MB: {text!r}")
    model = change.domain.devices.find("video/model")
    if model is None:
        model = E.model(type="vga", heads="1")
        change.domain.devices.append(E.video(model))
    model.set("vram", str(size * 1024))
    change.say(f"Set the videosize parameter to {size}Mb")
    change.later("--videosize")


def video_bytes(domain: Domain) -> int:
    """Return the size of the video memory."""
    model = domain.devices.find("video/model")
    return int(model.get("vram", "0")) * 1024 if model is not None else 0


def vnc_mode(change: Change, text: str) -> None:
    """Turn the remote display off or on, on a port libvirt (auto) or people (manual) choose."""
    if text not in ("auto", "manual", "off"):
        raise InvalidValue(f"unknown display mode: {text!r}", hint="auto, manual or off")
    change.domain.set_setting("vnc-mode", text)
    _refit(change)


def vnc_port(change: Change, text: str) -> None:
    """Choose the port of a manual display; raises InvalidValue when it is taken."""
    if not text.isdecimal() or not FIRST_PORT <= int(text) <= LAST_PORT:
        raise InvalidValue(f"a display has the ports {FIRST_PORT} to {LAST_PORT}: {text!r}")
    for record in registry.records(change.machine.paths):
        if record.uuid != change.machine.record.uuid and record.config.is_file():
            other = Domain.load(record.config)
            if other.setting("vnc-mode") == "manual" and other.setting("vnc-port") == text:
                raise InvalidValue(f"port {text} is the display of machine {record.name}")
    change.domain.set_setting("vnc-port", text)
    _refit(change)


def vnc_password(change: Change, text: str) -> None:
    """Set the display's password, an empty one means none; raises InvalidValue."""
    if len(text.encode()) > _PASSWORD_BYTES:
        raise InvalidValue("the protocol allows passwords of at most 8 bytes")
    change.domain.set_setting("vnc-password", text or None)
    _refit(change)


def vnc_address(change: Change, text: str) -> None:
    """Choose the server's address of the display; raises InvalidValue."""
    try:
        socket.getaddrinfo(text, None, flags=socket.AI_NUMERICHOST)
    except OSError:
        raise InvalidValue(f"not an address: {text!r}") from None
    change.domain.set_setting("vnc-address", text)
    _refit(change)


def _refit(change: Change) -> None:
    """Judge the whole display once every setting of the command is stored."""
    change.check(_fit)


def _fit(change: Change) -> None:
    """Make the graphics element say what the settings say."""
    domain = change.domain
    drop(domain.devices, "graphics")
    mode = domain.setting("vnc-mode", "off")
    change.later("--vnc-mode")
    if mode == "off":
        return
    attributes = {"type": "vnc", "port": "-1", "autoport": "yes"}
    if mode == "manual":
        port = domain.setting("vnc-port")
        if not port:
            raise InvalidValue("a manual display needs a port", hint="--vnc-port 5901")
        attributes.update(port=port, autoport="no")
    password = domain.setting("vnc-password")
    address = domain.setting("vnc-address", "127.0.0.1")
    if not password and not address.startswith(("127.", "::1")):
        raise InvalidValue(
            "a display without a password may only be on this server itself",
            hint="--vnc-passwd, or --vnc-address 127.0.0.1",
        )
    if password:
        attributes["passwd"] = password
    domain.devices.append(E.graphics(E.listen(type="address", address=address), **attributes))


def describe(domain: Domain) -> str:
    """Return the line of ``list -i`` on the remote display."""
    graphics = domain.devices.find("graphics")
    if graphics is None:
        return "mode=off"
    port = graphics.get("port", "-1")
    words = [
        f"mode={domain.setting('vnc-mode', 'auto')}",
        f"port={'auto' if port == '-1' else port}",
        f"address={domain.setting('vnc-address', '127.0.0.1')}",
    ]
    if domain.setting("vnc-password"):
        words.append("password=yes")
    return " ".join(words)


def capture(machine: Machine, target: Path | None) -> bytes:
    """Return what the machine shows as a PNG image, written to ``target`` too.

    Raises NotRunning, SystemFailure.
    """
    raw = machine.running()
    with translated(f"cannot capture the screen of {machine.label}"):
        stream = machine.hypervisor.raw.newStream()
        kind = raw.screenshot(stream, 0)
        parts: list[bytes] = []

        def take(_stream: object, data: bytes, _opaque: Any) -> int:
            parts.append(data)
            return len(data)

        stream.recvAll(take, None)
        stream.finish()
    if kind != "image/png":
        raise SystemFailure(f"the screen came as {kind}, not as PNG", hint="a newer QEMU has PNG")
    data = b"".join(parts)
    if target is not None:
        try:
            files.replace(target.absolute(), data, mode=0o600)
        except OSError as error:
            raise SystemFailure(
                f"cannot write {target}: {os.strerror(error.errno or 0)}"
            ) from error
    return data
