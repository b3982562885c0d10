"""File trees from archives: a root file system somebody else packed, as a tar file.

The recipe's ``repositories`` names it: ``URL`` or a path, and optionally ``sha256:DIGEST``.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

from runtime import files, programs
from runtime.paths import Paths
from runtime.progress import Progress
from templates import sources
from templates.catalogue import Template
from templates.errors import BadRecipe, FetchFailed, NoRepository, ProgramFailed

_TIMEOUT_S = 60
_CHUNK_BYTES = 1 << 20


def build(paths: Paths, template: Template, tree: Path, progress: Progress) -> None:
    """Unpack the template's archive into the empty directory ``tree``, keeping owners and attributes.

    Raises NoRepository, BadRecipe, FetchFailed, ProgramFailed.
    """
    lines = template.recipe.repositories
    if not lines:
        raise NoRepository(f"{template.name} names no archive in its file repositories")
    text, _keyring = sources.expand(paths, lines[0], sources.server_variables())
    words = text.split()
    if len(words) > 2 or (len(words) == 2 and not words[1].startswith("sha256:")):
        raise BadRecipe(f"an archive line is URL [sha256:DIGEST]: {text!r}")
    wanted = words[1].removeprefix("sha256:") if len(words) == 2 else None
    archive = _fetch(template, words[0], progress)
    if wanted is not None and _digest(archive) != wanted.lower():
        raise FetchFailed(
            f"{archive} is not the file the template asks for: its digest differs",
            hint="remove it to fetch it anew",
        )
    _unpack(archive, tree)
    progress.amount(f"Building {template.name}", 1, 1)


def _fetch(template: Template, address: str, progress: Progress) -> Path:
    """Return the archive as a file; a remote one is kept in the template's ``pm/``."""
    url = urllib.parse.urlsplit(address)
    if url.scheme in ("", "file"):
        path = Path(urllib.parse.unquote(url.path))
        if not path.is_absolute() or not path.is_file():
            raise FetchFailed(f"there is no archive {path}")
        return path
    if url.scheme not in ("http", "https"):
        raise BadRecipe(f"archives come from files, http or https, not {url.scheme}")
    kept = template.place / "pm" / os.path.basename(url.path)
    if kept.is_file():
        return kept
    kept.parent.mkdir(parents=True, exist_ok=True)
    part = kept.with_name(f".tmp-{kept.name}.{os.getpid()}")
    try:
        with urllib.request.urlopen(address, timeout=_TIMEOUT_S) as answer, open(part, "wb") as out:
            total = int(answer.headers.get("Content-Length") or 0)
            done = 0
            while chunk := answer.read(_CHUNK_BYTES):
                out.write(chunk)
                done += len(chunk)
                progress.amount("Fetching", done, total)
            os.fsync(out.fileno())
        os.rename(part, kept)
    except (urllib.error.URLError, OSError) as error:
        raise FetchFailed(f"cannot fetch {address}: {error}") from error
    finally:
        part.unlink(missing_ok=True)
    files.fsync_directory(kept.parent)
    return kept


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _unpack(archive: Path, tree: Path) -> None:
    """Run tar(1), which unlike Python's keeps capabilities, and delays links that lead outside."""
    done = subprocess.run(
        [
            *programs.ENDING_WITH_US,
            "tar",
            "--extract",
            f"--file={archive}",
            f"--directory={tree}",
            "--numeric-owner",
            "--same-owner",
            "--preserve-permissions",
            "--xattrs",
            "--xattrs-include=*",
            "--exclude=./dev/*",
            "--exclude=dev/*",
        ],
        env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or [f"it ended with {done.returncode}"]
        raise ProgramFailed(f"tar cannot unpack {archive}: {last[0]}")
    if not (tree / "etc").is_dir():
        raise ProgramFailed(f"{archive} holds no root file system: it has no /etc")
