"""The pure parts of `./runtests other-host`: what the guest is made of, its command, its results."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import tarfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.otherhost import __main__ as command_line
from tests.otherhost import checkout, guest, image, results
from tests.otherhost.guest import Disk, End, Ports
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
        assert archive.getnames() == [
            "srv/pyvz/.gitignore",
            "srv/pyvz/run",
            "srv/asked/words",
            "srv/asked/files",
        ]
        entry = archive.getmember("srv/pyvz/run")
        assert (entry.mode & 0o777, entry.uid, entry.uname) == (0o755, 0, "root")
        words = archive.extractfile("srv/asked/words")
        assert words is not None and words.read() == b"a\0b\0"
        listed = archive.extractfile(checkout.LISTED.lstrip("/"))
        assert listed is not None and listed.read() == b"./.gitignore\0./run\0"


def test_only_the_guests_own_disk_can_be_written() -> None:
    disks = [Disk(Path("/x,y"), "root", "qcow2", read_only=False), Disk(Path("/t"), "templates")]
    argv = guest.command(Image(Path("/i")), disks, Acceleration.EMULATED, 3)
    drives = [argv[at + 1] for at, word in enumerate(argv) if word == "-drive"]
    assert drives[0].startswith("file=/x,,y,format=qcow2") and "read-only" not in drives[0]
    assert drives[1].endswith("read-only=on")
    assert "tcg,thread=multi" in argv and "max" in argv and argv[argv.index("-smp") + 1] == "3"
    native = guest.command(Image(Path("/i")), disks, Acceleration.KVM, 3)
    assert "kvm" in native and "host" in native


@contextmanager
def _answering(
    ports: Ports, answer: Callable[[bytes], None], *, stays: bool = True, orders: int = 1
) -> Iterator[None]:
    """A guest that reads orders, does what ``answer`` says, and goes if it does not stay."""
    ports.log.touch()
    ports.reports.write_bytes(b'{"ended": true}\n')
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(ports.orders))
        listening.listen()

        def serve() -> None:
            for _ in range(orders):
                connection, _address = listening.accept()
                with connection:
                    answer(connection.recv(100))
                    if stays:
                        connection.recv(100)  # until the other side closes

        thread = threading.Thread(target=serve)
        thread.start()
        yield
        thread.join()


def _carry_out(ports: Ports, timeout_s: float = 30) -> tuple[End, dict[str, bytes]]:
    order = ports.place / "order"
    order.write_bytes(b"do it")
    said = {"log": b"", "reports": b""}

    def tell(port: str, chunk: bytes) -> None:
        said[port] += chunk

    with guest.connected(ports) as there:
        assert there is not None
        return guest.carry_out(there, order, ports, tell, timeout_s), said


def test_an_order_ends_when_the_guest_says_so(tmp_path: Path) -> None:
    ports = Ports(tmp_path)

    def answer(order: bytes) -> None:
        ports.log.write_bytes(b"text of " + order)
        with open(ports.reports, "ab") as file:
            file.write(b'{"status": 0}\n{"ended": true}\n')

    with _answering(ports, answer):
        end, said = _carry_out(ports)
    assert end is End.DONE
    assert said == {"log": b"text of do it", "reports": b'{"status": 0}\n{"ended": true}\n'}


def test_an_order_that_got_lost_is_sent_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guest, "_HEARD_S", 0.3)
    monkeypatch.setattr(guest, "_NOTICED_S", 0.0)
    ports = Ports(tmp_path)
    taken = []

    def answer(order: bytes) -> None:
        taken.append(order)
        if len(taken) == 2:
            ports.log.write_bytes(b"begun")
            with open(ports.reports, "ab") as file:
                file.write(b'{"ended": true}\n')

    with _answering(ports, answer, orders=2):
        assert _carry_out(ports)[0] is End.DONE
    assert taken == [b"do it", b"do it"]


def test_an_order_ends_when_its_time_is_over(tmp_path: Path) -> None:
    with _answering(Ports(tmp_path), lambda _order: None):
        assert _carry_out(Ports(tmp_path), 0.5)[0] is End.LATE


def test_an_order_ends_with_the_guest(tmp_path: Path) -> None:
    with _answering(Ports(tmp_path), lambda _order: None, stays=False):
        assert _carry_out(Ports(tmp_path))[0] is End.GONE


def test_without_a_guest_there_is_no_connection(tmp_path: Path) -> None:
    for place in (tmp_path, tmp_path / "none"):
        with guest.connected(Ports(place)) as there:
            assert there is None


def test_qemus_own_failure_is_told(tmp_path: Path) -> None:
    with (
        pytest.raises(subprocess.CalledProcessError),
        guest.booted(["sh", "-c", "exit 1"], Ports(tmp_path)),
    ):
        pass


def test_the_guest_is_ended_on_the_way_out(tmp_path: Path) -> None:
    argv = ["sh", "-c", "touch orders; exec sleep 60"]
    with guest.booted(argv, Ports(tmp_path)) as process:
        assert process.poll() is None
    assert process.poll() is not None


def test_results_keep_the_worst_of_a_test_and_what_was_running() -> None:
    rows = _lines(
        {"kernel": "6.1.0", "system": "Debian 12", "processors": 2},
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


_MARKS = "<!-- other-host: begin -->\nold\n<!-- other-host: end -->"


def _told(*tests: dict[str, object]) -> results.Results:
    system = {"kernel": "6.1.0", "system": "Debian 12", "processors": 2}
    return results.read(_lines(system, *tests, {"status": 1}))


@pytest.fixture
def page(tmp_path: Path) -> Path:
    """The page of a checkout with two files of tests."""
    for name in ("tests/system", "docs"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "tests/system/test_a.py").write_text("def b(): pass\ndef c(): pass\n")
    (tmp_path / "tests/system/test_z.py").write_text("")
    page = tmp_path / "docs/page.md"
    page.write_text(f"before\n{_MARKS}\nafter\n")
    return page


def test_the_page_gets_figures_and_failures_between_its_markers(page: Path) -> None:
    told = _told(_test("tests/system/test_a.py::b[1]", "failed", "assert 1 | 2\nmore"))
    results.record(page, page.with_name("store"), told, "2025-01-02", "emulated")
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith("\nafter\n") and "old" not in text
    assert "1 failed" in text and "kernel 6.1.0, emulated, 2 processors" in text
    assert "| `system/test_a.py::b[1]` | failed | assert 1 \\| 2 more |" in text
    assert "Never recorded there: `test_z.py`." in text
    page.write_text("nothing\n")
    with pytest.raises(ValueError):
        results.record(page, page.with_name("store"), told, "2025-01-02", "emulated")


def test_outcomes_of_several_runs_are_merged_and_the_newest_counts(page: Path) -> None:
    store = page.with_name("store")
    first = [_test(f"tests/system/test_a.py::{name}", "failed") for name in ("b", "c", "gone")]
    results.record(page, store, _told(*first), "2025-01-02", "emulated")
    results.record(
        page, store, _told(_test("tests/system/test_a.py::b", "passed")), "2025-02-03", "emulated"
    )
    text = page.read_text()
    assert "| test_a.py | 1 | 1 | 0 | 2025-02-03 |" in text
    assert "`system/test_a.py::c` | failed" in text and "::gone" not in text


def test_what_the_page_tells_outlives_the_store(page: Path) -> None:
    store = page.with_name("store")
    told = _told(*(_test(f"tests/system/test_a.py::{name}", "failed") for name in ("b", "c")))
    results.record(page, store, told, "2025-01-02", "emulated")
    store.unlink()
    results.record(
        page, store, _told(_test("tests/system/test_a.py::b", "passed")), "2025-02-03", "emulated"
    )
    text = page.read_text()
    assert "| test_a.py | 0 | 2 | 0 | 2025-01-02 |" in text and "0 passed, 2 failed" in text
    assert "`system/test_a.py::b` | failed" in text
    both = [_test(f"tests/system/test_a.py::{name}", "passed") for name in ("b", "c")]
    results.record(page, store, _told(*both), "2025-03-04", "emulated")
    assert "| test_a.py | 2 | 0 | 0 | 2025-03-04 |" in page.read_text()


def test_named_tests_replace_the_default_and_other_arguments_select_from_it() -> None:
    assert "tests/unit" in command_line.pytest_arguments(["-k", "quota"])
    one = command_line.pytest_arguments(["tests/system/test_x.py::test_y"])
    assert "tests/unit" not in one and one[-1] == "tests/system/test_x.py::test_y"


def test_every_default_story_exists() -> None:
    missing = [word for word in command_line.default_arguments() if not (image.TOP / word).exists()]
    assert missing == []


@pytest.mark.parametrize(
    "words",
    [
        ["--hours", "0"],
        ["--processors", "0"],
        ["--run", "/nonexistent"],
        ["--stay", "--record"],
        ["--nonsense"],
    ],
)
def test_bad_options_are_refused_with_status_2(words: list[str]) -> None:
    with pytest.raises(SystemExit) as refused:
        command_line.options(words)
    assert refused.value.code == 2
