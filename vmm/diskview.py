"""The content of an image as a plain file: raw images are one, others are shown by QEMU's export.

qemu-storage-daemon(1) serves the image as one file by FUSE; neither NBD nor a kernel module is
needed, and the image stays locked against machines while it is open.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from runtime import files, mounts
from runtime.errors import ImageMountFailed, ImageUmountFailed, VzError
from runtime.state import start_ticks
from vmm import loopdevice
from vmm.daemon import find_program
from vzfs import syscalls

_START_S = 15.0
_STOP_S = 60.0
_SUFFIX = ".view"
#: How directories begin in which one command works.
SCRATCH = "vzdisk-"
_POLL_S = 0.02


@contextmanager
def opened(image: Path, format: str, scratch: Path, *, writable: bool = False) -> Iterator[Path]:
    """Give a file with the content of ``image``; raises ImageMountFailed.

    ``scratch`` is a directory of the caller's for the file to appear in; ``sweep`` finds it there.
    """
    if format == "raw":
        yield image
        return
    view = start(image, format, scratch, writable=writable)
    try:
        yield view
    finally:
        stop(view)


def start(image: Path, format: str, scratch: Path, *, writable: bool) -> Path:
    """Serve ``image`` as a file in ``scratch`` until ``stop``, and return the file."""
    scratch.mkdir(parents=True, exist_ok=True)
    view = scratch / f"{image.name}{_SUFFIX}"
    view.touch(mode=0o600)
    read_only = "off" if writable else "on"
    argv = [
        find_program("qemu-storage-daemon"),
        "--blockdev",
        f"driver=file,node-name=file,discard=unmap,read-only={read_only},filename={_escaped(image)}",
        "--blockdev", f"driver={format},node-name=disk,discard=unmap,read-only={read_only},file=file",
        "--export",
        _export(view, writable=writable),
    ]  # fmt: skip
    process = subprocess.Popen(
        argv,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
        env={**os.environ, "LC_ALL": "C"},
    )
    assert process.stderr is not None
    deadline = time.monotonic() + _START_S
    size = 0
    while size == 0:
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            lines = process.stderr.read().decode("utf-8", "replace").strip().splitlines()
            view.unlink(missing_ok=True)
            raise ImageMountFailed(
                f"cannot open {image}: {lines[-1] if lines else 'no answer'}",
                hint="is it used by a machine, or damaged? qemu-img check tells",
            )
        time.sleep(_POLL_S)
        size = view.stat().st_size
    process.stderr.close()
    # It may outlive us, as the mount does: no warning about a child that was not waited for.
    process.returncode = 0
    return view


def stop(view: Path) -> None:
    """End what serves ``view`` after everything written has reached the image.

    Raises ImageUmountFailed when it does not end.
    """
    pids = _servers(view)
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + _STOP_S
    while any(start_ticks(pid) is not None for pid in pids):
        if time.monotonic() > deadline:
            raise ImageUmountFailed(f"{view} is in use", hint="close what is open in it")
        time.sleep(_POLL_S)
        for pid in pids:
            with suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)
    with suppress(OSError):
        # What a server leaves that was killed.
        syscalls.umount(view, syscalls.MNT_DETACH)
    view.unlink(missing_ok=True)


def _servers(view: Path) -> list[int]:
    """Return the processes that serve ``view``, or are about to."""
    found = []
    export = os.fsencode(f"mountpoint={_escaped(view)},")
    for entry in os.listdir("/proc"):
        if entry.isdecimal():
            with suppress(OSError), open(f"/proc/{entry}/cmdline", "rb") as file:
                words = file.read()
                if export in words and b"qemu-storage-daemon" in words.partition(b"\0")[0]:
                    found.append(int(entry))
    return found


def sweep(scratch: Path, images: Iterable[Path]) -> None:
    """End what a killed command left at ``images`` and in ``scratch``, as the only user of both.

    What it had begun to do to a file system is waited for: a half resized one is damaged. Raises
    ImageBusy when that takes long, ImageUmountFailed.
    """
    ours = {os.fspath(image) for image in images}
    deadline = time.monotonic() + _STOP_S
    while loops := [
        device
        for device, file in loopdevice.backings().items()
        if (file in ours or Path(file).is_relative_to(scratch))
        # What is mounted elsewhere is somebody else's.
        and all(Path(point).is_relative_to(scratch) for point in mounts.points_of((device,)))
    ]:
        for point in mounts.points_of(loops):
            with suppress(OSError):
                syscalls.umount(point)
        if time.monotonic() > deadline:
            raise ImageBusy(
                f"a command that was killed has left work at {', '.join(loops)}",
                hint="wait until resize2fs or e2fsck has finished",
            )
        time.sleep(_POLL_S)
    for view in scratch.rglob(f"*{_SUFFIX}"):
        stop(view)
    for left in scratch.glob(f"{SCRATCH}*"):
        files.remove_tree(left)


class ImageBusy(VzError):
    """The image is still being worked on."""

    code = 41


def _export(view: Path, *, writable: bool) -> str:
    access = "on" if writable else "off"
    return (
        f"type=fuse,id=view,node-name=disk,mountpoint={_escaped(view)},"
        f"writable={access},growable=off,allow-other=off"
    )


def _escaped(path: Path) -> str:
    """Return a path for QEMU's option syntax, in which a comma is doubled."""
    return os.fspath(path).replace(",", ",,")
