"""POST_CREATE: a distribution's script, run once in the tree of a container that was just made.

The container does not run yet and is not mounted: the script sees its tree through the kernel's
overlay file system, whose form on disk is that of VZFS, in a mount namespace that ends with it.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from runtime import dists, syscalls
from runtime.errors import ActionScriptFailed, NoDistributionScript
from runtime.paths import Paths
from templates.catalogue import Template
from vzfs import syscalls as file_syscalls

_TIMEOUT_S = 60
#: The script could not be begun: no overlay file system here, or not on this one.
_NO_OVERLAY = 251
_NO_SHELL = 252
_ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8", "HOME": "/root"}


def run(paths: Paths, template: Template, private: Path, environment: Mapping[str, str]) -> bool:
    """Run the distribution's POST_CREATE script; return whether there was one that could run.

    Where the kernel cannot overlay the file system of the private area nothing is run: the
    scripts only make containers less alike. Raises ActionScriptFailed, OSError.
    """
    config = {"DISTRIBUTION": template.distribution, "OSTEMPLATE": template.name}
    try:
        text = dists.script(paths, config, dists.Action.POST_CREATE)
    except NoDistributionScript:
        return False
    work = private / "cow" / "postcreate"
    work.mkdir(mode=0o700)
    options = ",".join(
        (
            "lowerdir=" + ":".join(_escaped(layer) for layer in template.layers()),
            f"upperdir={_escaped(private / 'root')}",
            f"workdir={_escaped(work)}",
            "metacopy=off,redirect_dir=off,index=off,uuid=off",
        )
    )
    # The tree has no /dev yet, so no random numbers either.
    seed = {"VE_SEED": str(secrets.randbelow(1 << 16))}
    script = os.memfd_create("postcreate")
    try:
        os.write(script, text)
        os.lseek(script, 0, os.SEEK_SET)
        pid = os.fork()
        if pid == 0:
            _child(private / "dump", options, script, {**_ENVIRONMENT, **seed, **environment})
        _pid, status = os.waitpid(pid, 0)
    finally:
        os.close(script)
        shutil.rmtree(work)
    _strip(private / "root")
    code = os.waitstatus_to_exitcode(status)
    if code in (_NO_OVERLAY, _NO_SHELL):
        return False
    if code:
        raise ActionScriptFailed(f"the script for POST_CREATE ended with {code}")
    return True


def _strip(root: Path) -> None:
    """Remove the marks overlayfs needs for stable inode numbers: VZFS has its own."""
    for place, _directories, names in os.walk(root):
        for path in (place, *(os.path.join(place, name) for name in names)):
            for mark in ("trusted.overlay.origin", "trusted.overlay.impure"):
                with suppress(OSError):
                    os.removexattr(path, mark, follow_symlinks=False)


def _escaped(path: Path) -> str:
    """Return a path as an option of overlayfs, where commas and colons separate."""
    return "".join(f"\\{char}" if char in "\\,:" else char for char in str(path))


def _child(target: Path, options: str, script: int, environment: Mapping[str, str]) -> NoReturn:
    code = _NO_OVERLAY
    with suppress(OSError):
        # Nothing may write beside whoever repairs what a killed command left.
        syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signal.SIGKILL)
        signal.alarm(_TIMEOUT_S)
        syscalls.unshare(syscalls.CLONE_NEWNS)
        syscalls.mount(None, "/", None, syscalls.MS_REC | syscalls.MS_PRIVATE)
        file_syscalls.mount("overlay", target, "overlay", 0, options)
        os.chroot(target)
        os.chdir("/")
        null = os.memfd_create("output")
        for number, fd in enumerate((script, null, null)):
            os.dup2(fd, number, inheritable=True)
        syscalls.close_range(3)
        code = _NO_SHELL
        os.execve("/bin/sh", ["/bin/sh", "-s"], dict(environment))
    os._exit(code)
