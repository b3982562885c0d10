"""Magic links: four-slash links of a private area are the files of the template area."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from posixcases import beds

pytestmark = pytest.mark.root

Mount = Callable[..., beds.Vzfs]


@pytest.fixture(params=["vzfs-kernel", "vzfs-pyfuse3"])
def mount(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Mount]:
    mounted: list[beds.Vzfs] = []

    def make(**settings: object) -> beds.Vzfs:
        area = tmp_path / "template"
        package = area / "debian" / "bash-5.2"
        package.mkdir(parents=True, exist_ok=True)
        (package / "bash").write_text("the shell\n")
        os.chmod(package / "bash", 0o755)
        kind = beds.BEDS[request.param]
        assert issubclass(kind, beds.Vzfs)
        bed = kind(tmp_path / "bed", 1)
        bed.settings = {"template_area": area, **settings}
        links = {
            "bash": "////debian/bash-5.2/bash",
            "broken": "////debian/nothing",
            "outside": "////../bed/upper/secret",
            "folder": "////debian",
        }
        for name, target in links.items():
            os.symlink(target, bed.upper / name)
        (bed.upper / "secret").write_text("secret")
        os.symlink("/etc/passwd", package / "passwd")
        os.symlink("////debian/bash-5.2/passwd", bed.upper / "through")
        bed.mount()
        mounted.append(bed)
        return bed

    yield make
    for bed in mounted:
        bed.abandon()


def _template(bed: beds.Vzfs) -> Path:
    area = bed.settings["template_area"]
    assert isinstance(area, Path)
    return area / "debian" / "bash-5.2" / "bash"


def test_a_magic_link_is_the_regular_file_of_the_template(mount: Mount) -> None:
    bed = mount()
    path, template = bed.merged / "bash", _template(bed)
    assert path.read_text() == "the shell\n"
    shown, real = os.lstat(path), os.lstat(template)
    assert not path.is_symlink()
    assert (shown.st_mode, shown.st_size, shown.st_mtime_ns, shown.st_uid) == (
        real.st_mode,
        real.st_size,
        real.st_mtime_ns,
        real.st_uid,
    )
    with pytest.raises(OSError) as error:
        os.readlink(path)
    assert error.value.errno == errno.EINVAL
    assert [e.name for e in os.scandir(bed.merged) if e.is_file(follow_symlinks=False)] != []


def test_writing_replaces_the_link_and_leaves_the_template(mount: Mount) -> None:
    bed = mount()
    path = bed.merged / "bash"
    with path.open("a") as file:
        file.write("mine\n")
    assert path.read_text() == "the shell\nmine\n"
    assert _template(bed).read_text() == "the shell\n"
    assert not (bed.upper / "bash").is_symlink()
    bed.remount()
    assert path.read_text() == "the shell\nmine\n"


def test_a_change_of_metadata_keeps_the_data_shared(mount: Mount) -> None:
    bed = mount()
    path = bed.merged / "bash"
    path.chmod(0o700)
    assert path.stat().st_mode & 0o777 == 0o700
    assert (bed.upper / "bash").stat().st_blocks * 512 < 10 + 4096
    bed.remount()
    assert path.read_text() == "the shell\n"
    assert path.stat().st_mode & 0o777 == 0o700
    assert _template(bed).stat().st_mode & 0o777 == 0o755


def test_names_of_a_magic_link_move_and_go(mount: Mount) -> None:
    bed = mount()
    os.rename(bed.merged / "bash", bed.merged / "sh")
    assert os.readlink(bed.upper / "sh") == "////debian/bash-5.2/bash"
    os.link(bed.merged / "sh", bed.merged / "hard")
    assert (bed.merged / "hard").read_text() == "the shell\n"
    assert (bed.merged / "hard").stat().st_nlink == 2
    with open(bed.merged / "sh") as file:
        os.unlink(bed.merged / "sh")
        os.unlink(bed.merged / "hard")
        assert file.read() == "the shell\n"
        assert os.fstat(file.fileno()).st_nlink == 0
    assert _template(bed).exists()


def test_targets_cannot_leave_the_template_area(mount: Mount) -> None:
    bed = mount()
    for name in ("broken", "outside", "folder", "through"):
        path = bed.merged / name
        assert path.is_symlink(), f"{name} became a file"
        with pytest.raises(OSError):
            path.read_text()


def test_making_one_is_refused(mount: Mount) -> None:
    bed = mount()
    for target in ("////debian/bash-5.2/bash", "////", "/////etc/passwd"):
        with pytest.raises(OSError) as error:
            os.symlink(target, bed.merged / "new")
        assert error.value.errno == errno.EINVAL
    os.symlink("///three", bed.merged / "new")
    assert os.readlink(bed.merged / "new") == "///three"


def test_making_one_works_where_it_is_allowed(mount: Mount) -> None:
    bed = mount(magic_links=True)
    os.symlink("////debian/bash-5.2/bash", bed.merged / "new")
    assert (bed.merged / "new").read_text() == "the shell\n"
    assert not (bed.merged / "new").is_symlink()
    os.symlink("////debian/missing", bed.merged / "dangling")
    assert (bed.merged / "dangling").is_symlink()
