"""What provokes the statuses of quota, settings and the rest: rows of the table in ``provocation``."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

from conftest import BIN
from provocation import case, configured, covered, groups, immutable, script, server

from runtime import dists


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


SHAPED = 'TRAFFIC_SHAPING="yes"\n'
#: In a network namespace without anything.
TC_RESTART = ("/usr/bin/unshare", "--net", BIN / "psrvctl", "tc", "restart")


@case(25)
def no_rate(system):
    with server(system, f'{SHAPED}BANDWIDTH="lo:8000"\nTOTALRATE="*:1:104"\nRATE=""\n'):
        yield TC_RESTART


@case(26)
def no_total_rate(system):
    with server(system, f'{SHAPED}BANDWIDTH="lo:8000"\nTOTALRATE=""\n'):
        yield TC_RESTART


@case(30)
def a_bandwidth_of_nothing(system):
    with server(system, f'{SHAPED}BANDWIDTH="lo:"\nTOTALRATE="*:1:104"\nRATE="*:1:8"\n'):
        yield TC_RESTART


@case(80)
def a_bandwidth_of_an_interface_that_is_not_there(system):
    with server(system, f'{SHAPED}BANDWIDTH="up7:8000"\nTOTALRATE="*:1:104"\nRATE="*:1:8"\n'):
        yield TC_RESTART


@case(34)
def an_address_of_a_family_the_server_has_not(system):
    words = f"{BIN / 'vzctl'} set 102 --ipadd 2001:db8::102"
    off = "echo 1 > /proc/sys/net/ipv6/conf/all/disable_ipv6"
    yield ("/usr/bin/unshare", "--net", "sh", "-c", f"{off}; ip link set lo up; exec {words}")
