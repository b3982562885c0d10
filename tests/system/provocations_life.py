"""What provokes the statuses of a container's life: rows of the table in ``provocation``."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess

from conftest import BIN
from provocation import case, configured, covered, groups, immutable, server

from runtime import idmap


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


@case(4)
def a_script_that_memory_cannot_hold(system):
    script = system.root / "huge-script"
    with open(script, "wb") as file:
        file.truncate(8 << 30)
    yield ("/usr/bin/prlimit", f"--as={1 << 30}", str(BIN / "vzctl"), "runscript", 102, script)
    script.unlink()


@case(6)
def ids_of_users_that_are_all_taken(system):
    place = system.paths.run / "ids"
    held = system.paths.run / "ids-held"
    place.rename(held)
    place.mkdir()
    # Claims are links to the id of their container; 102 exists, so none is swept as left behind.
    for slot in range(idmap.SLOTS):
        os.symlink("102", place / str(slot))
    yield ("vzctl", "start", 101)
    shutil.rmtree(place)
    held.rename(place)
