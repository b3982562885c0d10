"""The content of an image as a plain file: raw images are one, others are shown by QEMU's export.

qemu-storage-daemon(1) serves the image as one file by FUSE; neither NBD nor a kernel module is
needed, and the image stays locked against machines while it is open.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from runtime.errors import ImageMountFailed
from runtime.state import start_ticks
from vmm.daemon import find_program

_START_S = 15.0
_POLL_S = 0.02


@contextmanager
def opened(image: Path, format: str, scratch: Path, *, writable: bool = False) -> Iterator[Path]:
    """Give a file with the content of ``image``; raises ImageMountFailed.

    ``scratch`` is a directory of the caller's for the file to appear in.
    """
    if format == "raw":
        yield image
        return
    view, pid = start(image, format, scratch, writable=writable)
    try:
        yield view
    finally:
        stop(pid, view)


def start(image: Path, format: str, scratch: Path, *, writable: bool) -> tuple[Path, int]:
    """Serve ``image`` as a file in ``scratch``; return the file and the server's process id."""
    scratch.mkdir(parents=True, exist_ok=True)
    view = scratch / f"{image.name}.view"
    view.touch(mode=0o600)
    read_only = "off" if writable else "on"
    argv = [
        find_program("qemu-storage-daemon"),
        "--blockdev",
        f"driver=file,node-name=file,discard=unmap,read-only={read_only},filename={_escaped(image)}",
        "--blockdev", f"driver={format},node-name=disk,discard=unmap,read-only={read_only},file=file",
        "--export",
        _export(view, writable=writable),
        "--pidfile", os.fspath(scratch / f"{image.name}.pid"),
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
    pid = process.pid
    # It may outlive us, as the mount does: no warning about a child that was not waited for.
    process.returncode = 0
    return view, pid


def stop(pid: int, view: Path) -> None:
    """End the server of ``view`` after everything written has reached the image."""
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + _START_S
    while start_ticks(pid) is not None and time.monotonic() < deadline:
        time.sleep(_POLL_S)
    with suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)
    view.unlink(missing_ok=True)
    view.with_name(view.name.removesuffix(".view") + ".pid").unlink(missing_ok=True)


def _export(view: Path, *, writable: bool) -> str:
    access = "on" if writable else "off"
    return (
        f"type=fuse,id=view,node-name=disk,mountpoint={_escaped(view)},"
        f"writable={access},growable=off,allow-other=off"
    )


def _escaped(path: Path) -> str:
    """Return a path for QEMU's option syntax, in which a comma is doubled."""
    return os.fspath(path).replace(",", ",,")
