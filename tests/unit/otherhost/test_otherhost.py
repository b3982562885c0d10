"""The pure parts of `./runtests other-host`: what the guest is made of, its command, its results."""

from __future__ import annotations

import json
import os
import subprocess
import tarfile
from pathlib import Path

import pytest

from tests.otherhost import __main__ as command_line
from tests.otherhost import checkout, guest, image, results
from tests.otherhost.guest import Disk, Ports
from tests.otherhost.image import Image
from vmm.acceleration import Acceleration


def _lines(*rows: dict[str, object]) -> list[str]:
    return [json.dumps(row) for row in rows]


def _test(name: str, outcome: str, reason: str = "") -> dict[str, object]:
    return {"test": name, "outcome": outcome, "seconds": 30, "reason": reason}


def test_an_image_is_named_after_what_decides_about_it(tmp_path: Path) -> None:
    for name in ("tools", "templates/recipes.d/debian-12/os/default"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "templates/recipes.d/debian-12/os/default/repositories").write_text("$X a main\n")
    (tmp_path / "pyproject.toml").write_text("")
    (tmp_path / "tools/launchers.py").write_text("")
    bootstrap = tmp_path / "tools/bootstrap"
    bootstrap.write_text("one")
    first = image.key(tmp_path)
    assert image.key(tmp_path) == first
    bootstrap.write_text("two")
    assert image.key(tmp_path) != first


def test_images_are_kept_where_the_environment_says() -> None:
    assert image.cache_dir({"VZ_TEST_OTHER_HOST": "/a"}) == Path("/a")
    assert image.cache_dir({"XDG_CACHE_HOME": "/c"}) == Path("/c/pyvz/otherhost")


def test_the_checkout_is_the_working_tree_and_roots(tmp_path: Path) -> None:
    top = tmp_path / "top"
    top.mkdir()
    subprocess.run(["git", "init", "-q", str(top)], check=True)
    (top / ".gitignore").write_text("ignored\n")
    for name in ("ignored", "run", "gone"):
        (top / name).write_text(name)
    (top / "run").chmod(0o755)
    subprocess.run(["git", "-C", str(top), "add", "gone"], check=True)
    (top / "gone").unlink()
    os.chown(top / "run", os.getuid(), os.getgid())
    checkout.write(top, tmp_path / "tar", {"/srv/asked/words": "a\0b\0"})
    with tarfile.open(tmp_path / "tar") as archive:
        assert sorted(archive.getnames()) == [
            "srv/asked/words",
            "srv/pyvz/.gitignore",
            "srv/pyvz/run",
        ]
        entry = archive.getmember("srv/pyvz/run")
        assert (entry.mode & 0o777, entry.uid, entry.uname) == (0o755, 0, "root")
        words = archive.extractfile("srv/asked/words")
        assert words is not None and words.read() == b"a\0b\0"


def test_only_the_guests_own_disk_can_be_written() -> None:
    disks = [Disk(Path("/x,y"), "root", "qcow2", read_only=False), Disk(Path("/t"), "checkout")]
    ports = Ports(Path("/c"), Path("/r"))
    argv = guest.command(Image(Path("/i")), disks, ports, Acceleration.EMULATED)
    drives = [argv[at + 1] for at, word in enumerate(argv) if word == "-drive"]
    assert drives[0].startswith("file=/x,,y,format=qcow2") and "read-only" not in drives[0]
    assert drives[1].endswith("read-only=on")
    assert "tcg,thread=multi" in argv and "max" in argv
    native = guest.command(Image(Path("/i")), disks, ports, Acceleration.KVM)
    assert "kvm" in native and "host" in native


def test_a_guest_is_ended_when_its_time_is_over() -> None:
    said: list[bytes] = []
    assert not guest.run(["sh", "-c", "echo begun; exec sleep 60"], said.append, 0.5)
    assert b"".join(said) == b"begun\n"


def test_qemus_own_failure_is_not_a_result() -> None:
    with pytest.raises(subprocess.CalledProcessError):
        guest.run(["sh", "-c", "exit 1"], lambda _chunk: None, 10)


def test_results_keep_the_worst_of_a_test_and_what_was_running() -> None:
    rows = _lines(
        {"kernel": "6.1.0", "system": "Debian 12"},
        {"begin": "a"},
        _test("a", "passed"),
        _test("a", "error", "strays"),
        {"begin": "b"},
        _test("b", "skipped", "no | network"),
        {"begin": "c"},
    )
    told = results.read([*rows, '{"test": "c", "outc'])
    assert told.figures.startswith("0 passed, 1 skipped, 0 failed, 1 errors")
    assert (told.running, told.status, told.good) == ("c", None, False)
    assert "ERROR a: strays" in results.summary(told)
    assert "it ran c" in results.summary(told)


def test_the_page_gets_figures_and_failures_between_its_markers(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    marks = "<!-- other-host: begin -->\nold\n<!-- other-host: end -->"
    page.write_text(f"before\n{marks}\nafter\n")
    told = results.read(
        _lines(
            {"kernel": "6.1.0", "system": "Debian 12"},
            _test("tests/system/test_a.py::b", "failed", "assert 1 | 2\nmore"),
            {"status": 1},
        )
    )
    results.record(page, told, "-k x", "2025-01-02", "qemu")
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith("\nafter\n") and "old" not in text
    assert "1 failed" in text and "kernel 6.1.0" in text
    assert "| `system/test_a.py::b` | failed | assert 1 \\| 2 more |" in text
    page.write_text("nothing\n")
    with pytest.raises(ValueError):
        results.record(page, told, "", "2025-01-02", "qemu")


def test_named_tests_replace_the_default_and_other_arguments_select_from_it() -> None:
    assert "tests/unit" in command_line.pytest_arguments(["-k", "quota"])
    one = command_line.pytest_arguments(["tests/system/test_x.py::test_y"])
    assert "tests/unit" not in one and one[-1] == "tests/system/test_x.py::test_y"


def test_every_default_story_exists() -> None:
    missing = [word for word in command_line.default_arguments() if not (image.TOP / word).exists()]
    assert missing == []


@pytest.mark.parametrize("words", [["--hours", "0"], ["--run", "/nonexistent"], ["--nonsense"]])
def test_bad_options_are_refused_with_status_2(words: list[str]) -> None:
    with pytest.raises(SystemExit) as refused:
        command_line.options(words)
    assert refused.value.code == 2
