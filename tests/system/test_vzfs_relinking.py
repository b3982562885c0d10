"""Files of a mount that is in use become links to shared ones, and copies again."""

from __future__ import annotations

import dataclasses
import errno
import mmap
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system.quotabed import QuotaBed
from vzfs import relinking, syscalls
from vzfs.orders import Orders

pytestmark = pytest.mark.root

DATA = random.Random(1).randbytes(300_000)
TARGET = "////vc/data"
#: Writes to files in all the ways there are, and says what each must hold at the end.
LOAD = """
import mmap, os, random, sys
top, seconds, seed = sys.argv[1], float(sys.argv[2]), int(sys.argv[3])
import time
dice = random.Random(seed)
whole = open(top + "/../template/vc/data", "rb").read()
names = [f"{top}/l{seed}-{n}" for n in range(12)]
held = {}
for name in names:
    open(name, "wb").write(whole)
    held[name] = bytearray(whole)
end = time.monotonic() + seconds
while time.monotonic() < end:
    name, at = dice.choice(names), dice.randrange(len(whole) - 8)
    how, word = dice.randrange(5), dice.randbytes(8)
    if how == 0:
        with open(name, "r+b") as file:
            file.seek(at); file.write(word)
    elif how == 1:
        with open(name, "r+b") as file, mmap.mmap(file.fileno(), 0) as area:
            area[at:at + 8] = word
    elif how == 2:
        open(name + ".new", "wb").write(whole)
        os.rename(name + ".new", name)
        held[name][:] = whole
        continue
    elif how == 3:
        assert open(name, "rb").read() == held[name], name
        continue
    else:
        time.sleep(0.15)
        continue
    held[name][at:at + 8] = word
    if dice.random() < 0.5:
        with open(name, "r+b") as file:
            file.write(whole)
        held[name][:] = whole
for name in names:
    assert open(name, "rb").read() == held[name], name
print("well")
"""

#: Why a file in use is left alone.
_LEFT = (
    errno.ESTALE,
    errno.ETXTBSY,
    errno.EINVAL,
    errno.ENOENT,
    errno.EBUSY,
    errno.EAGAIN,
)
#: Asks for one link.
ASKER = """
import os, sys
from pathlib import Path
from vzfs.orders import Orders
mount, work, file, target = sys.argv[1:]
Orders(Path(mount), Path(work)).link("f", os.lstat(file), target)
"""


class Bed(QuotaBed):
    """A quota bed with a template area which holds one shared file."""

    def __init__(self, top: Path, transport: str) -> None:
        super().__init__(top, transport)
        self.shared = top / "template/vc/data"
        self.shared.parent.mkdir(parents=True)
        self.shared.write_bytes(DATA)
        self.options = dataclasses.replace(self.options, template_area=top / "template")
        self.orders = Orders(self.mount_point, self.work)

    def put(self, *names: str) -> None:
        """Make files inside which could be links, old enough."""
        for name in names:
            (self.mount_point / name).write_bytes(DATA)
        time.sleep(relinking.RECENT_NS / 1e9 + 0.05)

    def link(self, name: str) -> None:
        """Ask for a link in the place of a file, as the commands do."""
        seen = os.lstat(self.upper / name)
        self.orders.free(name, seen)
        self.orders.link(name, seen, TARGET)

    def linked(self, name: str) -> bool:
        """Tell whether a private file is a link to the shared one."""
        path = self.upper / name
        return path.is_symlink() and os.readlink(path) == TARGET

    def replaced(self) -> list[int]:
        """Return the blocks of files that were replaced and are remembered yet."""
        place = self.work / relinking.REPLACED
        return sorted(entry.stat().st_blocks for entry in os.scandir(place))


@pytest.fixture(params=["kernel", "pyfuse3"])
def bed(request: pytest.FixtureRequest) -> Iterator[Bed]:
    """Return a mounted area."""
    made = Bed(Path(tempfile.mkdtemp(prefix="vzfs-links-")), request.param)
    try:
        made.mount(sub_quotas=1, ugid_limit=10)
        yield made
    finally:
        made.close()


def refused(bed: Bed, name: str, number: int) -> bool:
    """Tell whether a link is refused for that reason, and the file stays as it is."""
    with pytest.raises(OSError) as raised:
        bed.link(name)
    return raised.value.errno == number and not bed.linked(name)


def test_a_file_becomes_a_link_and_nobody_sees_it(bed: Bed) -> None:
    bed.put("f")
    os.chown(bed.mount_point / "f", 0, 0)
    time.sleep(0.15)
    before = os.stat(bed.mount_point / "f")
    bed.link("f")
    after = os.stat(bed.mount_point / "f")
    assert (after.st_ino, after.st_size, after.st_mode) == (
        before.st_ino,
        before.st_size,
        before.st_mode,
    )
    assert (bed.mount_point / "f").read_bytes() == DATA
    assert bed.linked("f")
    assert bed.settled() == (0, 0) and bed.owners_settled()
    # Nothing is kept but the number of the inode.
    assert sum(bed.replaced()) == 0
    with (bed.mount_point / "f").open("ab") as file:
        file.write(b"more")
    assert (bed.mount_point / "f").read_bytes() == DATA + b"more"
    assert bed.shared.read_bytes() == DATA
    assert bed.settled() == (0, 0)


