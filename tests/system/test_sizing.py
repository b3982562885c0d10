"""Configuration files from the wild: sized, validated, converted and kept through ``set``."""

from __future__ import annotations

import pytest

from tests.unit.tools.sizing_samples import UBC_512
from tests.unit.tools.wild import CONFIGURATIONS

pytestmark = pytest.mark.root


def test_a_hand_edited_file_validates_and_keeps_every_foreign_line_through_set(system):
    conf = system.paths.ct_conf(105)
    conf.parent.mkdir(parents=True)
    wild = UBC_512.replace("\n", "\r\n") + "FOO=bar baz\r\n#the end\r\n"
    conf.write_bytes(wild.encode())
    assert "line 34 is ignored" in system.fails(2, "vzcfgvalidate", conf)
    assert system.ok("vzlist", "-aH", "-o", "ctid,numproc.l,kmemsize.b").split() == [
        "105",
        "480",
        "22111846",
    ]
    system.ok("vzctl", "set", 105, "--numproc", "500", "--save")
    after = conf.read_bytes().decode()
    kept = [line for line in wild.splitlines() if not line.startswith("NUMPROC")]
    assert [line for line in after.splitlines() if not line.startswith("NUMPROC")] == kept
    assert after.count("NUMPROC=") == 1 + after.count("AVNUMPROC=")
    assert after.count("\r\n") == after.count("\n")


def test_configurations_from_the_wild_are_listed_judged_and_kept(system):
    system.paths.conf_dir.mkdir(parents=True)
    files = {}
    for ctid, text in enumerate(CONFIGURATIONS.values(), 101):
        files[system.paths.ct_conf(ctid)] = text.encode("utf-8", "surrogateescape")
    for conf, content in files.items():
        conf.write_bytes(content)
    assert system.ok("vzlist", "-aH1").split() == [conf.stem for conf in files]
    rows = system.ok("vzlist", "-a", "-o", "ctid,physpages.l,diskspace.h,ip,hostname,cpuunits")
    assert len(rows.splitlines()) == 1 + len(files)
    for conf, content in files.items():
        done = system.run("vzcfgvalidate", conf)
        assert done.returncode in (0, 2) and "Traceback" not in done.stderr, done.stderr
        system.ok("vzcfgscale", "-a", "0.5", conf)
        system.ok("vzctl", "set", conf.stem, "--bootorder", "7", "--save")
        added = conf.read_bytes().removeprefix(content).strip()
        assert conf.read_bytes().startswith(content) and added == b'BOOTORDER="7"'


def test_containers_of_such_configurations_start_with_the_memory_they_say(system):
    for ctid, (name, mib) in enumerate((("old", 88), ("edited", 512), ("panel", 1024)), 101):
        system.create(ctid)
        content = CONFIGURATIONS[name].encode("utf-8", "surrogateescape")
        system.paths.ct_conf(ctid).write_bytes(content)
        system.ok("vzctl", "start", ctid)
        total = system.ok("vzctl", "exec", ctid, "head -1 /proc/meminfo").split()
        assert total == ["MemTotal:", str(mib << 10), "kB"], name
        system.ok("vzctl", "stop", ctid, "--fast")


def test_a_legacy_container_starts_with_the_memory_it_had(system):
    system.create(106, "busybox", "--config", "basic")
    conf = system.paths.ct_conf(106)
    text = "".join(
        line
        for line in conf.read_text().splitlines(keepends=True)
        if not line.startswith(("PHYSPAGES", "SWAPPAGES", "VM_OVERCOMMIT"))
    )
    conf.write_text(text + 'PRIVVMPAGES="16384:24576"\nMEMINFO="privvmpages:1"\n')
    system.ok("vzctl", "start", 106)
    memory = system.ok("vzctl", "exec", 106, "head -1 /proc/meminfo").split()
    assert memory == ["MemTotal:", "65536", "kB"]
    assert system.run("vzctl", "exec2", 106, "tail /dev/zero").returncode != 0
    system.ok("vzctl", "set", 106, "--meminfo", "pages:8192", "--save")
    assert "32768 kB" in system.ok("vzctl", "exec", 106, "sleep 0.3; head -1 /proc/meminfo")
    system.ok("vzctl", "stop", 106, "--fast")
    system.ok("vzcfgconvert", "--vswap", 106)
    assert 'PHYSPAGES="0:16384"' in conf.read_text()
    assert "PRIVVMPAGES" not in conf.read_text()


def test_a_split_sample_makes_a_container_that_validates(system):
    assert "was created" in system.ok("vzsplit", "-n", 20, "-f", "twentieth")
    system.create(107, "busybox", "--config", "twentieth")
    system.ok("vzcfgvalidate", 107)
    system.fails(1, "vzsplit", "-n", 20, "-f", "twentieth")


def test_scaling_a_container_and_applying_the_result(system):
    system.create(108, "busybox", "--config", "basic")
    sample = system.paths.sample("half")
    system.ok("vzcfgscale", "-r", "-a", "0.5", "-o", sample, 108)
    system.ok("vzctl", "set", 108, "--applyconfig", "half", "--save")
    assert 'PHYSPAGES="0:65536"' in system.paths.ct_conf(108).read_text() or (
        'PHYSPAGES="65536:65536"' in system.paths.ct_conf(108).read_text()
    )
    assert 'ORIGIN_SAMPLE="half"' in system.paths.ct_conf(108).read_text()
