"""The warm service runs a command as the stub would, and never instead of it."""

import fcntl
import os
import signal
import sys
import time
from pathlib import Path

import pytest

from runtime.paths import Paths
from tools import client, service


def run_in_child(function):
    """Run ``function`` in a process of its own; return its exit status and what it printed."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.dup2(writer, 1)
        os.dup2(writer, 2)
        try:
            status = function()
        except BaseException:
            import traceback

            traceback.print_exc()
            status = 99
        os._exit(99 if status is None else status)
    os.close(writer)
    with open(reader, "rb") as stream:
        text = stream.read().decode()
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), text


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A root with a running service whose pctl is vzlist: a command that needs no container."""
    monkeypatch.setattr(service, "preload", lambda: None)
    monkeypatch.setitem(service.PROGRAMS, "pctl", "vzlist")
    monkeypatch.setitem(service.PROGRAMS, "vzctl", "tests_sleeper")
    Paths(tmp_path).conf_dir.mkdir(parents=True)
    Paths(tmp_path).ct_conf(101).write_text('NAME="web1"\n')
    pid = os.fork()
    if pid == 0:
        os.setsid()
        sys.modules["tools.tests_sleeper"] = Sleeper
        os._exit(service.serve(Paths(tmp_path), idle_s=20))
    deadline = time.monotonic() + 10
    while not Paths(tmp_path).socket("service").exists() and time.monotonic() < deadline:
        time.sleep(0.005)
    yield str(tmp_path)
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    os.waitpid(pid, 0)


class Sleeper:
    """A command that says it runs, and ends with 9 when it is interrupted."""

    @staticmethod
    def main(arguments):
        os.write(1, b"ready\n")
        try:
            time.sleep(20)
        except KeyboardInterrupt:
            return 9
        finally:
            os.write(1, b"unwound\n")
        return 0


def delegate(root, *words, program="pctl"):
    sock = client.connect(root)
    return None if sock is None else client.delegate(sock, program, list(words))


def test_a_command_prints_to_its_callers_descriptors_and_returns_its_status(root):
    status, text = run_in_child(lambda: delegate(root, "--root", root, "-aH", "-o", "ctid,name"))
    assert (status, text.split()) == (0, ["101", "web1"])
    status, text = run_in_child(lambda: delegate(root, "--root", root, "150"))
    assert status == 1
    assert "not found" in text


def test_working_directory_and_environment_are_the_callers(root, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VZ_ROOT", ".")
    status, text = run_in_child(lambda: delegate(root, "-a1"))
    assert (status, text) == (0, "101\n")


def test_a_signal_reaches_the_command(root):
    def interrupted():
        pid = os.getpid()
        if os.fork() == 0:
            time.sleep(0.5)
            os.kill(pid, signal.SIGINT)
            os._exit(0)
        return delegate(root, program="vzctl")

    status, text = run_in_child(interrupted)
    assert status == 9
    assert text == "ready\nunwound\n"


def test_a_command_unwinds_when_its_caller_is_killed(root):
    def killed():
        pid = os.getpid()
        if os.fork() == 0:
            time.sleep(0.5)
            os.kill(pid, signal.SIGKILL)
            os._exit(0)
        return delegate(root, program="vzctl")

    status, text = run_in_child(killed)
    assert status == -signal.SIGKILL
    assert text == "ready\nunwound\n"


def test_a_service_of_older_code_says_so_and_ends(root, monkeypatch):
    path = Paths(Path(root)).socket("service")
    # The running service was forked with the present fingerprint: change a file's time under it.
    module = service.__file__
    stat = os.stat(module)
    os.utime(module, ns=(stat.st_atime_ns, time.time_ns()))
    try:
        assert run_in_child(lambda: 0 if delegate(root, "-a") is None else 1)[0] == 0
        deadline = time.monotonic() + 5
        while path.exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not path.exists()
        assert client.connect(root) is None
    finally:
        os.utime(module, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def children(pid):
    """Return the children of a process but for the nursery of supervisors."""
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(word) for word in found if Path(f"/proc/{word}/comm").read_text() != "vz-nursery\n"]


def test_a_command_runs_though_the_process_kept_for_it_was_killed(root):
    (serving,) = children(os.getpid())
    assert run_in_child(lambda: delegate(root, "--root", root, "-a1"))[0] == 0
    deadline = time.monotonic() + 5
    while len(children(serving)) != 1 and time.monotonic() < deadline:
        time.sleep(0.01)
    (spare,) = children(serving)
    os.kill(spare, signal.SIGKILL)
    while children(serving) and time.monotonic() < deadline:
        time.sleep(0.01)
    status, text = run_in_child(lambda: delegate(root, "--root", root, "-a1"))
    assert (status, text.split()) == (0, ["101"])


def test_a_command_that_lasts_does_not_keep_the_next_service_away(root):
    (serving,) = children(os.getpid())
    asking = os.fork()
    if asking == 0:
        with open(os.devnull, "w") as null:
            os.dup2(null.fileno(), 1)
            os._exit(delegate(root, program="vzctl"))
    try:
        deadline = time.monotonic() + 5
        while len(children(serving)) != 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        os.kill(serving, signal.SIGKILL)
        path = Paths(Path(root)).socket("service")
        with open(path.with_suffix(".lock"), "w") as lock:
            while time.monotonic() < deadline:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    time.sleep(0.01)
            else:
                pytest.fail("the command still holds the lock of its service")
        assert client.connect(root) is None
    finally:
        os.kill(asking, signal.SIGKILL)
        os.waitpid(asking, 0)


def test_without_a_service_there_is_no_connection(tmp_path):
    assert client.connect(str(tmp_path)) is None


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--root", "/a", "list"], "/a"),
        (["list", "--root=/b"], "/b"),
        (["exec", "101", "--", "--root", "/c"], "/env"),
        (["list"], "/env"),
    ],
)
def test_the_stub_finds_the_root_as_the_command_does(words, expected):
    assert client.system_root(words, {b"VZ_ROOT": b"/env"}) == expected


def test_a_long_root_is_reachable(tmp_path, monkeypatch):
    monkeypatch.setattr(service, "preload", lambda: None)
    deep = tmp_path / ("d" * 120)
    Paths(deep).conf_dir.mkdir(parents=True)
    pid = os.fork()
    if pid == 0:
        os._exit(service.serve(Paths(deep), idle_s=10))
    try:
        deadline = time.monotonic() + 10
        sock = None
        while sock is None and time.monotonic() < deadline:
            sock = client.connect(str(deep))
            time.sleep(0.005)
        assert sock is not None
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
