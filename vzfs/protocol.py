"""The wire of /dev/fuse: opcodes, flags and structures of linux/fuse.h, protocol 7.45."""

from __future__ import annotations

import struct
from enum import IntEnum

ROOT_ID = 1
MAJOR = 7
#: The newest minor version this code was written for.
MINOR = 45


class Op(IntEnum):
    """enum fuse_opcode."""

    LOOKUP = 1
    FORGET = 2
    GETATTR = 3
    SETATTR = 4
    READLINK = 5
    SYMLINK = 6
    MKNOD = 8
    MKDIR = 9
    UNLINK = 10
    RMDIR = 11
    RENAME = 12
    LINK = 13
    OPEN = 14
    READ = 15
    WRITE = 16
    STATFS = 17
    RELEASE = 18
    FSYNC = 20
    SETXATTR = 21
    GETXATTR = 22
    LISTXATTR = 23
    REMOVEXATTR = 24
    FLUSH = 25
    INIT = 26
    OPENDIR = 27
    READDIR = 28
    RELEASEDIR = 29
    FSYNCDIR = 30
    GETLK = 31
    SETLK = 32
    SETLKW = 33
    ACCESS = 34
    CREATE = 35
    INTERRUPT = 36
    BMAP = 37
    DESTROY = 38
    IOCTL = 39
    POLL = 40
    NOTIFY_REPLY = 41
    BATCH_FORGET = 42
    FALLOCATE = 43
    READDIRPLUS = 44
    RENAME2 = 45
    LSEEK = 46
    COPY_FILE_RANGE = 47
    SETUPMAPPING = 48
    REMOVEMAPPING = 49
    SYNCFS = 50
    TMPFILE = 51
    STATX = 52
    COPY_FILE_RANGE_64 = 53


# INIT flags; those above 1 << 31 travel in flags2 and need INIT_EXT
ASYNC_READ = 1 << 0
ATOMIC_O_TRUNC = 1 << 3
EXPORT_SUPPORT = 1 << 4
BIG_WRITES = 1 << 5
DONT_MASK = 1 << 6
DO_READDIRPLUS = 1 << 13
ASYNC_DIO = 1 << 15
PARALLEL_DIROPS = 1 << 18
POSIX_ACL = 1 << 20
MAX_PAGES = 1 << 22
CACHE_SYMLINKS = 1 << 23
NO_OPENDIR_SUPPORT = 1 << 24
EXPLICIT_INVAL_DATA = 1 << 25
HANDLE_KILLPRIV_V2 = 1 << 28
SETXATTR_EXT = 1 << 29
INIT_EXT = 1 << 30
DIRECT_IO_ALLOW_MMAP = 1 << 36
PASSTHROUGH = 1 << 37
HAS_RESEND = 1 << 39
ALLOW_IDMAP = 1 << 40

# open_out.open_flags
FOPEN_DIRECT_IO = 1
FOPEN_KEEP_CACHE = 2
FOPEN_CACHE_DIR = 8
FOPEN_NOFLUSH = 32
FOPEN_PASSTHROUGH = 128

# setattr_in.valid
FATTR_MODE = 1 << 0
FATTR_UID = 1 << 1
FATTR_GID = 1 << 2
FATTR_SIZE = 1 << 3
FATTR_ATIME = 1 << 4
FATTR_MTIME = 1 << 5
FATTR_FH = 1 << 6
FATTR_ATIME_NOW = 1 << 7
FATTR_MTIME_NOW = 1 << 8
FATTR_CTIME = 1 << 10
FATTR_KILL_SUIDGID = 1 << 11

SETXATTR_ACL_KILL_SGID = 1
WRITE_KILL_SUIDGID = 1 << 2
GETATTR_FH = 1
FSYNC_FDATASYNC = 1
IOCTL_DIR = 1 << 4

#: len, opcode, unique, nodeid, uid, gid, pid, total_extlen, padding
IN_HEADER = struct.Struct("<IIQQIIIHxx")
IN_SIZE = IN_HEADER.size
#: The first fields only, for the dispatcher: len, opcode, unique, nodeid
IN_START = struct.Struct("<IIQQ")
IN_CALLER = struct.Struct("<III")  # uid, gid, pid at offset 24
#: len, error, unique
OUT_HEADER = struct.Struct("<IiQ")
OUT_SIZE = OUT_HEADER.size