def test_what_is_open_for_writing_stays(bed: Bed) -> None:
    bed.put("f", "g")
    with (bed.mount_point / "f").open("r+b"):
        assert refused(bed, "f", errno.ETXTBSY)
    file = (bed.mount_point / "g").open("r+b")
    area = mmap.mmap(file.fileno(), 0)
    file.close()
    assert refused(bed, "g", errno.ETXTBSY)
    area.close()


def test_what_was_changed_since_it_was_compared_stays(bed: Bed) -> None:
    bed.put("f")
    seen = os.lstat(bed.upper / "f")
    bed.orders.free("f", seen)
    with (bed.mount_point / "f").open("r+b") as file:
        file.write(b"x")
    # Times can be put back, but for one.
    os.utime(bed.mount_point / "f", ns=(seen.st_atime_ns, seen.st_mtime_ns))
    time.sleep(0.15)
    with pytest.raises(OSError) as raised:
        bed.orders.link("f", seen, TARGET)
    assert raised.value.errno == errno.ESTALE


def test_readers_and_mappings_go_on_and_see_what_is_written_later(bed: Bed) -> None:
    bed.put("f")
    reader = (bed.mount_point / "f").open("rb")
    with mmap.mmap(reader.fileno(), 0, prot=mmap.PROT_READ) as area:
        bed.link("f")
        assert bed.linked("f")
        assert area[:] == DATA and reader.read() == DATA
        assert bed.settled() == (0, 0)
        with (bed.mount_point / "f").open("r+b") as file:
            file.write(b"later")
        assert area[:5] == b"later"
        reader.seek(0)
        assert reader.read(5) == b"later"
    reader.close()
    assert bed.settled() == (0, 0)
    assert bed.shared.read_bytes() == DATA


def test_the_space_is_free_when_the_last_reader_has_gone(bed: Bed) -> None:
    bed.put("f")
    with (bed.mount_point / "f").open("rb"):
        bed.link("f")
    deadline = time.monotonic() + 5
    while sum(bed.replaced()) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert sum(bed.replaced()) == 0
    assert (bed.mount_point / "f").read_bytes() == DATA


def test_a_number_is_not_another_files_while_the_old_one_is_known(bed: Bed) -> None:
    bed.put("f")
    inode = os.lstat(bed.upper / "f").st_ino
    bed.link("f")
    for number in range(200):
        (bed.mount_point / f"n{number}").write_bytes(b"another")
        assert os.lstat(bed.upper / f"n{number}").st_ino != inode
    assert (bed.mount_point / "f").read_bytes() == DATA


def test_only_files_that_a_link_can_stand_for_are_taken(bed: Bed) -> None:
    bed.put("names", "mode", "short")
    os.link(bed.mount_point / "names", bed.mount_point / "other")
    os.chmod(bed.mount_point / "mode", 0o600)
    os.truncate(bed.mount_point / "short", 5)
    os.mkdir(bed.mount_point / "d")
    os.symlink("d", bed.mount_point / "s")
    time.sleep(0.15)
    assert refused(bed, "names", errno.ESTALE)
    for name in ("mode", "short", "d", "s"):
        assert refused(bed, name, errno.EINVAL)
    seen = os.lstat(bed.upper / "mode")
    for path in ("../mode", "/mode", "d/../mode", ""):
        with pytest.raises(OSError):
            bed.orders.link(path, seen, TARGET)
    with pytest.raises(OSError):
        bed.orders.link("mode", seen, "////../quota.1")


def test_nobody_inside_can_ask_for_it(bed: Bed) -> None:
    bed.put("f")
    seen = os.lstat(bed.upper / "f")
    fields = (seen.st_ino, seen.st_size, seen.st_mtime_ns, seen.st_ctime_ns)
    words = [b"%d" % number for number in fields]
    file = bed.mount_point / ".vzfs-links"
    assert file.name not in os.listdir(bed.mount_point)
    for token in (b"", b"0" * 32):
        with pytest.raises(PermissionError):
            file.write_bytes(b"\0".join((token, b"link", b"f", *words, TARGET.encode())))
    assert not bed.linked("f")
    for act in (file.unlink, lambda: os.rename(bed.mount_point / "f", file)):
        with pytest.raises(PermissionError):
            act()
    with pytest.raises(OSError):
        file.read_bytes()


def test_a_link_gets_data_of_its_own(bed: Bed) -> None:
    bed.put("f", "g")
    for name in ("f", "g"):
        bed.link(name)
    os.chmod(bed.mount_point / "g", 0o600)
    for name in ("f", "g", "g"):
        bed.orders.copy(name)
        assert not bed.linked(name)
        assert (bed.upper / name).read_bytes() == DATA
    assert bed.settled() == (0, 0)


