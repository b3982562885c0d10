"""Every documented exit status is provoked through the command line, here or where named."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from runtime import dists, errors, inside
from tests.system.conftest import BIN

pytestmark = pytest.mark.root

ROOT = Path(__file__).resolve().parents[2]
#: Status → what provokes it: a function of the system that yields the words of the command.
Provoked = Callable[..., Iterator[tuple[object, ...]]]
CASES: list[tuple[int, Provoked]] = []
#: Those whose provocation has a test of its own: file below tests/, function.
ELSEWHERE = {
    4: ("unit/tools/test_command.py", "test_a_server_without_memory_is_code_4"),
    6: ("unit/runtime/test_idmap.py", "test_when_all_ranges_are_taken_it_is_code_6"),
    15: ("system/test_exit_codes.py", "test_a_program_inside_that_does_not_end_is_code_15"),
    25: ("unit/runtime/net/test_rates.py", "test_what_is_unset_has_its_own_code"),
    26: ("unit/runtime/net/test_rates.py", "test_what_is_unset_has_its_own_code"),
    30: ("unit/runtime/net/test_rates.py", "test_what_is_unset_has_its_own_code"),
    33: ("system/test_vm_life.py", "test_pause_stops_time_inside_and_resume_goes_on"),
    46: (
        "system/test_commands_bad_input.py",
        "test_a_full_disk_is_code_46_and_leaves_nothing",
    ),
    78: (
        "system/test_net_containers.py",
        "test_bad_and_taken_addresses_have_the_documented_codes",
    ),
    80: ("unit/runtime/net/test_rates.py", "test_what_is_unset_has_its_own_code"),
    104: (
        "system/test_net_devices.py",
        "test_what_is_not_the_containers_to_have_is_refused",
    ),
}
#: What needs the network of a server, or a machine: provoked where those are built.
NOT_OF_CONTAINERS = {34, 35, 54, 152, 153, 154, 155, 156, 158, 159}


def case(code: int) -> Callable[[Provoked], Provoked]:
    """Enter a provocation of ``code`` into the table."""

    def enter(function: Provoked) -> Provoked:
        CASES.append((code, contextmanager(function)))
        return function

    return enter


@pytest.fixture(scope="module")
def system(shared_system):
    """A system with container 101 stopped and 102 running."""
    shared_system.create(101)
    shared_system.create(102)
    shared_system.ok("vzctl", "start", 102)
    return shared_system


@contextmanager
def configured(system, ctid: int, line: str) -> Iterator[None]:
    """Add a line to a container's configuration for the time of a block."""
    conf = system.paths.ct_conf(ctid)
    before = conf.read_text()
    conf.write_text(f"{before}{line}\n")
    try:
        yield
    finally:
        conf.write_text(before)


@contextmanager
def server(system, text: str) -> Iterator[None]:
    """Have ``text`` as vz.conf for the time of a block."""
    system.paths.global_config.write_text(text)
    try:
        yield
    finally:
        system.paths.global_config.unlink()


@contextmanager
def script(path: Path, text: str) -> Iterator[None]:
    """Have an executable script for the time of a block."""
    path.write_text(text)
    path.chmod(0o755)
    try:
        yield
    finally:
        path.unlink()


