"""A load which knows what it was promised: random changes of a directory, each answer remembered."""

from __future__ import annotations

import errno
import hashlib
import json
import mmap
import os
import random
from collections.abc import Callable
from pathlib import Path


class Load:
    """Random changes of one directory, and what must be there after each acknowledged one.

    A request the dead server had carried out without answering is asked again, so that an act may
    find its own result: that is counted, and right if the result is there.
    """

    def __init__(self, home: Path, number: int) -> None:
        self.home = home
        self.dice = random.Random(number)
        self.files: dict[str, bytes] = {}
        self.folders: set[str] = set()
        self.acts = 0
        self.repeated = 0
        self.serial = 0
        for name in sorted(os.listdir(home)):
            self.files[name] = (home / name).read_bytes()
        # Open over all kills: passthrough must not notice them.
        self.held_name = sorted(self.files)[0]
        self.held = os.open(home / self.held_name, os.O_RDWR)
        self.reader = os.open(home / sorted(self.files)[1], os.O_RDONLY)
        self.reader_data = self.files.pop(sorted(self.files)[1])

    def run(self, stop: mmap.mmap) -> None:
        """Act until told to stop, then look at everything."""
        acts = (self.create, self.append, self.append, self.rewrite, self.rename, self.unlink, self.mkdir, self.rmdir, self.attributes, self.link, self.check, self.through_held)  # fmt: skip
        while not stop[0]:
            self.dice.choice(acts)()
            self.acts += 1
        for name, data in self.files.items():
            self.same(name, data)
        assert os.pread(self.reader, 1 << 20, 0) == self.reader_data[: 1 << 20]

    def once(self, act: Callable[[], object], done: int, holds: Callable[[], bool]) -> None:
        """Do something that cannot be done twice; the error `done` may mean that it was."""
        try:
            act()
        except OSError as error:
            if error.errno != done or not holds():
                raise
            self.repeated += 1

    def new(self) -> str:
        self.serial += 1
        return f"new{self.serial}"

    def some(self) -> str:
        return self.dice.choice(sorted(set(self.files) - {self.held_name}))

    def same(self, name: str, data: bytes) -> None:
        got = (self.home / name).read_bytes()
        assert got == data, (
            f"{name}: {len(got)} bytes differ from {len(data)}: {got[:40]!r} {data[:40]!r}"
        )

    def create(self) -> None:
        name, data = self.new(), self.dice.randbytes(self.dice.choice([0, 10, 5000, 100_000]))
        flags = os.O_CREAT | os.O_WRONLY
        one = os.open(self.home / name, flags, 0o644)
        os.write(one, data)
        os.close(one)
        self.files[name] = data

    def append(self) -> None:
        name, data = self.some(), b"appended %d" % self.acts
        one = os.open(self.home / name, os.O_WRONLY)
        os.pwrite(one, data, len(self.files[name]))
        if self.dice.random() < 0.1:
            os.fsync(one)
        os.close(one)
        self.files[name] += data

    def rewrite(self) -> None:
        name, data = self.some(), b"rewritten %d" % self.acts
        os.truncate(self.home / name, 0)
        one = os.open(self.home / name, os.O_WRONLY)
        os.pwrite(one, data, 0)
        os.close(one)
        self.files[name] = data

    def rename(self) -> None:
        old, new = self.some(), self.new()
        self.once(
            lambda: os.rename(self.home / old, self.home / new),
            errno.ENOENT,
            lambda: (self.home / new).exists() and not (self.home / old).exists(),
        )
        self.files[new] = self.files.pop(old)
        assert not (self.home / old).exists()

    def unlink(self) -> None:
        if len(self.files) < 6:
            return
        name = self.some()
        self.once(
            lambda: os.unlink(self.home / name),
            errno.ENOENT,
            lambda: not (self.home / name).exists(),
        )
        del self.files[name]
        assert not (self.home / name).exists()

    def mkdir(self) -> None:
        name = self.new()
        path = self.home / name
        self.once(lambda: os.mkdir(path), errno.EEXIST, path.is_dir)
        self.folders.add(name)

    def rmdir(self) -> None:
        if self.folders:
            name = self.folders.pop()
            path = self.home / name
            self.once(lambda: os.rmdir(path), errno.ENOENT, lambda: not path.exists())

    def attributes(self) -> None:
        name = self.some()
        mode = self.dice.choice([0o600, 0o640, 0o755])
        os.chmod(self.home / name, mode)
        os.setxattr(self.home / name, "user.act", b"%d" % self.acts)
        status = os.stat(self.home / name)
        assert status.st_mode & 0o777 == mode
        assert os.getxattr(self.home / name, "user.act") == b"%d" % self.acts

    def link(self) -> None:
        old, new = self.some(), self.new()
        self.once(
            lambda: os.link(self.home / old, self.home / new),
            errno.EEXIST,
            lambda: (self.home / new).samefile(self.home / old),
        )
        # The new name takes over the content and the old one goes: groups would need a model.
        self.once(
            lambda: os.unlink(self.home / old), errno.ENOENT, lambda: not (self.home / old).exists()
        )
        self.files[new] = self.files.pop(old)

    def check(self) -> None:
        name = self.some()
        self.same(name, self.files[name])
        listed = set(os.listdir(self.home))
        assert set(self.files) | self.folders <= listed, "a name is missing from the listing"

    def through_held(self) -> None:
        data = b"held %d" % self.acts
        assert os.pwrite(self.held, data, 0) == len(data)
        assert os.pread(self.held, len(data), 0) == data
        assert os.pread(self.reader, 100, 50) == self.reader_data[50:150]
        self.files[self.held_name] = data + self.files[self.held_name][len(data) :]


def run(home: Path, number: int, stop: mmap.mmap, report: int) -> None:
    """Run in a process of its own and report as JSON what must be there, or what went wrong."""
    try:
        load = Load(home, number)
        load.run(stop)
        result: dict[str, object] = {
            "acts": load.acts,
            "repeated": load.repeated,
            "folders": sorted(load.folders),
            "files": {n: hashlib.sha256(d).hexdigest() for n, d in load.files.items()},
        }
    except BaseException as error:
        import traceback

        result = {"error": f"{error!r}\n{traceback.format_exc(limit=-4)}"}
    os.write(report, json.dumps(result).encode())