def test_a_new_server_knows_what_was_replaced(bed: Bed) -> None:
    bed.put("f", "g", "h")
    reader = (bed.mount_point / "g").open("rb")
    writer = (bed.mount_point / "h").open("r+b")
    inode = os.lstat(bed.upper / "f").st_ino
    bed.link("f")
    bed.link("g")
    bed.kill()
    bed.serve(resume=True)
    for number in range(100):
        (bed.mount_point / f"n{number}").write_bytes(b"another")
        assert os.lstat(bed.upper / f"n{number}").st_ino != inode
    assert (bed.mount_point / "f").read_bytes() == DATA
    if bed.options.transport == "kernel":
        assert reader.read() == DATA
        assert os.fstat(reader.fileno()).st_size == len(DATA)
        # What the former server let be opened for writing is found out by the kernel's count.
        assert refused(bed, "h", errno.ETXTBSY)
    with (bed.mount_point / "g").open("r+b") as file:
        file.write(b"later")
    assert (bed.mount_point / "g").read_bytes()[:5] == b"later"
    os.chmod(bed.mount_point / "f", 0o600)
    assert os.stat(bed.mount_point / "f").st_mode & 0o777 == 0o600
    assert bed.shared.read_bytes() == DATA
    writer.close()
    reader.close()
    assert bed.settled() == (0, 0)
    bed.unmount()


def test_a_copy_in_the_place_of_a_link_is_not_mistaken_by_a_new_server(bed: Bed) -> None:
    bed.put("f", "g")
    for name in ("f", "g"):
        bed.link(name)
    numbers = {os.lstat(bed.upper / name).st_ino for name in ("f", "g")}
    os.chmod(bed.mount_point / "f", 0o640)
    with (bed.mount_point / "g").open("r+b") as file:
        file.write(b"mine")
    bed.kill()
    bed.serve(resume=True)
    for number in range(100):
        (bed.mount_point / f"n{number}").write_bytes(b"another")
        assert os.lstat(bed.upper / f"n{number}").st_ino not in numbers
    assert os.stat(bed.mount_point / "f").st_mode & 0o777 == 0o640
    assert (bed.mount_point / "g").read_bytes() == b"mine" + DATA[4:]
    assert bed.settled() == (0, 0)
    bed.unmount()


@pytest.mark.parametrize("step", ["symlink", "chown", "rename", "set_times", "born", "leased"])
def test_a_server_killed_at_any_step_leaves_the_file_or_the_link(step: str) -> None:
    bed = Bed(Path(tempfile.mkdtemp(prefix="vzfs-links-")), "kernel")
    try:
        killed_at(bed, step)
    finally:
        bed.close()


def killed_at(bed: Bed, step: str) -> None:
    """Have the server die at a step of linking, and another one go on."""
    from vzfs.accounting import Accounting

    place = {"symlink": os, "chown": os, "rename": syscalls, "born": Accounting}.get(
        step, relinking
    )
    real = getattr(place, step)
    armed = bed.top / "armed"

    def deadly(*arguments: object, **named: object) -> object:
        done = real(*arguments, **named)
        if armed.exists():
            armed.unlink()
            os._exit(9)
        return done

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(place, step, deadly)
        bed.mount()
    bed.put("f")
    seen = os.lstat(bed.upper / "f")
    bed.orders.free("f", seen)
    armed.touch()
    words = (bed.mount_point, bed.work, bed.upper / "f", TARGET)
    asker = subprocess.Popen(
        [sys.executable, "-c", ASKER, *map(str, words)], stderr=subprocess.DEVNULL
    )
    os.waitpid(bed.pid, 0)
    bed.pid = 0
    if not bed.linked("f"):
        assert (bed.upper / "f").read_bytes() == DATA
    bed.serve(resume=True)
    asker.wait(30)
    assert (bed.mount_point / "f").read_bytes() == DATA
    assert bed.settled() == (0, 0)
    bed.unmount()
    bed.mount()
    assert (bed.mount_point / "f").read_bytes() == DATA
    assert not os.listdir(bed.work / relinking.REPLACED)
    assert bed.settled() == (0, 0)


def test_under_a_load_of_writers_nothing_is_lost(bed: Bed) -> None:
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", LOAD, str(bed.mount_point), "4", str(seed)],
            stdout=subprocess.PIPE,
            text=True,
        )
        for seed in (1, 2)
    ]
    done = 0
    while any(writer.poll() is None for writer in writers):
        for path in bed.upper.glob("l*"):
            try:
                seen = os.lstat(path)
                bed.orders.free(path.name, seen)
                if path.read_bytes() == DATA:
                    bed.orders.link(path.name, seen, TARGET)
                    done += 1
            except OSError as error:
                if error.errno not in _LEFT:
                    raise
        time.sleep(0.01)
    assert [writer.communicate()[0] for writer in writers] == ["well\n", "well\n"]
    assert done > 5
    assert bed.shared.read_bytes() == DATA
    assert bed.settled() == (0, 0)
