"""Stand-alone use: ``python -m vzfs mount --lower A:B --upper P --mount M``."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from vzfs import server, syscalls
from vzfs.options import Options

#: Further sections of the manual page: heading, paragraphs.
SECTIONS = (
    (
        "EXAMPLES",
        (
            "See a tree, change it, and find what was changed in P:",
            "python -m vzfs mount --lower /usr/share/doc --upper P --mount M",
            "With at most 1 GiB and 10,000 files of its own, a tenth more for a day:",
            (
                "python -m vzfs mount --lower A:B --upper P --mount M --quota Q"
                " --space 1048576:1153433 --inodes 10000:11000 --grace 86400"
            ),
            "Look at the usage, change a limit, unmount:",
            "vzquota show 1 -c Q; vzquota setlimit 1 -c Q -B 2000000; python -m vzfs umount M",
        ),
    ),
    (
        "FILES",
        (
            "P.work/session: what server and kernel agreed on, and which transport is used.",
            "P.work/log: what the server in the background has to say, which should be nothing.",
            "P.work/lock: held while the area is mounted or repaired.",
            "M/.vzfs-quota: the quota as seen from inside, with --quota.",
        ),
    ),
    ("EXIT STATUS", ("0: done.", "1: the system refused; one line says what.", "2: bad options.")),
    ("SEE ALSO", ("vzfsutil(8), vzquota(8), vzcache(8), fuse(4)",)),
)


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line, which the manual page is made from."""
    parser = argparse.ArgumentParser(
        prog="python -m vzfs",
        description=(
            "Mount a copy-on-write view of read-only directories: what is changed below the mount"
            " point goes to a private directory, what is not is shared with every other mount of"
            " the same directories, on disk and in memory. The private directory has the form of"
            " overlayfs."
        ),
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    mount = verbs.add_parser("mount", help="mount and serve until unmounted")
    mount.add_argument(
        "--lower",
        required=True,
        help="read-only directories, top-most first, separated by colons",
        metavar="DIR[:DIR…]",
    )
    mount.add_argument("--upper", required=True, type=Path, help="private directory", metavar="DIR")
    mount.add_argument("--mount", required=True, type=Path, help="mount point", metavar="DIR")
    mount.add_argument(
        "--work",
        type=Path,
        help="work area on the file system of --upper (default: its name with .work added)",
        metavar="DIR",
    )
    mount.add_argument(
        "--transport",
        choices=("auto", "kernel", "pyfuse3"),
        default="auto",
        help="how requests arrive: by our own reading of the kernel's protocol, with passthrough"
        " where there is any, or through the portable library (default: auto, which is kernel)",
    )
    mount.add_argument(
        "--no-passthrough",
        action="store_true",
        help="let all data pass the server; pages are then not shared",
    )
    mount.add_argument(
        "--template-area",
        type=Path,
        help="where magic links (symbolic links to ////path) lead; without it they are ordinary",
        metavar="DIR",
    )
    mount.add_argument(
        "--magic-links", action="store_true", help="users of the mount may make magic links"
    )
    mount.add_argument(
        "--no-sync-copies",
        action="store_true",
        help="do not wait for the disk when a file is copied up: faster, but a power cut may leave"
        " a changed file without its data",
    )
    mount.add_argument(
        "--timeout",
        type=float,
        default=3600.0,
        help="seconds the kernel trusts names and attributes (default: 3600)",
        metavar="S",
    )
    mount.add_argument(
        "--quota", type=Path, help="keep a disk quota in this file (made if needed)", metavar="FILE"
    )
    mount.add_argument(
        "--space", type=_limits, help="soft and hard limit of space in KiB", metavar="S[:H]"
    )
    mount.add_argument(
        "--inodes", type=_limits, help="soft and hard limit of inodes", metavar="S[:H]"
    )
    mount.add_argument(
        "--grace",
        type=int,
        help="seconds usage may stay above a soft limit (default: a week)",
        metavar="N",
    )
    mount.add_argument(
        "--owners",
        type=int,
        help="how many users and groups are accounted, too (default: none)",
        metavar="N",
    )
    mount.add_argument("-f", "--foreground", action="store_true", help="stay in the foreground")
    umount = verbs.add_parser("umount", help="unmount")
    umount.add_argument("target", type=Path, metavar="DIR")
    verbs.add_parser("probe", help="say what this kernel offers")
    return parser


def _limits(text: str) -> tuple[int, int]:
    """Return the soft and the hard limit of S[:H]; raises ArgumentTypeError."""
    soft, _, hard = text.partition(":")
    try:
        found = int(soft), int(hard or soft)
    except ValueError:
        found = -1, -1
    if not 0 <= found[0] <= found[1]:
        wanted = "give a number, or SOFT:HARD with the soft limit not above the hard one"
        raise argparse.ArgumentTypeError(f"{text!r}: {wanted}")
    return found


def _prepare_quota(args: argparse.Namespace, options: Options) -> None:
    """Make the quota file, or bring it up to the options; raises QuotaError.

    A file which is something else is not overwritten.
    """
    from vzfs import quota
    from vzfs.quotaerror import open_file

    space, inodes = args.space or (None, None), args.inodes or (None, None)
    fresh = not args.quota.exists()
    if not fresh:
        open_file(args.quota).close()
    grace = 604800 if args.grace is None and fresh else args.grace
    changes = quota.Changes(
        block_soft=space[0],
        block_hard=space[1],
        inode_soft=inodes[0],
        inode_hard=inodes[1],
        block_expire=grace,
        inode_expire=grace,
        sub_quotas=None if args.owners is None else int(args.owners > 0),
        ugid_limit=args.owners,
    )
    index = options.work_area / "index"
    quota.prepare(args.quota.absolute(), options.upper, changes, index=index)


def _mount(args: argparse.Namespace) -> int:
    limits = {"--space": args.space, "--inodes": args.inodes, "--grace": args.grace}
    given = [name for name, value in {**limits, "--owners": args.owners}.items() if value is not None]  # fmt: skip
    if given and not args.quota:
        print(f"vzfs: {given[0]} needs --quota FILE, where the usage is kept", file=sys.stderr)
        return 2
    options = Options(
        lower=tuple(Path(part).absolute() for part in args.lower.split(":") if part),
        upper=args.upper.absolute(),
        work=args.work.absolute()
        if args.work
        else args.upper.absolute().with_name(args.upper.name + ".work"),
        transport=args.transport,
        passthrough=not args.no_passthrough,
        template_area=args.template_area.absolute() if args.template_area else None,
        magic_links=args.magic_links,
        sync_copies=not args.no_sync_copies,
        timeout_s=args.timeout,
        ledger=args.quota.absolute() if args.quota else None,
    )
    for path in (*options.lower, options.upper, args.mount):
        if not path.is_dir():
            print(f"vzfs: {path}: not a directory", file=sys.stderr)
            return 2
    if args.quota:
        from vzfs.quotaerror import QuotaError

        try:
            _prepare_quota(args, options)
        except QuotaError as error:
            print(f"vzfs: {error.message}", file=sys.stderr)
            return 2
    fd = server.open_device()
    server.mount(fd, options, args.mount)
    try:
        if args.foreground:
            server.serve(fd, options)
            return 0
        return _serve_detached(fd, options, args.mount)
    except OSError:
        syscalls.umount(args.mount, syscalls.MNT_DETACH)
        raise


def _serve_detached(fd: int, options: Options, target: Path) -> int:
    """Serve in a process of its own; return once requests are answered.

    If it cannot serve, it says why, and nothing stays mounted. Afterwards it has none of the
    caller's descriptors: who reads the command's output is not kept waiting.
    """
    reader, writer = os.pipe()
    if os.fork():
        os.close(writer)
        os.close(fd)
        if os.read(reader, 1):
            return 0
        syscalls.umount(target, syscalls.MNT_DETACH)
        return 1
    os.close(reader)
    os.setsid()
    status = 1
    try:
        null = os.open("/dev/null", os.O_RDWR)
        os.dup2(null, 0)
        os.dup2(null, 1)

        def ready() -> None:
            log = options.work_area / "log"
            fd = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o600)
            os.dup2(fd, 2)
            os.close(fd)
            os.write(writer, b"+")
            os.close(writer)

        server.serve(fd, options, ready=ready)
        status = 0
    except OSError as error:
        _complain(error)
    finally:
        os._exit(status)


def _complain(error: OSError) -> None:
    where = error.filename.decode() if isinstance(error.filename, bytes) else error.filename
    print(f"vzfs: {where + ': ' if where else ''}{error.strerror}", file=sys.stderr)


def main(argv: list[str] | None = None) -> int:
    """Run a verb; returns the exit status."""
    args = parser().parse_args(argv)
    try:
        if args.verb == "mount":
            return _mount(args)
        if args.verb == "umount":
            syscalls.umount(args.target)
            return 0
        found = server.probe()
        print(f"kernel       {found.kernel}")
        print(f"fuse         {'yes' if found.fuse else 'no'}")
        print(f"passthrough  {'yes' if found.passthrough else 'no'}")
        print(f"idmap        {'yes' if found.idmap else 'no'}")
        if found.remark:
            print(found.remark)
    except OSError as error:
        _complain(error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
