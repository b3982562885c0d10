"""Disk images: made, measured, converted and checked by qemu-img, which this module owns."""

from __future__ import annotations

import json
import os
import struct
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runtime.errors import InvalidValue, NoDiskSpace, SystemFailure, VzError
from vmm.daemon import find_program

#: docs/interop/qcow2.txt: magic, then at byte 24 the virtual size, big-endian.
_QCOW2_MAGIC = b"QFI\xfb"
SMALLEST = 1 << 20
LARGEST = 1 << 44
_SECTOR = 512
#: What "convert" accepts: QEMU's names by the usual suffixes.
FOREIGN = {
    ".vmdk": "vmdk", ".vhd": "vpc", ".vhdx": "vhdx", ".vdi": "vdi", ".hdd": "parallels",
    ".hds": "parallels", ".qcow2": "qcow2", ".img": "raw", ".raw": "raw",
}  # fmt: skip


class ImageBroken(VzError):
    """The disk image is damaged or of an unexpected format."""

    code = 35


@dataclass(frozen=True, slots=True)
class Image:
    """What qemu-img tells of an image; sizes in bytes."""

    path: Path
    format: str
    virtual_bytes: int
    actual_bytes: int
    backing: Path | None
    snapshots: tuple[str, ...]


def create(path: Path, size_bytes: int, *, plain: bool) -> None:
    """Make an empty image: raw and preallocated (``plain``) or growing; raises VzError.

    Nothing is left behind on failure.
    """
    check_size(size_bytes)
    try:
        if plain:
            _preallocate(path, size_bytes)
        else:
            run(
                [
                    "create",
                    "-q",
                    "-f",
                    "qcow2",
                    "-o",
                    "lazy_refcounts=on",
                    str(path),
                    str(size_bytes),
                ]
            )
            # A guest's data are nobody else's; libvirt hands the image to QEMU's account.
            path.chmod(0o600)
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def create_linked(path: Path, base: Path, base_format: str) -> None:
    """Make a growing image whose untouched blocks are those of ``base``; raises VzError."""
    try:
        run(["create", "-q", "-f", "qcow2", "-b", str(base), "-F", base_format, str(path)])
        path.chmod(0o600)
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def _preallocate(path: Path, size_bytes: int) -> None:
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(fd, 0, size_bytes)
        finally:
            os.close(fd)
    except OSError as error:
        if error.errno == 28:  # ENOSPC
            raise NoDiskSpace(
                f"no space for a plain disk of {size_bytes >> 20} MiB in {path.parent}",
                hint="an expanding disk grows as it is written",
            ) from error
        raise SystemFailure(f"cannot create {path}: {error.strerror}") from error


def info(path: Path, *, format: str | None = None) -> Image:
    """Return what an image is; raises ImageBroken, SystemFailure."""
    found = facts(path, format)
    backing = found.get("full-backing-filename") or found.get("backing-filename")
    return Image(
        path,
        found["format"],
        int(found["virtual-size"]),
        int(found.get("actual-size", 0)),
        Path(backing) if backing else None,
        tuple(snapshot["name"] for snapshot in found.get("snapshots", ())),
    )


def facts(path: Path, format: str | None = None) -> dict[str, Any]:
    """Return what qemu-img(1) info tells of an image, in its own words; raises ImageBroken."""
    words = ["info", "--output=json", "--force-share"]
    if format is not None:
        words += ["-f", format]
    return _json([*words, os.fspath(path)])


def virtual_bytes(path: Path | str) -> int | None:
    """Return the size the guest sees, from the file's head alone; None when it cannot be read."""
    try:
        with open(path, "rb") as file:
            head = file.read(32)
            if head[:4] == _QCOW2_MAGIC:
                size: int = struct.unpack(">Q", head[24:32])[0]
                return size
            return file.seek(0, os.SEEK_END)
    except OSError:
        return None


def backing_file(path: Path) -> Path | None:
    """Return the image a qcow2 image is based on, from its head; None when it stands alone."""
    try:
        with open(path, "rb") as file:
            head = file.read(20)
            if head[:4] != _QCOW2_MAGIC:
                return None
            # docs/interop/qcow2.txt: offset and length of the backing file's name
            offset, length = struct.unpack(">QI", head[8:20])
            if not offset or length > 1023:
                return None
            file.seek(offset)
            name = os.fsdecode(file.read(length))
    except OSError:
        return None
    return path.parent / name


def is_qcow2(path: Path) -> bool:
    """Whether a file begins like a qcow2 image; raises OSError."""
    with open(path, "rb") as file:
        return file.read(4) == _QCOW2_MAGIC


