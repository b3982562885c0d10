"""Hardware addresses of adapters."""

from __future__ import annotations

import re
import secrets

from runtime.errors import InvalidValue


def new() -> str:
    """Return a fresh hardware address in the range of the product (00:1C:42, Parallels)."""
    tail = secrets.token_bytes(3)
    return "00:1c:42:" + ":".join(f"{byte:02x}" for byte in tail)


def check(text: str) -> str:
    """Return a hardware address as libvirt writes it; raises InvalidValue."""
    digits = re.sub(r"[:.-]", "", text).lower()
    if not re.fullmatch(r"[0-9a-f]{12}", digits):
        raise InvalidValue(f"not a hardware address: {text!r}", hint="write 00:1C:42:xx:xx:xx")
    if int(digits[:2], 16) & 1 or digits == "0" * 12:
        raise InvalidValue(f"not the address of one adapter: {text!r}")
    return ":".join(digits[i : i + 2] for i in range(0, 12, 2))
