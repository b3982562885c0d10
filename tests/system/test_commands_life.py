"""The life of a container as its administrator drives it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest

pytestmark = pytest.mark.root


def test_a_container_lives_from_create_to_destroy(system):
    system.run("vzpkg", "create", "cache", "busybox-1-x86_64")  # 29 where another test made it
    out = system.ok(
        "vzctl", "create", 101, "--ostemplate", "busybox", "--name", "web1",
        "--hostname", "web1.example.com", "--force",
    )  # fmt: skip
    assert out.splitlines() == [
        "Creating Container private area (busybox-1-x86_64)",
        "Performing postcreate actions",
        f"CT configuration saved to {system.paths.ct_conf(101)}",
        "Container private area was created",
    ]
    assert system.ok("vzctl", "status", 101) == "VEID 101 exist unmounted down\n"
    out = system.ok("vzctl", "start", "web1")
    assert out.splitlines()[0] == "Starting container..."
    assert "Container is mounted" in out
    assert "Container start in progress..." in out
    assert system.ok("vzctl", "status", "web1") == "VEID 101 exist mounted running\n"
    assert system.ok("vzctl", "exec", 101, "hostname") == "web1.example.com\n"
    assert system.ok("vzctl", "exec", 101, "id -u") == "0\n"
    system.fails(32, "vzctl", "start", 101)
    message = system.fails(41, "vzctl", "destroy", 101)
    assert "currently running" in message
    out = system.ok("vzctl", "stop", 101)
    assert out.splitlines()[0] == "Stopping container ..."
    assert "Container was stopped" in out
    assert "Container is unmounted" in out
    out = system.ok("vzctl", "destroy", 101)
    assert f"Destroying container private area: {system.paths.private(101)}" in out
    assert system.ok("vzctl", "status", 101) == "VEID 101 deleted unmounted down\n"
    assert (system.paths.conf_dir / "101.conf.destroyed").exists()
    assert not (system.paths.names / "web1").is_symlink()
    assert system.cgroups() == []


def test_lists_show_names_hosts_and_states(system):
    system.create(101, "busybox", "--name", "a", "--hostname", "a.example")
    system.create(102, "busybox", "--name", "b", "--hostname", "b.example")
    system.ok("vzctl", "start", 102)
    assert [line.split()[0] for line in system.ok("vzlist", "-H").splitlines()] == ["102"]
    assert [line.split()[0] for line in system.ok("vzlist", "-S", "-H").splitlines()] == ["101"]
    assert system.ok("vzlist", "-a1").split() == ["101", "102"]
    assert system.ok("vzlist", "-aH", "-o", "name", "-s", "-name").split() == ["b", "a"]
    assert system.ok("vzlist", "-aH", "-o", "ctid", "-h", "b*").split() == ["102"]
    assert system.ok("vzlist", "-aH", "-o", "ctid", "-N", "a").split() == ["101"]
    rows = json.loads(system.ok("vzlist", "-aj", "-o", "ctid,status,numproc"))
    assert [row["status"] for row in rows] == ["stopped", "running"]
    assert rows[0]["numproc"] is None and rows[1]["numproc"] >= 1
    head, row = system.ok("pctl", "list").splitlines()
    assert head.split() == ["STATUS", "IP_ADDR", "NAME"]
    assert row.split() == ["running", "-", "b"]
    inside = system.popen("vzctl", "exec", 102, "sleep 30", stdout=subprocess.DEVNULL)
    try:
        pid = 0
        deadline = time.monotonic() + 10
        while not pid and time.monotonic() < deadline:
            for candidate in system.processes():
                with open(f"/proc/{candidate}/cmdline", "rb") as file:
                    if file.read().startswith(b"sleep\x0030"):
                        pid = candidate
            time.sleep(0.05)
        assert system.ok("vzpid", pid, os.getpid()).splitlines() == [
            "Pid\tVEID\tName", f"{pid}\t102\tb", f"{os.getpid()}\t0\t",
        ]  # fmt: skip
    finally:
        inside.kill()
        inside.wait()


def test_exec_passes_streams_untouched_and_statuses_by_rule(system):
    system.create(101)
    system.ok("vzctl", "start", 101)
    blob = os.urandom(3 << 20)
    process = system.popen("vzctl", "exec2", 101, "cat; echo err >&2; exit 42",
                           stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)  # fmt: skip
    out, err = process.communicate(blob, timeout=60)
    assert (out == blob, err, process.returncode) == (True, b"err\n", 42)
    assert system.run("vzctl", "exec", 101, "exit 42").returncode == 8
    assert system.run("pctl", "exec", 101, "exit 42").returncode == 42
    assert system.run("vzctl", "exec2", 101, "kill -9 $$").returncode == 137
    assert system.run("vzctl", "exec3", 101, "nonesuch").returncode == 127
    assert system.run("vzctl", "exec3", 101, "/etc/passwd").returncode == 126
    assert system.ok("vzctl", "exec3", 101, "echo", "a  b", "$HOME") == "a  b $HOME\n"
    assert system.ok("vzctl", "exec", 101, "-", stdin=b"echo from stdin\n") == "from stdin\n"


def test_signals_are_relayed_to_the_command_inside(system):
    system.create(101)
    system.ok("vzctl", "start", 101)
    process = system.popen(
        "vzctl", "exec2", 101, "trap 'echo got; exit 5' TERM; echo ready; while :; do sleep 0.1; done",
        stdout=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=20)
    assert (out, process.returncode) == (b"got\n", 5)


def test_two_commands_on_one_container_one_wins(system):
    system.create(101)
    system.create(102)
    first = [system.popen("vzctl", "start", 101, stdout=subprocess.DEVNULL,
                          stderr=subprocess.DEVNULL) for _ in range(3)]  # fmt: skip
    codes = sorted(process.wait(60) for process in first)
    assert codes[0] == 0
    assert set(codes[1:]) <= {9, 32}
    both = [
        system.popen("vzctl", "restart", ctid, stdout=subprocess.DEVNULL) for ctid in (101, 102)
    ]
    assert [process.wait(60) for process in both] == [0, 0]


def test_settings_are_stored_only_with_save(system):
    system.create(101)
    conf = system.paths.ct_conf(101)
    before = conf.read_text()
    system.ok("vzctl", "set", 101, "--description", "one")
    assert conf.read_text() == before
    out = system.ok("vzctl", "set", 101, "--description", "one two", "--onboot", "yes", "--save")
    assert "Saved parameters for Container 101" in out
    assert json.loads(system.ok("vzlist", "-aj", "-o", "description,onboot")) == [
        {"description": "one two", "onboot": "yes"}
    ]
    system.ok("vzctl", "start", 101)
    system.ok("vzctl", "set", 101, "--hostname", "new.example", "--save")
    assert system.ok("vzctl", "exec", 101, "hostname") == "new.example\n"


def test_one_bad_value_of_several_changes_nothing(system):
    system.create(101)
    before = system.paths.ct_conf(101).read_text()
    system.fails(21, "vzctl", "set", 101, "--description", "x", "--onboot", "perhaps", "--save")
    assert system.paths.ct_conf(101).read_text() == before


def test_mounting_shows_the_tree_and_unmounting_hides_it(system):
    system.create(101)
    system.ok("vzctl", "mount", 101)
    root = system.paths.ct_root(101)
    assert (root / "etc/passwd").exists()
    assert system.ok("vzctl", "status", 101) == "VEID 101 exist mounted down\n"
    system.fails(41, "vzctl", "destroy", 101)
    system.ok("vzctl", "umount", 101)
    assert not (root / "etc/passwd").exists()


def test_a_change_is_the_containers_own(system):
    system.create(101)
    system.create(102)
    for ctid in (101, 102):
        system.ok("vzctl", "start", ctid)
    system.ok("vzctl", "exec", 101, "echo mine > /etc/passwd; rm /etc/group; mkdir /new")
    assert system.ok("vzctl", "exec", 101, "cat /etc/passwd") == "mine\n"
    assert "root" in system.ok("vzctl", "exec", 102, "cat /etc/passwd /etc/group")
    assert system.run("vzctl", "exec2", 102, "test -e /new").returncode == 1
    system.ok("vzctl", "restart", 101)
    assert system.ok("vzctl", "exec", 101, "cat /etc/passwd; ls -d /new") == "mine\n/new\n"
    assert system.run("vzctl", "exec2", 101, "test -e /etc/group").returncode == 1


def test_a_copy_is_independent_of_its_source(system):
    system.create(101, "busybox", "--name", "one")
    system.ok("vzctl", "start", 101)
    system.ok("vzctl", "exec", 101, "echo data > /data; sync")
    system.ok("pctl", "clone", 101, "--name", "two")
    copy = json.loads(system.ok("vzlist", "-aj", "-o", "ctid,name,uuid,status"))
    assert [row["name"] for row in copy] == ["one", "two"]
    assert copy[0]["uuid"] != copy[1]["uuid"]
    system.ok("vzctl", "start", "two")
    system.ok("vzctl", "exec", "two", "echo changed > /data")
    assert system.ok("vzctl", "exec", 101, "cat /data") == "data\n"


def test_a_running_container_is_renumbered(system):
    system.create(101, "busybox", "--name", "one")
    system.ok("vzctl", "start", 101)
    system.ok("vzctl", "exec", 101, "echo data > /data")
    system.ok("vzmlocal", "101:150")
    assert system.ok("vzctl", "status", "one") == "VEID 150 exist mounted running\n"
    assert system.ok("vzctl", "exec", 150, "cat /data") == "data\n"
    assert system.ok("vzctl", "status", 101) == "VEID 101 deleted unmounted down\n"


def test_the_server_starts_what_is_to_start_in_order(system):
    for ctid, order in ((101, 1), (102, 9), (103, 5)):
        system.create(ctid, "busybox", "--onboot", "yes")
        system.ok("vzctl", "set", ctid, "--bootorder", order, "--save")
    system.create(104, "busybox", "--onboot", "no")
    system.paths.global_config.write_text('VE_PARALLEL="1"\n')
    out = system.ok("vz", "start")
    assert out.splitlines()[-1] == "3 containers started"
    started = sorted((json.loads((system.paths.run / f"ct/{c}.json").read_text())["started_s"], c)
                     for c in (101, 102, 103))  # fmt: skip
    assert [ctid for _when, ctid in started] == [102, 103, 101]
    assert system.status(104)["running"] is False
    assert system.ok("vz", "stop", "--fast").splitlines()[-1] == "3 containers stopped"


def test_a_console_of_ones_own_resizes_and_returns_the_status(system):
    import fcntl
    import pty
    import struct
    import termios

    system.create(101)
    system.ok("vzctl", "start", 101)
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 33, 111, 0, 0))
    process = system.popen("vzctl", "enter", 101, stdin=slave, stdout=slave, stderr=slave,
                           start_new_session=True)  # fmt: skip
    os.close(slave)
    seen = bytearray()

    def read() -> None:
        try:
            while data := os.read(master, 65536):
                seen.extend(data)
        except OSError:
            return

    reader = threading.Thread(target=read, daemon=True)
    reader.start()

    def await_text(text: bytes) -> None:
        deadline = time.monotonic() + 20
        while text not in seen and time.monotonic() < deadline:
            time.sleep(0.02)
        assert text in seen, bytes(seen)

    os.write(master, b"stty size; tty; echo a$((1+1))b\n")
    await_text(b"33 111")
    await_text(b"/dev/pts/")
    await_text(b"a2b")
    fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 99, 0, 0))
    process.send_signal(signal.SIGWINCH)
    time.sleep(0.3)
    os.write(master, b"stty size\n")
    await_text(b"50 99")
    os.write(master, b"sleep 100\n")
    time.sleep(0.3)
    os.write(master, b"\x03")
    os.write(master, b"exit 7\n")
    assert process.wait(20) == 7
    os.close(master)


def test_passwords_are_set_in_running_and_in_stopped_containers_and_stored_nowhere(system):
    system.create(101)
    before = system.paths.ct_conf(101).read_text()
    system.fails(74, "vzctl", "set", 101, "--userpasswd", "nocolon")
    system.fails(74, "vzctl", "set", 101, "--userpasswd", "root:plain", "--crypted")
    system.ok("vzctl", "set", 101, "--userpasswd", "root:one two".replace(" ", "-"), "--save")
    assert system.status(101)["running"] is False
    assert system.paths.ct_conf(101).read_text() == before
    system.ok("vzctl", "start", 101)
    first = system.ok("vzctl", "exec", 101, "grep ^root: /etc/shadow")
    assert first.startswith("root:$")
    system.ok("vzctl", "set", 101, "--userpasswd", "bob:$6$abc$def", "--crypted")
    assert "bob:$6$abc$def:" in system.ok("vzctl", "exec", 101, "cat /etc/shadow")
    assert system.ok("vzctl", "exec", 101, "id -un bob").strip() == "bob"
    logged = system.paths.log.read_text()
    assert "one-two" not in logged
    assert "$6$abc" not in logged


def test_a_reinstalled_container_keeps_users_and_its_old_tree(system):
    system.create(101)
    system.ok("vzctl", "start", 101)
    system.ok("vzctl", "set", 101, "--userpasswd", "bob:secret")
    system.ok("vzctl", "exec", 101, "echo data > /data; rm /etc/group")
    system.ok("vzctl", "reinstall", 101)
    assert system.ok("vzctl", "exec", 101, "cat /old/data") == "data\n"
    assert system.run("vzctl", "exec2", 101, "test -e /data").returncode == 1
    assert system.ok("vzctl", "exec", 101, "id -un bob").strip() == "bob"
    system.ok("vzctl", "exec", 101, "test -e /etc/group")
    system.ok("vzctl", "reinstall", 101, "--skipbackup", "--resetpwdb")
    assert system.run("vzctl", "exec2", 101, "test -e /old || id bob").returncode == 1


def test_an_area_that_was_let_go_is_registered_again(system):
    system.create(101, "busybox", "--name", "one")
    private = system.paths.private(101)
    system.ok("pctl", "unregister", 101)
    assert system.ok("vzlist", "-a1") == ""
    assert (private / "root").is_dir()
    system.fails(140, "pctl", "register", str(system.root / "vz"), 150)
    system.ok("pctl", "register", private, 150)
    system.ok("vzctl", "start", "one")
    assert system.ok("vzlist", "-1") == "150\n"


def test_a_place_is_typed_as_the_server_or_as_a_configuration_names_it(system):
    system.create(101)
    places = {"/srv/areas": "srv/areas", str(system.root / "vz/areas"): "vz/areas"}
    for typed, place in places.items():
        system.ok("pctl", "move", 101, "--dst", typed)
        assert (system.root / place / "101/root").is_dir()
        assert f'VE_PRIVATE="/{place}/101"' in system.paths.ct_conf(101).read_text()
        system.ok("pctl", "unregister", 101)
        system.ok("pctl", "register", f"{typed}/101", 101)
        system.ok("vzctl", "start", 101)
        system.ok("vzctl", "stop", 101, "--fast")


def test_a_copy_that_was_killed_leaves_nothing_for_long(system):
    """Not its own program either, which would go on writing into what the next command removes."""
    system.create(101)
    data = system.paths.private(101) / "root/data"
    for number in range(3000):
        (data / f"{number % 50}").mkdir(parents=True, exist_ok=True)
        (data / f"{number % 50}/{number}").write_bytes(b"x" * 100)
    area = system.paths.private(102).parent
    for repair in (
        ("vzctl", "create", 102, "--ostemplate", "busybox", "--force"),
        ("vz", "start"),
    ):
        process = system.popen("pctl", "clone", 101, "--name", "102", stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 20
        while not list(area.glob(".tmp-102.*/root/data/7")):
            assert time.monotonic() < deadline and process.poll() is None
        for pid in system.processes():
            with suppress(ProcessLookupError, FileNotFoundError):
                if Path(f"/proc/{pid}/comm").read_text() != "vz-nursery\n":
                    os.kill(pid, signal.SIGKILL)
        process.kill()
        process.wait()
        system.ok(*repair)
        assert not list(area.glob(".tmp-*"))
        if repair[0] == "vzctl":
            assert sorted(os.listdir(area)) == ["101", "102"]
            system.ok("vzctl", "destroy", 102)
    assert os.listdir(area) == ["101"]
    assert os.listdir(system.paths.journal) == []


def test_events_tell_what_happened(system):
    system.create(101)
    system.ok("vzctl", "start", 101)
    system.ok("vzctl", "stop", 101, "--fast")
    seen = [json.loads(line)["what"] for line in system.ok("pctl", "events", "--json").splitlines()]
    assert seen.index("started") < seen.index("stopped")


def test_entering_without_a_terminal_reads_commands_to_the_end_of_the_input(system):
    system.create(101)
    system.ok("vzctl", "start", 101)
    done = system.run("vzctl", "enter", 101, stdin=b"tty; echo $((40+2))\necho last", timeout_s=30)
    assert done.stdout.splitlines() == ["not a tty", "42", "last"], done.stderr
    assert system.run("vzctl", "enter", 101, stdin=b"exit 9\necho no\n").returncode == 9
    assert system.run("vzctl", "enter", 101, stdin=b"").returncode == 0