@contextmanager
def immutable(path: Path) -> Iterator[None]:
    """Let the file system refuse every change of ``path`` for the time of a block."""
    done = subprocess.run(["chattr", "+i", path], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"chattr does not work here: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["chattr", "-i", path], check=True)


def covered(places: list[Path], *words: object) -> tuple[object, ...]:
    """Return a command that runs with nothing in the directories ``places``, for itself alone."""
    mounts = "".join(f"mount -t tmpfs none {place} && " for place in places)
    inner = [BIN / str(words[0]), *words[1:]]
    return ("/usr/bin/unshare", "-m", "/bin/sh", "-c", f'{mounts}exec "$@"', "sh", *inner)


def groups(system, ctid: int) -> list[Path]:
    return [group for group in system.cgroups() if group.name == str(ctid)]


@case(1)
def less_memory_than_it_uses(system):
    system.ok("vzctl", "exec", 102, "dd if=/dev/zero of=/dev/shm/x bs=1M count=8 2>/dev/null")
    yield ("vzctl", "set", 102, "--ram", "1M", "--swap", "0")
    system.ok("vzctl", "exec", 102, "rm /dev/shm/x")


@case(2)
def a_cpu_controller_that_refuses(system):
    yield covered(groups(system, 102), "vzctl", "set", 102, "--cpuunits", 500)


@case(3)
def a_server_without_an_init(system):
    yield ("vz", "install")


@case(5)
def a_feature_no_kernel_has(system):
    yield ("vzctl", "set", 101, "--features", "nfs:on", "--save")


@case(7)
def a_bind_mount_where_nothing_can_be_made(system):
    with configured(system, 101, f'BINDMOUNT="{system.root}/vz:/proc/x"'):
        yield ("vzctl", "start", 101)


@case(8)
def a_command_inside_that_fails(system):
    done = system.run("vzctl", "exec", 102, "echo failed >&2; false")
    assert (done.returncode, done.stderr) == (8, "failed\n")
    yield ("vzctl", "exec", 102, "echo failed >&2; false")


@case(9)
def another_command_at_work(system):
    with open(system.paths.lock_dir / "101.lck", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield ("vzctl", "start", 101)


@case(10)
def a_vz_conf_that_is_a_directory(system):
    system.paths.global_config.mkdir()
    yield ("vzctl", "start", 101)
    system.paths.global_config.rmdir()


@case(11)
def a_script_that_is_not_there(system):
    yield ("vzctl", "runscript", 102, "/nonexistent")


@case(12)
def not_root(system):
    yield ("/usr/bin/setpriv", "--reuid=65534", "--clear-groups", BIN / "vzctl", "start", 101)


@case(12)
def not_root_and_only_looking(system):
    yield ("/usr/bin/setpriv", "--reuid=65534", "--clear-groups", BIN / "vzctl", "status", 101)


@case(13)
def a_capability_the_kernel_does_not_know(system):
    with configured(system, 101, 'CAPABILITY="FLY:on"'):
        yield ("vzctl", "start", 101)


@case(14)
def a_container_nobody_made(system):
    yield ("vzctl", "start", 999)


@case(16)
def suspending(system):
    yield ("vzctl", "suspend", 102)


@case(17)
def resuming_what_runs(system):
    yield ("vzctl", "resume", 102)


@case(20)
def an_unknown_option(system):
    yield ("vzctl", "start", 101, "--frobnicate")


@case(21)
def soft_over_hard(system):
    yield ("vzctl", "set", 101, "--diskspace", "2G:1G", "--save")


@case(22)
def no_mount_point(system):
    with configured(system, 101, 'VE_ROOT=""'):
        yield ("vzctl", "start", 101)


@case(23)
def no_private_area_named(system):
    with configured(system, 101, "VE_PRIVATE="):
        yield ("vzctl", "destroy", 101)


@case(23)
def the_servers_root_as_private_area(system):
    with configured(system, 101, 'VE_PRIVATE="/vz/.."'):
        yield ("vzctl", "destroy", 101)


@case(24)
def no_template_area(system):
    with server(system, 'TEMPLATE=""\n'):
        yield ("vzctl", "start", 101)


@case(27)
def a_hash_of_nobodys_password(system):
    yield ("vzctl", "set", 101, "--crypted")


@case(29)
def no_template(system):
    with server(system, 'DEF_OSTEMPLATE=""\n'):
        yield ("vzctl", "create", 150, "--force")


@case(31)
def stopping_what_is_stopped(system):
    yield ("vzctl", "stop", 101)


@case(32)
def starting_what_runs(system):
    yield ("vzctl", "start", 102)


@case(40)
def unmounting_what_is_not_mounted(system):
    yield ("vzctl", "umount", 101)


@case(41)
def destroying_what_runs(system):
    yield ("vzctl", "destroy", 102)


@case(43)
def a_private_area_that_is_gone(system):
    with configured(system, 101, 'VE_PRIVATE="/vz/private/gone"'):
        yield ("vzctl", "start", 101)


@case(44)
def creating_what_exists(system):
    yield ("vzctl", "create", 101, "--force")


@case(47)
def a_private_area_without_layers(system):
    layers = system.paths.private(101) / "templates/layers"
    layers.rename(layers.with_name("away"))
    yield ("vzctl", "start", 101)
    layers.with_name("away").rename(layers)


@case(48)
def a_private_area_below_a_file(system):
    (system.root / "file").touch()
    yield ("vzctl", "create", 150, "--private", "/file/x", "--force")


@case(49)
def a_mount_point_below_a_file(system):
    (system.root / "file").touch()
    with configured(system, 101, 'VE_ROOT="/file/root"'):
        yield ("vzctl", "mount", 101)


@case(50)
def no_fuse(system):
    command = f'mount --bind /dev/null /dev/fuse && exec {BIN}/vzctl mount "$1"'
    yield ("/usr/bin/unshare", "-m", "/bin/sh", "-c", command, "sh", 101)


@case(51)
def a_tree_in_use(system):
    system.ok("vzctl", "mount", 101)
    user = subprocess.Popen(["sleep", "60"], cwd=system.paths.ct_root(101))
    yield ("vzctl", "umount", 101)
    user.send_signal(signal.SIGKILL)
    user.wait()
    system.ok("vzctl", "umount", 101)


@case(52)
def a_file_that_cannot_be_deleted(system):
    system.create(150)
    locked = system.paths.private(150) / "root/locked"
    locked.touch()
    with immutable(locked.parent):
        yield ("vzctl", "destroy", 150)
        for place in system.paths.private_dir.glob("*/root"):
            subprocess.run(["chattr", "-i", place], check=True)
        system.ok("vzctl", "destroy", 150)
        locked.parent.mkdir(parents=True)
    shutil.rmtree(system.paths.private(150))


@case(60)
def quota_that_is_on(system):
    yield ("vzctl", "quotaon", 102)


@case(61)
def a_quota_file_that_is_a_directory(system):
    file = system.paths.quota_file(101)
    file.unlink(missing_ok=True)
    file.mkdir(parents=True)
    yield ("vzctl", "start", 101)
    file.rmdir()


@contextmanager
def broken_quota(system) -> Iterator[None]:
    """Have a quota file of 102 nobody can read for the time of a block."""
    file = system.paths.quota_file(102)
    held = file.with_name("held")
    file.rename(held)
    file.write_bytes(b"junk" * 1000)
    try:
        yield
    finally:
        held.rename(file)


@case(62)
def a_quota_file_that_is_damaged(system):
    with broken_quota(system):
        yield ("vzctl", "set", 102, "--diskspace", "1G")


@case(63)
def counting_without_disk_space(system):
    with configured(system, 101, "DISKSPACE="):
        yield ("vzctl", "quotainit", 101)


@case(64)
def counting_without_inodes(system):
    with configured(system, 101, "DISKINODES="):
        yield ("vzctl", "quotainit", 101)


@case(65)
def a_quota_file_that_is_damaged_for_users(system):
    with broken_quota(system):
        yield ("vzctl", "set", 102, "--quotaugidlimit", 10)


@case(66)
def quota_that_is_off(system):
    yield ("vzctl", "quotaoff", 101)


@case(67)
def counting_what_is_mounted(system):
    yield ("vzctl", "quotainit", 102)


@case(70)
def a_bad_host_name(system):
    yield ("vzctl", "set", 101, "--hostname", "bad host", "--save")


@case(71)
def an_address_that_is_none(system):
    yield ("vzctl", "set", 101, "--ipadd", "10.0.0.300", "--save")


@case(72)
def a_name_server_that_is_none(system):
    yield ("vzctl", "set", 101, "--nameserver", "example", "--save")


@case(73)
def a_search_domain_that_is_none(system):
    yield ("vzctl", "set", 101, "--searchdomain", "not a/domain", "--save")


@case(74)
def a_password_without_a_user(system):
    yield ("vzctl", "set", 101, "--userpasswd", "secret")


@case(77)
def a_lock_directory_that_is_a_file(system):
    lock = system.paths.lock_dir
    lock.rename(lock.with_name("away"))
    lock.touch()
    yield ("vzctl", "start", 101)
    lock.unlink()
    lock.with_name("away").rename(lock)


@case(79)
def a_mount_script_that_fails(system):
    with script(system.paths.conf_dir / "101.mount", "#!/bin/sh\nexit 1\n"):
        yield ("vzctl", "start", 101)


@case(81)
def a_table_of_classes_that_is_none(system):
    (system.root / "classes").write_text("everything\n")
    yield ("vztactl", "class_load", system.root / "classes")


@case(82)
def a_sample_nobody_has(system):
    yield ("vzctl", "set", 101, "--applyconfig", "nonesuch", "--save")


@case(85)
def registering_what_has_no_configuration(system):
    area = system.root / "vz/foreign"
    (area / "root").mkdir(parents=True)
    (area / "ve.conf").write_bytes(b"\x7fELF\0")
    yield ("pctl", "register", area, 150)
    shutil.rmtree(area)


@case(86)
def a_device_the_server_has_not(system):
    yield ("vzctl", "set", 102, "--devnodes", "nonesuch:rw")


@case(91)
def a_template_nobody_has(system):
    yield ("vzctl", "create", 150, "--ostemplate", "nonesuch-1-x86_64", "--force")


@case(92)
def damage_that_cannot_be_undone(system):
    cat = system.paths.private(101) / "root/bin/cat"
    cat.parent.mkdir(exist_ok=True)
    cat.write_text("damaged")
    with immutable(cat):
        yield ("vzctl", "recover", 101)
    system.ok("vzctl", "recover", 101)
    assert not cat.exists()


@case(94)
def a_reinstall_script_that_fails(system):
    with script(system.paths.conf_dir / "vps.reinstall", "#!/bin/sh\nexit 1\n"):
        yield ("vzctl", "reinstall", 101)


@case(102)
def a_configure_script_that_fails(system):
    with script(system.paths.conf_dir / "vps.configure", "#!/bin/sh\nexit 1\n"):
        yield ("vzctl", "reinstall", 101)


@case(105)
def a_container_that_may_not_start(system):
    with configured(system, 101, 'DISABLED="yes"'):
        yield ("vzctl", "start", 101)


@case(106)
def a_module_of_iptables_nobody_knows(system):
    yield ("vzctl", "set", 101, "--iptables", "ipt_nonesuch", "--save")


@case(107)
def no_distribution_at_all(system):
    yield covered([dists.SHIPPED], "vzctl", "set", 102, "--userpasswd", "root:x")


@contextmanager
def distribution(system, text: str) -> Iterator[None]:
    """Have a distribution of 102 described by ``text`` for the time of a block."""
    conf = system.paths.dists / "mine-1.conf"
    system.paths.dists.mkdir(parents=True, exist_ok=True)
    conf.write_text(text)
    try:
        with configured(system, 102, 'DISTRIBUTION="mine-1"'):
            yield
    finally:
        conf.unlink()


@case(108)
def a_distribution_without_a_script(system):
    with distribution(system, "SET_USERPASS=nonesuch.sh\n"):
        yield ("vzctl", "set", 102, "--userpasswd", "root:x")


@case(109)
def a_sample_with_a_broken_line(system):
    sample = system.paths.sample("broken")
    sample.write_text("this is no assignment\n")
    yield ("vzctl", "set", 101, "--applyconfig", "broken", "--save")
    sample.unlink()


@case(133)
def services_that_do_not_come_up(system):
    system.create(151)
    system.ok("vzctl", "mount", 151)
    root = system.paths.ct_root(151)
    (root / "lib/systemd").mkdir(parents=True, exist_ok=True)
    for place, text in (
        (root / "lib/systemd/systemd", "#!/bin/sh\nsleep 1\n"),
        (root / "bin/systemctl", "#!/bin/sh\nsleep 60\n"),
    ):
        place.write_text(text)
        place.chmod(0o755)
    (root / "sbin/init").unlink(missing_ok=True)
    (root / "sbin/init").symlink_to("/lib/systemd/systemd")
    system.ok("vzctl", "umount", 151)
    yield ("vzctl", "start", 151, "--wait")
    system.run("vzctl", "stop", 151, "--fast")
    system.ok("vzctl", "destroy", 151)


@case(135)
def a_view_that_cannot_be_told(system):
    told = system.paths.run / "procview/102.json"
    told.rename(told.with_name("away"))
    told.mkdir()
    yield ("vzctl", "set", 102, "--meminfo", "pages:1000")
    told.rmdir()
    told.with_name("away").rename(told)


@case(136)
def an_adapter_with_a_bad_name(system):
    yield ("vzctl", "set", 101, "--netif_add", "a/b", "--save")


@case(137)
def a_name_with_a_slash(system):
    yield ("vzctl", "set", 101, "--name", "a/b", "--save")


@case(139)
def a_configuration_nobody_may_replace(system):
    with immutable(system.paths.ct_conf(101)):
        yield ("vzctl", "set", 101, "--onboot", "yes", "--save")


@case(140)
def registering_what_is_no_private_area(system):
    yield ("pctl", "register", system.root / "vz", 150)


@case(142)
def a_private_area_that_takes_no_configuration(system):
    conf = system.paths.private(101) / "ve.conf"
    was = os.readlink(conf)
    conf.unlink()
    (conf / "x").mkdir(parents=True)
    yield ("pctl", "unregister", 101)
    (conf / "x").rmdir()
    conf.rmdir()
    conf.symlink_to(was)


@case(146)
def a_processor_the_server_has_not(system):
    yield ("vzctl", "set", 101, "--cpumask", "999", "--save")


@case(147)
def a_pci_device(system):
    yield ("vzctl", "set", 101, "--pci_add", "0000:ff:1f.7", "--save")


@case(148)
def an_io_controller_that_refuses(system):
    yield covered(groups(system, 102), "vzctl", "set", 102, "--iolimit", "1M")


@case(149)
def a_node_the_server_has_not(system):
    yield ("vzctl", "set", 101, "--nodemask", "999", "--save")


@pytest.mark.parametrize(
    ("code", "provoked"), CASES, ids=[f"{code}-{case.__name__}" for code, case in CASES]
)
def test_a_status_is_what_its_cause_deserves(system, code, provoked):
    conf = system.paths.ct_conf(101)
    before = conf.read_text()
    with provoked(system) as words:
        system.fails(code, *words)
    assert conf.read_text() == before
    state = system.status(101)
    assert (state["exists"], state["mounted"], state["running"]) == (True, False, False)
    assert system.status(102)["running"]


def test_a_program_inside_that_does_not_end_is_code_15(system):
    from tools import environments
    from tools._command import Context

    ct = environments.find_container(Context("vzctl", system.paths), "102")
    with pytest.raises(errors.ExecTimeout) as error:
        inside.run(ct, ["/bin/sleep", "60"], timeout_s=0.2)
    assert error.value.code == 15


def test_no_status_is_documented_that_nothing_provokes():
    documented = {cls.code for cls in errors.documented() if cls.__module__ == "runtime.errors"}
    provoked = {code for code, _case in CASES} | ELSEWHERE.keys()
    assert documented - provoked - NOT_OF_CONTAINERS == set()
    for file, function in ELSEWHERE.values():
        assert f"def {function}(" in (ROOT / "tests" / file).read_text(), (file, function)
