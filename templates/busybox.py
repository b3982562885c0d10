"""The small template: one static program with all its names, an init, the files a login needs."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from runtime.paths import Paths
from runtime.progress import Progress
from templates.catalogue import Template
from templates.errors import ProgramFailed, TemplateBroken

#: This server's own static busybox, which the template is made of.
PROGRAM = Path("/bin/busybox")
_PT_INTERP = 3  # elf(5)
_DIRECTORIES = {
    "bin": 0o755,
    "dev": 0o755,
    "etc": 0o755,
    "etc/init.d": 0o755,
    "etc/network": 0o755,
    "etc/network/if-down.d": 0o755,
    "etc/network/if-post-down.d": 0o755,
    "etc/network/if-pre-up.d": 0o755,
    "etc/network/if-up.d": 0o755,
    "home": 0o755,
    "mnt": 0o755,
    "opt": 0o755,
    "proc": 0o555,
    "root": 0o700,
    "run": 0o755,
    "sbin": 0o755,
    "srv": 0o755,
    "sys": 0o555,
    "tmp": 0o1777,
    "usr": 0o755,
    "usr/bin": 0o755,
    "usr/sbin": 0o755,
    "usr/share": 0o755,
    "var": 0o755,
    "var/cache": 0o755,
    "var/lib": 0o755,
    "var/log": 0o755,
    "var/spool": 0o755,
    "var/spool/cron": 0o755,
    "var/spool/cron/crontabs": 0o700,
    "var/tmp": 0o1777,
}


def build(paths: Paths, template: Template, tree: Path, progress: Progress) -> None:
    """Make the tree from this server's static busybox and the recipe's ``files``.

    Raises ProgramFailed when the server has no static busybox, TemplateBroken.
    """
    if not is_static(PROGRAM):
        raise ProgramFailed(
            f"{PROGRAM} is no static program", hint="apt-get install busybox-static"
        )
    for name, mode in _DIRECTORIES.items():
        (tree / name).mkdir(exist_ok=True)
        os.chmod(tree / name, mode)
    shutil.copyfile(PROGRAM, tree / "bin/busybox")
    os.chmod(tree / "bin/busybox", 0o755)
    progress.amount(f"Building {template.name}", 0.5, 1)
    for applet in _applets():
        link = tree / applet
        if link.name != "busybox" and not os.path.lexists(link):
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(os.path.relpath("bin/busybox", os.path.dirname(applet)))
    (tree / "var/run").symlink_to("../run")
    (tree / "etc/mtab").symlink_to("../proc/mounts")
    text = template.recipe.text("files")
    if not text:
        raise TemplateBroken(f"{template.recipe.directory / 'files'} is missing")
    unpack(text + "\n", tree)
    progress.amount(f"Building {template.name}", 1, 1)


def unpack(text: str, tree: Path) -> None:
    """Write the files that ``text`` holds: each after a line ``==> PATH MODE``.

    Raises TemplateBroken for anything before the first such line, or a path that leaves ``tree``.
    """
    path: Path | None = None
    mode = 0
    lines: list[str] = []

    def finish() -> None:
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(lines), encoding="utf-8")
            os.chmod(path, mode)

    for line in text.splitlines(keepends=True):
        words = line.split()
        if words[:1] == ["==>"] and len(words) == 3:
            finish()
            name, mode = words[1], int(words[2], 8)
            if name.startswith("/") or ".." in name.split("/"):
                raise TemplateBroken(f"a file of the template has a bad path: {name}")
            path, lines = tree / name, []
        elif path is not None:
            lines.append(line)
        elif line.strip() and not line.startswith("#"):
            raise TemplateBroken(f"a line outside of any file: {line.strip()!r}")
    finish()


def _applets() -> list[str]:
    """Return the places of all applets, relative to the root."""
    done = subprocess.run(
        [str(PROGRAM), "--list-full"], capture_output=True, text=True, check=True, env={}
    )
    return sorted(done.stdout.split())


def is_static(program: Path) -> bool:
    """Tell whether ``program`` is an ELF executable that needs no interpreter (elf(5))."""
    try:
        data = program.read_bytes()
    except OSError:
        return False
    if data[:4] != b"\x7fELF" or data[4] != 2:
        return False
    order = "little" if data[5] == 1 else "big"

    def number(offset: int, size: int) -> int:
        return int.from_bytes(data[offset : offset + size], order)  # type: ignore[arg-type]

    start, size, count = number(32, 8), number(54, 2), number(56, 2)
    return all(number(start + i * size, 4) != _PT_INTERP for i in range(count))