_ATTR = "QQQqqqIIIIIIIIII"
#: fuse_attr: ino size blocks atime mtime ctime ×nsec mode nlink uid gid rdev blksize flags
ATTR = struct.Struct("<" + _ATTR)
#: fuse_entry_out: nodeid generation entry_valid attr_valid entry_nsec attr_nsec attr
ENTRY_OUT = struct.Struct("<QQQQII" + _ATTR)
ENTRY_REPLY = struct.Struct("<IiQ" + "QQQQII" + _ATTR)
#: out header, attr_valid, attr_valid_nsec, dummy, attr
ATTR_REPLY = struct.Struct("<IiQ" + "QII" + _ATTR)
#: fh, open_flags, backing_id
OPEN_OUT = struct.Struct("<QIi")
OPEN_REPLY = struct.Struct("<IiQ" + "QIi")
CREATE_REPLY = struct.Struct("<IiQ" + "QQQQII" + _ATTR + "QIi")
WRITE_REPLY = struct.Struct("<IiQ" + "II")
#: blocks bfree bavail files ffree bsize namelen frsize padding spare[6]
STATFS_REPLY = struct.Struct("<IiQ" + "QQQQQIIII24x")
LSEEK_REPLY = struct.Struct("<IiQ" + "Q")
XATTR_SIZE_REPLY = struct.Struct("<IiQ" + "II")
#: result, flags, in_iovs, out_iovs
IOCTL_OUT = struct.Struct("<iIII")
#: attr_valid, attr_valid_nsec, flags, spare[2], then struct fuse_statx (256 bytes)
STATX_REPLY_HEAD = struct.Struct("<IiQ" + "QIIQQ")
#: fuse_statx: mask blksize attributes nlink uid gid mode ino size blocks attributes_mask,
#: atime btime ctime mtime (sec nsec), rdev and dev (major, minor), spare[14]
STATX_BODY = struct.Struct("<IIQIIIHxxQQQQ" + "qIxxxx" * 4 + "IIII" + "112x")

#: major minor max_readahead flags flags2
INIT_IN = struct.Struct("<IIIII")
#: major minor max_readahead flags max_background congestion_threshold max_write time_gran
#: max_pages map_alignment flags2 max_stack_depth request_timeout
INIT_OUT = struct.Struct("<IIIIHHIIHHIIH22x")
GETATTR_IN = struct.Struct("<IIQ")  # flags, dummy, fh
#: valid padding fh size lock_owner atime mtime ctime ×nsec mode unused4 uid gid unused5
SETATTR_IN = struct.Struct("<IIQQQqqqIIIIIIII")
MKNOD_IN = struct.Struct("<IIII")  # mode rdev umask padding
MKDIR_IN = struct.Struct("<II")  # mode umask
RENAME_IN = struct.Struct("<Q")  # newdir
RENAME2_IN = struct.Struct("<QII")  # newdir flags padding
LINK_IN = struct.Struct("<Q")  # oldnodeid
OPEN_IN = struct.Struct("<II")  # flags open_flags
CREATE_IN = struct.Struct("<IIII")  # flags mode umask open_flags
READ_IN = struct.Struct("<QQIIQII")  # fh offset size read_flags lock_owner flags padding
WRITE_IN = struct.Struct("<QQIIQII")  # fh offset size write_flags lock_owner flags padding
RELEASE_IN = struct.Struct("<QIIQ")  # fh flags release_flags lock_owner
FSYNC_IN = struct.Struct("<QII")  # fh fsync_flags padding
SETXATTR_IN = struct.Struct("<II")  # size flags; the extended form adds setxattr_flags padding
SETXATTR_EXT_IN = struct.Struct("<IIII")
GETXATTR_IN = struct.Struct("<II")  # size padding
FALLOCATE_IN = struct.Struct("<QQQII")  # fh offset length mode padding
LSEEK_IN = struct.Struct("<QQII")  # fh offset whence padding
#: fh_in off_in nodeid_out fh_out off_out len flags
COPY_FILE_RANGE_IN = struct.Struct("<QQQQQQQ")
IOCTL_IN = struct.Struct("<QIIQII")  # fh flags cmd arg in_size out_size
STATX_IN = struct.Struct("<IIQII")  # getattr_flags reserved fh sx_flags sx_mask
FORGET_ONE = struct.Struct("<QQ")  # nodeid nlookup
DIRENT = struct.Struct("<QQII")  # ino off namelen type

# ioctl(2) numbers of /dev/fuse
DEV_IOC_CLONE = 0x8004E500
DEV_IOC_BACKING_OPEN = 0x4010E501
DEV_IOC_BACKING_CLOSE = 0x4004E502
BACKING_MAP = struct.Struct("<iIQ")  # fd flags padding

# notifications, enum fuse_notify_code; written with unique 0 and the code as error
NOTIFY_INVAL_INODE = 2
NOTIFY_INVAL_ENTRY = 3
NOTIFY_RESEND = 7
NOTIFY_PRUNE = 9
#: Set in the unique number of a request which another server may have done already.
UNIQUE_RESEND = 1 << 63
#: The same for a message about its interruption (fs/fuse/dev.c, FUSE_INT_REQ_BIT).
INT_REQ_BIT = 1
INVAL_INODE = struct.Struct("<IiQ" + "Qqq")  # nodeid off len
INVAL_ENTRY = struct.Struct("<IiQ" + "QII")  # parent namelen flags
PRUNE = struct.Struct("<IiQ" + "IIQ")  # count padding spare