def check(path: Path, format: str) -> None:
    """Check an image's own structure; raises ImageBroken."""
    if format != "qcow2":
        return
    done = _call(["check", "-q", "--output=json", "-f", format, os.fspath(path)])
    # qemu-img(1): 0 good, 2 corrupt, 3 leaked clusters (harmless)
    if done.returncode not in (0, 3):
        raise ImageBroken(
            f"{path} is corrupt: {_reason(done)}", hint=f"qemu-img check -r all {path}"
        )


def repair(path: Path) -> None:
    """Repair a qcow2 image's own structure; raises ImageBroken when that is beyond repair."""
    _call(["check", "-q", "-r", "all", "-f", "qcow2", os.fspath(path)])
    # Its status tells what was found before the repair: only a second look tells what is left.
    check(path, "qcow2")


def convert(
    source: Path,
    target: Path,
    *,
    to: str,
    source_format: str | None = None,
    progress: Callable[[float], None] | None = None,
) -> None:
    """Write the content of ``source`` as a ``to`` image (qcow2, raw) at ``target``.

    ``progress`` is told the percentage. Raises ImageBroken, NoDiskSpace, SystemFailure; nothing is
    left behind then.
    """
    words = ["convert", "-p", "-O", to]
    if source_format is not None:
        words += ["-f", source_format]
    if to == "raw":
        words += ["-S", "0", "-o", "preallocation=falloc"]
    try:
        run([*words, os.fspath(source), os.fspath(target)], progress=progress)
        target.chmod(0o600)
    except BaseException:
        target.unlink(missing_ok=True)
        raise


def drop_snapshot(path: Path, name: str) -> None:
    """Remove an internal snapshot of an image nobody uses; raises ImageBroken, ImageBusy."""
    run(["snapshot", "-q", "-d", name, os.fspath(path)])


def commit(overlay: Path) -> None:
    """Write what a linked image holds into the one below it; raises SystemFailure, NoDiskSpace."""
    run(["commit", "-q", "-f", "qcow2", "-d", os.fspath(overlay)])


def resize(path: Path, size_bytes: int, format: str, *, shrink: bool = False) -> None:
    """Change the size the guest sees; raises ImageBroken, SystemFailure."""
    check_size(size_bytes)
    words = ["resize", "-q", "-f", format]
    if shrink:
        words.append("--shrink")
    run([*words, os.fspath(path), str(size_bytes)])


def check_size(size_bytes: int) -> None:
    """Raise InvalidValue when no disk has such a size."""
    if not SMALLEST <= size_bytes <= LARGEST:
        raise InvalidValue(
            f"a disk has 1 MiB to 16 TiB, not {size_bytes} bytes", hint="--size counts in megabytes"
        )
    if size_bytes % _SECTOR:
        raise InvalidValue(f"the size of a disk is a multiple of 512 bytes: {size_bytes}")


def run(words: Sequence[str], *, progress: Callable[[float], None] | None = None) -> None:
    """Run qemu-img; raises NoKernelSupport (missing), NoDiskSpace, ImageBroken, SystemFailure."""
    if progress is None:
        done = _call(words)
        if done.returncode != 0:
            raise _error(done)
        return
    argv = [find_program("qemu-img"), *words]
    with subprocess.Popen(
        argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=_environment()
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        seen = b""
        # "    (12.34/100%)\r": qemu-img(1), -p
        while chunk := os.read(process.stdout.fileno(), 256):
            seen = (seen + chunk)[-64:]
            number = seen.rpartition(b"(")[2].partition(b"/")[0]
            if number.replace(b".", b"").isdigit():
                progress(float(number))
        errors = process.stderr.read().decode("utf-8", "replace")
        code = process.wait()
    if code != 0:
        raise _error(subprocess.CompletedProcess(argv, code, "", errors))


def _json(words: Sequence[str]) -> dict[str, Any]:
    done = _call(words)
    if done.returncode != 0:
        raise _error(done)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def _environment() -> dict[str, str]:
    return {**os.environ, "LC_ALL": "C"}


def _call(words: Sequence[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [find_program("qemu-img"), *words],
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
        env=_environment(),
    )


def _reason(done: subprocess.CompletedProcess[str]) -> str:
    lines = done.stderr.strip().splitlines() or done.stdout.strip().splitlines()
    return (lines[-1] if lines else f"status {done.returncode}").removeprefix("qemu-img: ")


def _error(done: subprocess.CompletedProcess[str]) -> VzError:
    reason = _reason(done)
    if "No space left" in reason:
        return NoDiskSpace(f"qemu-img: {reason}")
    if "lock" in reason and "Failed to get" in done.stderr:
        return ImageBusy(f"the image is in use: {reason}")
    if any(word in reason.lower() for word in ("corrupt", "invalid", "not in", "could not open")):
        return ImageBroken(f"qemu-img: {reason}")
    return SystemFailure(f"qemu-img: {reason}")


class ImageBusy(VzError):
    """The disk image is in use."""

    code = 52
