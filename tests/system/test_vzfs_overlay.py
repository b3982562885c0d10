"""Copy-on-write over template layers: who sees what, what is stored, what stays shared."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from posixcases import beds

pytestmark = pytest.mark.root


@pytest.fixture(params=["vzfs-kernel", "vzfs-plain", "vzfs-pyfuse3"])
def bed(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[beds.Vzfs]:
    kind = beds.BEDS[request.param]
    assert issubclass(kind, beds.Vzfs)
    bed = kind(tmp_path / "bed", 2)
    top, bottom = bed.lowers
    (bottom / "dir" / "sub").mkdir(parents=True)
    (bottom / "dir" / "big").write_bytes(os.urandom(300_000))
    (bottom / "dir" / "sub" / "leaf").write_text("leaf")
    (bottom / "one").write_text("name")
    os.link(bottom / "one", bottom / "two")
    (top / "dir").mkdir()
    (top / "dir" / "over").write_text("top")
    bed.mount()
    try:
        yield bed
    finally:
        bed.abandon()


def _snapshot(root: Path) -> dict[str, tuple[object, ...]]:
    found: dict[str, tuple[object, ...]] = {}
    for directory, names, files in os.walk(root):
        for name in names + files:
            path = Path(directory) / name
            st = path.lstat()
            data = path.read_bytes() if stat.S_ISREG(st.st_mode) else b""
            found[str(path.relative_to(root))] = (st.st_mode, st.st_mtime_ns, st.st_ctime_ns, data)
    return found


def test_templates_never_change(bed: beds.Vzfs) -> None:
    before = [_snapshot(lower) for lower in bed.lowers]
    root = bed.merged
    (root / "one").write_text("changed")
    (root / "dir" / "big").chmod(0o600)
    os.truncate(root / "dir" / "big", 10)
    os.setxattr(root / "dir" / "over", "user.a", b"b")
    os.rename(root / "dir", root / "moved")
    os.unlink(root / "moved" / "sub" / "leaf")
    os.rmdir(root / "moved" / "sub")
    (root / "two").unlink()
    assert [_snapshot(lower) for lower in bed.lowers] == before


def test_a_chmod_copies_no_data(bed: beds.Vzfs) -> None:
    path = bed.merged / "dir" / "big"
    path.chmod(0o640)
    assert (bed.upper / "dir" / "big").stat().st_blocks <= 8
    assert path.read_bytes() == (bed.lowers[1] / "dir" / "big").read_bytes()
    assert path.stat().st_mode & 0o777 == 0o640


def test_st_ino_stays_when_a_file_becomes_private(bed: beds.Vzfs) -> None:
    path = bed.merged / "dir" / "big"
    before = path.stat().st_ino
    path.chmod(0o600)
    with path.open("ab") as file:
        file.write(b"x")
    assert path.stat().st_ino == before
    bed.remount()
    assert path.stat().st_ino == before


def test_names_of_one_template_file_stay_one_file(bed: beds.Vzfs) -> None:
    one, two = bed.merged / "one", bed.merged / "two"
    one.write_text("both")
    assert two.read_text() == "both"
    assert one.stat().st_ino == two.stat().st_ino
    assert one.stat().st_nlink == 2
    os.unlink(one)
    assert two.stat().st_nlink == 1
    bed.remount()
    assert two.read_text() == "both"
    assert two.stat().st_nlink == 1
    os.unlink(two)
    assert os.listdir(bed.work / "index") == []


def test_names_a_template_file_was_changed_by_are_in_the_private_area(bed: beds.Vzfs) -> None:
    one, two = bed.merged / "one", bed.merged / "two"
    one.write_text("both")
    assert (bed.upper / "one").read_text() == "both"
    assert not (bed.upper / "two").exists()
    two.read_text()
    assert not (bed.upper / "two").exists()
    with two.open("a") as file:
        file.write("!")
    assert (bed.upper / "two").samefile(bed.upper / "one")
    assert (bed.upper / "two").read_text() == "both!"
    assert one.stat().st_nlink == two.stat().st_nlink == 2
    bed.remount()
    os.rename(one, bed.merged / "three")
    os.unlink(two)
    assert (bed.merged / "three").read_text() == "both!"
    assert (bed.merged / "three").stat().st_nlink == 1
    assert sorted(os.listdir(bed.merged)) == sorted({*os.listdir(bed.merged)} - {"one", "two"})


def test_writers_beside_readers_are_never_refused(bed: beds.Vzfs) -> None:
    # The kernel asks for the name twice after ESTALE; for 60 files some of them race.
    directory = bed.lowers[1]
    bed.unmount()
    for number in range(60):
        (directory / f"r{number}").write_text("shared")
    bed.mount()
    for number in range(60):
        path = bed.merged / f"r{number}"
        with path.open() as reader:
            with path.open("r+") as writer:
                writer.write("mine")
            os.fchmod(reader.fileno(), 0o600)
        assert path.read_text() == "mineed"
        assert path.stat().st_mode & 0o777 == 0o600


def test_a_moved_template_directory_keeps_what_is_in_it(bed: beds.Vzfs) -> None:
    os.rename(bed.merged / "dir", bed.merged / "elsewhere")
    assert not (bed.merged / "dir").exists()
    (bed.merged / "dir").mkdir()
    assert os.listdir(bed.merged / "dir") == []
    bed.remount()
    assert sorted(os.listdir(bed.merged / "elsewhere")) == ["big", "over", "sub"]
    assert (bed.merged / "elsewhere" / "sub" / "leaf").read_text() == "leaf"
    assert os.listdir(bed.merged / "dir") == []


def test_one_area_cannot_be_mounted_twice(bed: beds.Vzfs) -> None:
    from vzfs import layers

    os.listdir(bed.merged)
    stack = layers.Stack(bed.lowers, bed.upper, bed.work)
    with pytest.raises(layers.Busy):
        stack.lock()
    stack.close()


def test_an_interrupted_copy_leaves_the_old_contents(bed: beds.Vzfs) -> None:
    path = bed.merged / "dir" / "big"
    wanted = (bed.lowers[1] / "dir" / "big").read_bytes()
    path.chmod(0o600)
    bed.unmount()
    # What a server killed in the middle of the copy leaves: half the data, the mark still there.
    half = bed.upper / "dir" / "big"
    with half.open("r+b") as file:
        file.write(b"half" * 1000)
    bed.mount()
    assert path.read_bytes() == wanted
    with path.open("ab") as file:
        file.write(b"end")
    assert path.read_bytes() == wanted + b"end"


def test_paths_beyond_path_max_work(bed: beds.Vzfs) -> None:
    here = os.open("/", os.O_RDONLY)
    try:
        os.chdir(bed.merged)
        for _ in range(40):
            os.mkdir("n" * 200)
            os.chdir("n" * 200)
        Path("bottom").write_text("deep")
        assert Path("bottom").read_text() == "deep"
        os.rename("bottom", "renamed")
        assert os.listdir(".") == ["renamed"]
        os.unlink("renamed")
        for _ in range(40):
            os.chdir("..")
            os.rmdir("n" * 200)
    finally:
        os.fchdir(here)
        os.close(here)


def test_reading_a_directory_is_stable_while_names_go(bed: beds.Vzfs) -> None:
    directory = bed.merged / "many"
    directory.mkdir()
    names = {f"file{number}" for number in range(3000)}
    for name in names:
        (directory / name).touch()
    seen = []
    with os.scandir(directory) as entries:
        for number, entry in enumerate(entries):
            seen.append(entry.name)
            if number % 2:
                os.unlink(entry.path)
    assert len(seen) == len(set(seen))
    assert set(seen) == names
    assert len(os.listdir(directory)) == len(names) - len(names) // 2
