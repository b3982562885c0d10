"""What a container of a tiny template does: its inits, consoles, scripts, devices, limits."""

from __future__ import annotations

import os
import pty
import signal
import threading
import time
from pathlib import Path

import pytest

from runtime import state
from runtime.cgroups import Cgroup
from tests.system.conftest import System

pytestmark = pytest.mark.root

CT = 101


@pytest.fixture
def made(system: System) -> System:
    """A system with one stopped container."""
    system.create(CT)
    return system


def append(system: System, line: str) -> None:
    with open(system.paths.ct_conf(CT), "a") as file:
        file.write(line + "\n")


def script(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/sh\n" + text)
    path.chmod(0o755)


def test_action_scripts_run_in_their_order_on_the_server_and_inside(made: System) -> None:
    log = made.root / "order"
    conf = made.paths.conf_dir
    for action in ("premount", "mount", "umount", "postumount"):
        script(conf / f"vps.{action}", f"echo vps.{action} $VEID >> {log}\n")
        script(conf / f"{CT}.{action}", f"echo ct.{action} $(basename $VE_CONFFILE) >> {log}\n")
    script(conf / f"{CT}.start", "echo started $VEID $(basename $VE_CONFFILE) > /started-inside\n")
    made.ok("vzctl", "start", CT)
    assert made.ok("vzctl", "exec", CT, "cat /started-inside") == f"started {CT} {CT}.conf\n"
    script(conf / f"{CT}.stop", "echo stopped > /stopped-inside\n")
    made.ok("vzctl", "stop", CT)
    assert (made.paths.private(CT) / "root/stopped-inside").exists()
    expected = []
    for action in ("premount", "mount", "umount", "postumount"):
        expected += [f"vps.{action} {CT}", f"ct.{action} {CT}.conf"]
    assert log.read_text().splitlines() == expected


def test_a_failing_mount_script_undoes_the_start(made: System) -> None:
    script(made.paths.conf_dir / f"{CT}.mount", "echo no licence; exit 3\n")
    said = made.fails(79, "vzctl", "start", CT)
    assert "returned 3" in said and "no licence" in said
    assert made.status(CT) == {
        "ctid": CT, "exists": True, "mounted": False, "running": False, "suspended": False,
        "paused": False,
    }  # fmt: skip


def test_init_reboots_and_powers_off_from_inside(made: System) -> None:
    made.ok("vzctl", "start", CT)
    first = state.load(made.paths, CT)
    assert first is not None
    made.ok("vzctl", "exec", CT, "touch /tmp/before; reboot")
    deadline = time.monotonic() + 15
    while time.monotonic() < deadline:
        now = state.load(made.paths, CT)
        if now is not None and now.init not in (None, first.init) and now.phase == "running":
            break
        time.sleep(0.05)
    else:
        pytest.fail("it did not come back")
    assert now is not None and now.supervisor == first.supervisor
    made.ok("vzctl", "exec", CT, "poweroff")
    while made.status(CT)["mounted"] and time.monotonic() < deadline + 15:
        time.sleep(0.05)
    assert not made.status(CT)["running"] and not made.status(CT)["mounted"]


def test_allowreboot_no_turns_a_reboot_into_a_stop(made: System) -> None:
    append(made, 'ALLOWREBOOT="no"')
    made.ok("vzctl", "start", CT)
    made.ok("vzctl", "exec", CT, "reboot")
    deadline = time.monotonic() + 15
    while made.status(CT)["mounted"] and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not made.status(CT)["mounted"]


def test_stop_kills_what_ignores_its_inits_signal(made: System) -> None:
    append(made, 'STOP_TIMEOUT="1"')
    made.ok("vzctl", "start", CT)
    run = state.load(made.paths, CT)
    assert run is not None and run.init is not None
    made.ok(
        "vzctl",
        "exec",
        CT,
        "sh -c 'trap \"\" TERM; while :; do sleep 100; done' >/dev/null 2>&1 </dev/null &",
    )
    os.kill(run.init.pid, signal.SIGSTOP)
    begin = time.monotonic()
    said = made.ok("vzctl", "stop", CT)
    assert "Killing container" in said
    assert 0.9 < time.monotonic() - begin < 10


def test_runscript_runs_in_a_stopped_container_and_leaves_it_stopped(
    made: System, tmp_path: Path
) -> None:
    file = tmp_path / "script"
    script(file, "hostname > /by-script; test $$ != 1; exit 5\n")
    assert made.run("vzctl", "runscript", CT, file).returncode == 5
    assert not made.status(CT)["mounted"]
    assert (made.paths.private(CT) / "root/by-script").exists()


def test_the_system_console_is_attached_and_left_with_its_keys(made: System) -> None:
    made.ok("vzctl", "start", CT)
    master, slave = pty.openpty()
    process = made.popen(
        "vzctl", "console", CT, 1, stdin=slave, stdout=slave, stderr=slave, start_new_session=True
    )
    os.close(slave)
    seen = bytearray()

    def read() -> None:
        try:
            while data := os.read(master, 65536):
                seen.extend(data)
        except OSError:
            return

    threading.Thread(target=read, daemon=True).start()
    deadline = time.monotonic() + 10
    while b"Attached" not in seen and time.monotonic() < deadline:
        time.sleep(0.02)
    assert b"Attached" in seen, bytes(seen)
    time.sleep(0.2)
    made.ok("vzctl", "exec", CT, "echo hello from inside > /dev/console")
    while b"hello from inside" not in seen and time.monotonic() < deadline:
        time.sleep(0.02)
    assert b"hello from inside" in seen, bytes(seen)
    os.write(master, b"\x1b.")
    assert process.wait(10) == 0
    os.close(master)
    # Given back: output flows on without anybody attached, and the next one gets it.
    made.ok("vzctl", "exec", CT, "for i in 1 2 3; do head -c 20000 /dev/zero > /dev/console; done")


def test_devices_are_those_of_the_list_and_one_that_is_granted(made: System) -> None:
    made.ok("vzctl", "start", CT)
    assert made.ok("vzctl", "exec", CT, "head -c 4 /dev/urandom | wc -c").strip() == "4"
    assert made.run("vzctl", "exec", CT, "ls /dev/kmsg").returncode != 0
    made.ok("vzctl", "stop", CT, "--fast")
    append(made, 'DEVNODES="kmsg:r"')
    made.ok("vzctl", "start", CT)
    assert made.ok("vzctl", "exec", CT, "ls /dev/kmsg") == "/dev/kmsg\n"


def test_a_bind_mount_shows_a_directory_with_the_containers_ids(made: System) -> None:
    outside = made.root / "shared"
    outside.mkdir()
    (outside / "file").write_text("from the server")
    append(made, f'BINDMOUNT="{outside}:/srv/shared :/var/own {outside}:/srv/fixed,ro"')
    made.ok("vzctl", "start", CT)
    assert made.ok("vzctl", "exec", CT, "cat /srv/shared/file") == "from the server"
    made.ok("vzctl", "exec", CT, "echo x > /srv/shared/new; chown 5:6 /srv/shared/new")
    found = (outside / "new").stat()
    assert (found.st_uid, found.st_gid) == (5, 6)
    assert made.run("vzctl", "exec", CT, "echo x > /srv/fixed/no").returncode != 0
    made.ok("vzctl", "exec", CT, "echo kept > /var/own/kept")
    made.ok("vzctl", "restart", CT, "--fast")
    assert made.ok("vzctl", "exec", CT, "cat /var/own/kept") == "kept\n"


def test_a_frozen_container_stands_still_and_goes_on(made: System) -> None:
    made.ok("vzctl", "start", CT)
    made.ok("vzctl", "exec", CT, "while :; do echo $((i+=1)) > /count; sleep 0.01; done >&- 2>&- &")
    group = Cgroup(made.paths.tag, CT)
    count = made.paths.private(CT) / "root/count"
    time.sleep(0.3)
    group.freeze()
    before = count.read_text()
    time.sleep(0.2)
    assert count.read_text() == before
    group.thaw()
    time.sleep(0.2)
    assert count.read_text() != before


def test_uptime_begins_with_the_container(made: System) -> None:
    made.ok("vzctl", "start", CT)
    assert float(made.ok("vzctl", "exec", CT, "cat /proc/uptime").split()[0]) < 60


def test_the_private_area_without_its_template_says_which_layer_is_gone(made: System) -> None:
    layers = made.paths.private(CT) / "templates/layers"
    layers.write_text("gone/for/good\n")
    assert "gone/for/good" in made.fails(91, "vzctl", "start", CT)
    layers.write_text("../../../etc\n")
    made.fails(47, "vzctl", "start", CT)
    made.ok("vzctl", "destroy", CT)


def test_fifty_containers_leave_nothing_behind(system: System) -> None:
    ids = range(101, 151)
    for ctid in ids:
        system.create(ctid)
        system.ok("vzctl", "start", ctid)
    firsts = {state.load(system.paths, ctid).extra["first_id"] for ctid in ids}  # type: ignore[union-attr]  # they run
    assert len(firsts) == len(ids), "two containers share user ids"
    for ctid in ids:
        system.ok("vzctl", "stop", ctid, "--fast")
    assert system.strays() == [stray for stray in system.strays() if "supervisors" in stray]


def test_what_is_run_inside_has_the_rights_the_container_was_started_with(system: System) -> None:
    system.create(CT)
    system.ok("vzctl", "start", CT)
    show = "grep CapBnd /proc/self/status /proc/1/status | cut -f2 | sort -u"
    started = system.ok("vzctl", "exec", CT, show).split()
    assert len(started) == 1
    system.ok("vzctl", "set", CT, "--capability", "net_raw:off", "--save", "--setmode", "ignore")
    assert system.ok("vzctl", "exec", CT, show).split() == started
    system.ok("vzctl", "restart", CT)
    assert int(system.ok("vzctl", "exec", CT, show), 16) == int(started[0], 16) & ~(1 << 13)
    system.ok("vzctl", "stop", CT, "--fast")


def test_an_old_systemd_finds_the_hierarchy_it_knows(made: System) -> None:
    tree = made.paths.private(CT) / "root"
    (tree / "lib/systemd").mkdir(parents=True)
    (tree / "sbin").mkdir(exist_ok=True)
    # What counts is what the init is called and that it has no library of a newer one.
    script = tree / "lib/systemd/systemd"
    script.write_text(
        "#!/bin/sh\nmount >/seen\nmkdir /sys/fs/cgroup/systemd/init.scope\nsleep 1000\n"
    )
    script.chmod(0o755)
    (tree / "sbin/init").unlink(missing_ok=True)
    (tree / "sbin/init").symlink_to("/lib/systemd/systemd")
    told = made.run("vzctl", "start", CT)
    if not Cgroup(made.paths.tag, CT).has_legacy:
        assert "older than cgroup v2" in told.stderr
        made.ok("vzctl", "stop", CT, "--fast")
        return
    seen = made.ok(
        "vzctl", "exec", CT, "sleep 0.5; cat /seen; ls -d /sys/fs/cgroup/systemd/init.scope"
    )
    assert "on /sys/fs/cgroup/systemd type cgroup" in seen
    assert "init.scope" in seen
    made.ok("vzctl", "stop", CT, "--fast")
