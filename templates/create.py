"""Private areas of new containers: their skeleton above the layers of a template."""

from __future__ import annotations

import errno
import json
import os
import uuid
from contextlib import suppress
from pathlib import Path

from runtime import files
from runtime.errors import NoDiskSpace, PrivateNotCreated, VzError
from runtime.paths import Paths
from templates import lock, users
from templates import postcreate as postcreate_script
from templates.catalogue import Template
from templates.errors import NotCached

#: The layout and the format of the private area, as its VERSION link names them.
LAYOUT = "vzfs-3"


def populate(paths: Paths, ctid: int, template: Template, *, private: Path | None = None) -> None:
    """Make the private area of container ``ctid``, all or nothing (default: the usual place).

    ``root/`` the container's own layer, ``cow/`` the file system's working area, ``scripts/``,
    ``dump/``, ``templates/layers`` the trees below (relative to the template area, top-most
    first), ``templates/os.json`` what the template is, ``VERSION`` and ``ve.conf``. Raises
    NotCached, PrivateNotCreated.
    """
    place = private or paths.private(ctid)
    cache = template.built()
    layers = [str(layer.relative_to(template.area)) for layer in template.layers()]
    about = {
        "name": template.name,
        "build": cache.build,
        "distribution": cache.distribution,
        "init": cache.init,
        "halt_signal": cache.halt_signal,
        "cgroup_view": cache.cgroup_view,
        "applications": list(cache.applications),
    }
    try:
        users.remember(paths)
        place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with (
            lock.area(template.area, "trees", shared=True),
            files.new_directory(place, mode=0o700) as fresh,
        ):
            if not template.layers()[0].is_dir():
                raise NotCached(f"the cache of {template.name} was removed meanwhile")
            for name in ("cow", "scripts", "dump", "templates"):
                (fresh / name).mkdir(mode=0o700)
            root = fresh / "root"
            root.mkdir(mode=0o755)
            _imitate(template.layers()[0], root)
            (fresh / "templates/layers").write_text("".join(f"{layer}\n" for layer in layers))
            (fresh / "templates/os.json").write_text(json.dumps(about, indent=1) + "\n")
            (fresh / "VERSION").symlink_to(LAYOUT)
            (fresh / "ve.conf").symlink_to(paths.ct_conf(ctid))
    except OSError as error:
        raise _failure(f"cannot make private area {place}", error) from error


def postcreate(paths: Paths, ctid: int, template: Template, *, private: Path | None = None) -> None:
    """Make the new container somebody of its own: what two containers must not share.

    Runs the distribution's POST_CREATE script in its tree. Raises PrivateNotCreated,
    ActionScriptFailed.
    """
    place = private or paths.private(ctid)
    try:
        new_identity(paths, place)
        postcreate_script.run(paths, template, place, {"VEID": str(ctid)})
    except OSError as error:
        raise _failure(f"cannot finish container {ctid}", error) from error


def _failure(what: str, error: OSError) -> VzError:
    kind = NoDiskSpace if error.errno in (errno.ENOSPC, errno.EDQUOT) else PrivateNotCreated
    return kind(f"{what}: {error.strerror}")


def new_identity(paths: Paths, private: Path) -> None:
    """Give the (unmounted) private area a machine id of its own, and no secure shell keys.

    For new containers and for copies of others. Nothing is done where the template has no
    ``/etc/machine-id``. Raises OSError.
    """
    root = private / "root"
    own = root / "etc"
    # A copy's own keys; those of a template were removed when it was built.
    if not own.is_symlink():
        for key in (own / "ssh").glob("ssh_host_*_key*"):
            key.unlink()
    below = _lower(paths, private, "etc/machine-id")
    if below is None and not os.path.lexists(own / "machine-id"):
        return
    if own.is_symlink():
        return
    if not own.is_dir():
        directory = _lower(paths, private, "etc")
        if directory is None or not directory.is_dir():
            return
        own.mkdir()
        _imitate(directory, own)
    target = own / "machine-id"
    with suppress(FileNotFoundError):
        target.unlink()
    files.replace(target, f"{uuid.uuid4().hex}\n".encode(), mode=0o444)


def _lower(paths: Paths, private: Path, name: str) -> Path | None:
    """Return where ``name`` lies in the layers of a private area, None where it does not."""
    for layer in (private / "templates/layers").read_text().split():
        path = paths.template / layer / name
        if os.path.lexists(path) and not path.is_symlink() and not path.parent.is_symlink():
            return path
    return None


def _imitate(source: Path, target: Path) -> None:
    """Give the directory ``target`` owner, mode, times and attributes of ``source``."""
    status = os.stat(source)
    os.chown(target, status.st_uid, status.st_gid)
    os.chmod(target, status.st_mode & 0o7777)
    for name in os.listxattr(source):
        os.setxattr(target, name, os.getxattr(source, name))
    os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns))
