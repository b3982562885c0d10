"""Files of the root directory which are not on disk: the quota, for those inside, and links.

    /.vzfs-quota         0600 root: read all of it, write limits (see ``quotacontrol``)
    /.vzfs-quota.uUID    0400, owned by the user: what concerns that user
    /.vzfs-quota.gGID    0440, of the group: what concerns that group
    /.vzfs-links         0600 root: orders of the host (see ``relinking``)

They are found by name and not listed. Who may read which is left to the kernel, which checks mode
and owner of every file (``default_permissions``) in the container's own ids.
"""

from __future__ import annotations

import errno
import os
import re
import stat
import time

from vzfs import quotacontrol
from vzfs.accounting import Accounting
from vzfs.attributes import Change
from vzfs.files import Files
from vzfs.inodes import SLOT_SHIFT, UNCOMPUTED, Directory, File, Node
from vzfs.ledger import Ledger
from vzfs.naming import SELF, Caller
from vzfs.overlay import failure
from vzfs.quotalayout import GROUP, USER

PREFIX = b".vzfs-"
_NAME = re.compile(rb"\.vzfs-(?:quota(?:\.([ug])(0|[1-9]\d{0,9}))?|(links))")
#: What a control file is of, besides USER and GROUP: everything; magic links.
_ALL, _LINKS = 2, 3
#: Node ids of control files: of the slot without computed ids (see ``inodes``), above all of its
#: sequence numbers.
_ID = UNCOMPUTED << SLOT_SHIFT | 1 << (SLOT_SHIFT - 1)
_NUMBER = (1 << 35) - 1
_INO = 0x7E << 56


class Control(Node):
    """A control file."""

    __slots__ = ("backing", "ident", "kind", "of", "opens")

    def __init__(self, of: int, ident: int, parent: Directory, name: bytes) -> None:
        """Describe the file of a user (``of`` 0), group (1), of everything (2), of links (3)."""
        number = of << 33 | ident
        super().__init__(_ID | number, _INO | number, parent, name)
        self.of = of
        self.ident = ident
        #: Not a regular file of the private area: nothing to pass through.
        self.kind = 0
        self.backing = 0
        self.opens = 0

    @property
    def links(self) -> bool:
        """Whether it takes orders about links."""
        return self.of == _LINKS


class Controlled(Files):
    """The operations, and the control files beside them."""

    accounting: Accounting | None = None
    _books: Ledger | None = None
    _with_control = False
    #: What an order of the host begins with; empty: none is taken.
    token = b""

    def lookup(self, parent: Directory, name: bytes) -> tuple[Node, os.stat_result]:
        """Return what ``name`` leads to."""
        if parent is self.root and name.startswith(PREFIX):
            node = self.control_file(name)
            if node is not None:
                return node, self._status(node)
        return super().lookup(parent, name)

    def control_file(self, name: bytes) -> Control | None:
        """Return the control file of that name, entered in the table; None when there is none."""
        match = _NAME.fullmatch(name)
        if match is None or not self._has(match):
            return None
        of = USER if match[1] == b"u" else GROUP if match[1] else _LINKS if match[3] else _ALL
        ident = int(match[2] or 0)
        if ident >= 2**32 - 1:
            return None
        if not self._with_control:
            # Only from the first control file on does every stat ask whether it is of one.
            self._with_control = True
            self.stat = self._stat_any  # type: ignore[method-assign]  # see above
        made = Control(of, ident, self.root, name)
        found = self.table.nodes.get(made.nid)
        if isinstance(found, Control):
            return found
        self.table.add(made)
        return made

    def _has(self, match: re.Match[bytes]) -> bool:
        return bool(self.token) if match[3] else self._books is not None

    def _status(self, node: Control) -> os.stat_result:
        mode = stat.S_IFREG | (0o400, 0o440, 0o600, 0o600)[node.of]
        uid = node.ident if node.of == USER else 0
        gid = node.ident if node.of == GROUP else 0
        now = time.time_ns()
        more = {"st_blocks": 0, "st_blksize": 4096, "st_rdev": 0}
        times = {"st_atime_ns": now, "st_mtime_ns": now, "st_ctime_ns": now}
        seconds = (now // 10**9,) * 3
        shown = (mode, node.ino, 0, 1, uid, gid, 0, *seconds)
        return os.stat_result(shown, {**more, **times})

    def _stat_any(self, node: Node) -> os.stat_result:
        return self._status(node) if isinstance(node, Control) else super().stat(node)

    def path(self, node: Node) -> bytes:
        """Return a path to the object; a control file has none, and nothing that needs one."""
        if isinstance(node, Control):
            raise failure(errno.EOPNOTSUPP)
        return super().path(node)

    def setattr(self, node: Node, change: Change, caller: Caller = SELF) -> os.stat_result:
        """Change attributes; those of control files stay as they are."""
        if isinstance(node, Control):
            return self._status(node)
        return super().setattr(node, change, caller)

    def getxattr(self, node: Node, name: bytes) -> bytes:
        """Return an extended attribute; a control file has none, no ACL in particular."""
        if isinstance(node, Control):
            raise failure(errno.ENODATA)
        return super().getxattr(node, name)

    def listxattr(self, node: Node, caller: Caller = SELF) -> bytes:
        """Return the names of the extended attributes."""
        return b"" if isinstance(node, Control) else super().listxattr(node, caller)

    def unlink(self, parent: Directory, name: bytes) -> None:
        """Remove a file's name."""
        self._refuse(parent, name)
        super().unlink(parent, name)

    def rename(self, parent: Directory, name: bytes, to: Directory, new: bytes, flags: int) -> None:
        """Move a name."""
        self._refuse(parent, name)
        self._refuse(to, new)
        super().rename(parent, name, to, new, flags)

    def _refuse(self, parent: Directory, name: bytes) -> None:
        if parent is self.root and (match := _NAME.fullmatch(name)) and self._has(match):
            raise failure(errno.EPERM)

    # contents

    def prepare_open(self, node: Node, flags: int, caller: Caller = SELF) -> File:
        """Make a file ready for open(2)."""
        if isinstance(node, Control):
            return node  # type: ignore[return-value]  # has what the transports ask of a file
        return super().prepare_open(node, flags, caller)

    def opened(self, node: File, flags: int) -> None:
        """Count an open file."""
        if node.kind:
            super().opened(node, flags)

    def read(self, node: Node, offset: int, size: int) -> bytes:
        """Return up to ``size`` bytes."""
        if not isinstance(node, Control):
            return super().read(node, offset, size)
        books = self._books
        if node.links or books is None or self.accounting is None:
            raise failure(errno.EIO)
        if offset == 0:
            self.accounting.flush()
        if node.of == _ALL:
            text = quotacontrol.report(books)
        else:
            text = quotacontrol.report_one(books, node.of, node.ident)
        return text.encode()[offset : offset + size]

    def write(self, node: Node, offset: int, data: bytes | memoryview) -> int:
        """Write ``data``; to the control file whole lines of orders."""
        if not isinstance(node, Control):
            return super().write(node, offset, data)
        if self._books is None or node.of != _ALL:
            raise failure(errno.EIO)
        try:
            text = bytes(data).decode("ascii")
        except UnicodeDecodeError:
            raise failure(errno.EINVAL) from None
        quotacontrol.obey(self._books, text)
        return len(data)

    def fsync(self, node: Node, *, data_only: bool) -> None:
        """Make a file durable."""
        if not isinstance(node, Control):
            super().fsync(node, data_only=data_only)
