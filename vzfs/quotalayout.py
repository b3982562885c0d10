"""The words of a quota file, each with its meaning, and the records they are read into.

A file is chunks of 64 KiB of little-endian 64-bit words. Chunk 0: the head (4096 bytes), then
charges. Further chunks begin with a word saying what they hold (charges or records), padded to
the size of one of these. See ``quotafile`` for who may write what.
"""

from __future__ import annotations

from dataclasses import dataclass, field

MAGIC = int.from_bytes(b"VZFSQUO1", "little")
VERSION = 1
CHUNK = 65536
WORDS = CHUNK // 8
#: No limit, where a comparison needs a number (blocks of 512 bytes, inodes).
ENDLESS = 1 << 62

# Words of the head (the first 4096 bytes of chunk 0).
W_MAGIC = 0  # "VZFSQUO1"
W_VERSION = 1  # format version, 1
W_BOOT = 2  # two words: boot id of the kernel under which the quota was turned on
W_FLAGS = 4  # F_… below
W_GENERATION = 5  # counts changes of limits; its lowest bit selects the bank
W_BUSY = 6  # 1 while an operation is between its charge and its end
W_BLOCKS = 7  # usage in blocks of 512 bytes (st_blocks)
W_INODES = 8  # usage in inodes
W_BTIME = 9  # end of the block grace period (seconds since 1970), 0: below the soft limit
W_ITIME = 10  # the same for inodes
W_OBJECTS = 11  # records of users and groups placed
W_CHUNKS = 12  # chunks of the file
W_EXCEEDED = 13  # 1 once an owner was refused because all records were taken
W_SERVER = 14  # process id of the server which attached last
W_TRANSPORT = 15  # how that server talks to the kernel: 0 unknown, 1 kernel, 2 pyfuse3
W_DRIFT = 16  # releases of more than was charged (each is a bug; the next start scans)
W_SCANNED = 17  # when the area was last scanned (seconds since 1970)
W_SCAN_US = 18  # how long that took, in microseconds
W_CHECKSUM = 19  # CRC-32 of the whole file (this word 0), valid while F_ON is clear
BANKS = (32, 64)  # two banks of limits
PATH = 256  # paths of the area and of the index beside it, each ended by NUL, 2048 bytes in all
PATH_BYTES = 2048

# Words of a bank, in the order of ``Limits``.
BANK_FIELDS = 16

F_ON = 1  # accounting is on (between "on" and "off")
F_ATTACHED = 2  # a server works on it, or died without having detached
F_DIRTY = 4  # usage is to be scanned before it is believed
F_UGID = 8  # users and groups are accounted (their usage is right when that of the container is)

# Records of users and groups: 16 words each, in chunks of their own (kind 2).
RECORD_WORDS = 16
R_KEY = 0  # 1<<40 | type<<32 | id; 0: free. type 0 user, 1 group
R_BLOCKS = 1
R_INODES = 2
R_BTIME = 3
R_ITIME = 4
R_SELECT = 5  # 0 or 1: which bank holds the limits
R_BANKS = (6, 10)  # block soft, block hard (KiB), inode soft, inode hard
R_CHANGED = 14  # when the limits were changed last (seconds since 1970)
R_VALID = 1 << 40

# Charges: 8 words each, in chunk 0 after the head and in chunks of kind 1. One stands for an
# inode whose blocks may change without passing through the server: what was charged for it, and a
# handle by which a later server finds it again.
CHARGE_WORDS = 8
C_INODE = 0  # inode number; 0: free
C_BLOCKS = 1  # blocks charged, in blocks of 512 bytes
C_OWNER = 2  # uid<<32 | gid to whom they are charged
C_FLAGS = 3  # C_ORPHAN: it has no name any more, its inode is still charged;
#              C_OPEN: somebody has it open for writing;
#              bits 8-15: length of the handle, bits 32-63: type of the handle
C_HANDLE = 4  # up to 32 bytes of file handle (name_to_handle_at(2))
C_ORPHAN = 1
C_OPEN = 2
HANDLE_MAX = 32

KIND_CHARGES = 1
KIND_RECORDS = 2
HEAD_WORDS = 512

USER = 0
GROUP = 1


@dataclass(slots=True)
class Limits:
    """Limits of the container; blocks in KiB, times in seconds, 0 meaning no limit."""

    block_soft: int = 0
    block_hard: int = 0
    inode_soft: int = 0
    inode_hard: int = 0
    #: Grace periods: 0 makes the soft limit a hard one.
    block_expire: int = 0
    inode_expire: int = 0
    #: 1: users and groups are accounted (needs ``ugid_limit`` too).
    sub_quotas: int = 0
    #: How many users and groups together are accounted.
    ugid_limit: int = 0
    user_block_expire: int = 604800
    user_inode_expire: int = 604800
    group_block_expire: int = 604800
    group_inode_expire: int = 604800
    #: When the limits were changed (seconds since 1970): where a grace period starts that the
    #: change itself made necessary.
    changed: int = 0

    @property
    def ugid_on(self) -> bool:
        """Whether users and groups are to be accounted."""
        return bool(self.sub_quotas and self.ugid_limit)

    def words(self) -> list[int]:
        """Return the words of a bank."""
        return [int(getattr(self, name)) for name in LIMIT_NAMES]


LIMIT_NAMES = tuple(Limits.__dataclass_fields__)


@dataclass(slots=True)
class Usage:
    """What is used, and since when too much; blocks of 512 bytes."""

    blocks: int = 0
    inodes: int = 0
    block_time: int = 0
    inode_time: int = 0


@dataclass(slots=True)
class Record:
    """A user or group: usage, and limits in KiB and inodes."""

    kind: int
    ident: int
    usage: Usage = field(default_factory=Usage)
    block_soft: int = 0
    block_hard: int = 0
    inode_soft: int = 0
    inode_hard: int = 0
    changed: int = 0

    @property
    def limited(self) -> bool:
        """Whether any limit is set."""
        return bool(self.block_soft or self.block_hard or self.inode_soft or self.inode_hard)
