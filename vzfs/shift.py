"""Ids of a container on a mount that the kernel cannot shift itself.

Idmapped mounts of FUSE need Linux 6.12 (FUSE_ALLOW_IDMAP). On older kernels the server does what
they do: ids on disk are the container's own, 0…65535; what the kernel is told, and what it asks
for, is ``first`` higher. POSIX ACLs and file capabilities carry ids inside their values
(linux/posix_acl_xattr.h, linux/capability.h) and are translated with them.
"""

from __future__ import annotations

import struct

COUNT = 65536
#: overflowuid: what an id from outside the range becomes, on either side.
NOBODY = 65534
#: The header's "not told" (fuse.h, FUSE_ALLOW_IDMAP).
_UNKNOWN = 0xFFFFFFFF

_ACLS = (b"system.posix_acl_access", b"system.posix_acl_default")
_CAPABILITY = b"security.capability"
_ACL_ENTRY = struct.Struct("<HHI")
_ACL_NAMED = (0x02, 0x08)  # ACL_USER, ACL_GROUP: the entries with an id
_CAP_REVISION = 0xFF000000
_CAP_V2 = 0x02000000
_CAP_V3 = 0x03000000
_CAP_V2_SIZE = 20


class Shift:
    """Translates between ids on disk and ids of the kernel's side."""

    __slots__ = ("first",)

    def __init__(self, first: int) -> None:
        """Shift by ``first``."""
        self.first = first

    def outward(self, number: int) -> int:
        """Return what the kernel is told for an id on disk."""
        return self.first + (number if number < COUNT else NOBODY)

    def inward(self, number: int) -> int:
        """Return the id on disk for one of the kernel's; the host's root is the container's."""
        if self.first <= number < self.first + COUNT:
            return number - self.first
        return number if number in (0, _UNKNOWN) else NOBODY

    def value_outward(self, name: bytes, value: bytes) -> bytes:
        """Return an extended attribute as the kernel takes it."""
        if name in _ACLS:
            return self._acl(value, outward=True)
        if name == _CAPABILITY and len(value) == _CAP_V2_SIZE:
            (magic,) = struct.unpack_from("<I", value)
            if magic & _CAP_REVISION == _CAP_V2:
                # Valid for the root of this container only, as if it had set them itself.
                head = struct.pack("<I", magic & ~_CAP_REVISION | _CAP_V3)
                return head + value[4:] + struct.pack("<I", self.first)
        return value

    def value_inward(self, name: bytes, value: bytes) -> bytes:
        """Return an extended attribute as it is stored."""
        if name in _ACLS:
            return self._acl(value, outward=False)
        if name == _CAPABILITY and len(value) == _CAP_V2_SIZE + 4:
            magic, root = (
                struct.unpack_from("<I", value)[0],
                struct.unpack_from("<I", value, _CAP_V2_SIZE)[0],
            )
            if magic & _CAP_REVISION == _CAP_V3 and root == self.first:
                head = struct.pack("<I", magic & ~_CAP_REVISION | _CAP_V2)
                return head + value[4:_CAP_V2_SIZE]
        return value

    def _acl(self, value: bytes, *, outward: bool) -> bytes:
        if len(value) < 4 or (len(value) - 4) % _ACL_ENTRY.size:
            return value
        translate = self.outward if outward else self.inward
        parts = [value[:4]]
        for tag, rights, number in _ACL_ENTRY.iter_unpack(value[4:]):
            if tag in _ACL_NAMED:
                number = translate(number)  # noqa: PLW2901 # what is packed again
            parts.append(_ACL_ENTRY.pack(tag, rights, number))
        return b"".join(parts)
