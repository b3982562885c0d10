"""Settings of resources and rights: what is accepted, how it is stored, what is refused."""

import pytest

from runtime import features, settings_resources, ubc
from runtime.errors import CpuMaskFailed, InvalidValue, NodeMaskFailed
from runtime.settings_access import ROWS as ACCESS_ROWS
from runtime.settings_resources import ROWS
from runtime.units import UNLIMITED

TABLE = {row.option: row for row in ROWS}


def store(option, *given, stored=None):
    return TABLE[option].value(stored, given)


@pytest.mark.parametrize(
    ("option", "given", "stored"),
    [
        ("cpuunits", "1500", "1500"),
        ("cpus", "unlimited", "0"),
        ("ram", "256M", "0:65536"),
        ("ram", "1G", "0:262144"),
        ("ram", "unlimited", "0:unlimited"),
        ("swap", "0", "0:0"),
        ("swap", "1.5G", "0:393216"),
        ("physpages", "65536", "0:65536"),
        ("physpages", "65536:65536", "65536:65536"),
        ("physpages", "0:9223372036854775807", "0:unlimited"),
        ("privvmpages", "131072:139264", "131072:139264"),
        ("privvmpages", "512M", "131072:131072"),
        ("kmemsize", "11055923:2147483647", "11055923:unlimited"),
        ("numproc", "480", "480:480"),
        ("vm_overcommit", "1.5", "1.5"),
        ("memguarantee", "25%", "25"),
        ("memguarantee", "auto", "auto"),
        ("meminfo", "privvmpages:3", "privvmpages:3"),
        ("meminfo", "NONE", "none"),
        ("diskspace", "10G:11G", "10485760:11534336"),
        ("diskspace", "1048576:1153024", "1048576:1153024"),
        ("diskinodes", "200000:220000", "200000:220000"),
        ("quotatime", "1w", "604800"),
        ("iolimit", "10M", "10485760"),
        ("iolimit", "unlimited", "0"),
        ("capability", "net_admin:on,sys_time:off", "NET_ADMIN:on SYS_TIME:off"),
        ("features", "nfs:off,time:on", "nfs:off time:on"),
        ("devices", "c:10:200:wr", "c:10:200:rw"),
        ("devices", "b:8:*:r", "b:8:all:r"),
        ("devnodes", "/dev/net/tun:rw", "net/tun:rw"),
        ("bindmount_add", "/usr/lib/:/var/www,ro,nosuid", "/usr/lib:/var/www,nosuid,ro"),
        ("bindmount_add", "/data", ":/data"),
    ],
)
def test_a_value_is_stored_in_the_unit_of_its_key(option, given, stored):
    assert store(option, given) == stored


@pytest.mark.parametrize(
    ("option", "given"),
    [
        ("cpuunits", "7"),
        ("cpuunits", "500001"),
        ("cpuunits", "-5"),
        ("cpulimit", "half"),
        ("cpulimit", "50k"),
        ("cpumask", "0-"),
        ("cpumask", "3-1"),
        ("ram", "0"),
        ("ram", "-1G"),
        ("physpages", "0"),
        ("numproc", "10K"),
        ("kmemsize", "2:1"),
        ("vm_overcommit", "0"),
        ("vm_overcommit", "inf"),
        ("memguarantee", "101"),
        ("meminfo", "pages:0"),
        ("meminfo", "swap:1"),
        ("diskspace", "2G:1G"),
        ("ioprio", "8"),
        ("iolimit", "3G"),
        ("capability", "fly:on"),
        ("capability", "net_admin"),
        ("features", "nfs:maybe"),
        ("devices", "x:1:2:rw"),
        ("devices", "c:10:200:rx"),
        ("devices", "c:5000:1:rw"),
        ("devnodes", "../sda:rw"),
        ("devnodes", "sda"),
        ("bindmount_add", "relative:/x"),
        ("bindmount_add", "/usr:/b/../../etc"),
        ("bindmount_add", "/no/such/directory:/x"),
        ("bindmount_add", "/etc/passwd:/x"),
        ("bindmount_add", "/usr:/"),
        ("bindmount_add", "/usr:/b,exec"),
        ("numproc", "0"),
        ("numproc", "0:0"),
    ],
)
def test_an_invalid_value_has_code_21(option, given):
    with pytest.raises(InvalidValue) as error:
        store(option, given)
    assert error.value.code == 21


def test_a_cpulimit_in_megahertz_replaces_one_in_percent():
    row = TABLE["cpulimit"]
    assert row.keys(row.value("50", ["500m"])) == {"CPULIMIT": None, "CPULIMIT_MHZ": "500"}
    assert row.keys(row.value(None, ["75%"])) == {"CPULIMIT": "75", "CPULIMIT_MHZ": None}


def test_processors_the_server_lacks_have_code_146_and_nodes_149(monkeypatch):
    monkeypatch.setattr(settings_resources, "online_cpus", lambda: frozenset([0, 1]))
    monkeypatch.setattr(settings_resources, "online_nodes", lambda: frozenset([0]))
    assert store("cpumask", "0-1") == "0-1"
    with pytest.raises(CpuMaskFailed) as error:
        store("cpumask", "0,2-3")
    assert (error.value.code, "2-3" in error.value.message) == (146, True)
    with pytest.raises(NodeMaskFailed) as error:
        store("nodemask", "1")
    assert error.value.code == 149


def test_a_list_of_processors_round_trips():
    assert settings_resources.parse_cpulist("0,2-5,9") == {0, 2, 3, 4, 5, 9}
    assert settings_resources.format_cpulist(frozenset([9, 0, 2, 3, 5, 4])) == "0,2-5,9"
    assert settings_resources.format_cpulist(frozenset()) == ""


def test_switches_merge_and_the_last_one_wins():
    merged = store("capability", "sys_time:on", "mknod:off", stored="SYS_TIME:off CHOWN:on")
    assert merged == "SYS_TIME:on CHOWN:on MKNOD:off"
    assert features.switches(merged) == {
        "sys_time": True,
        "chown": True,
        "mknod": False,
    }


def test_the_right_none_takes_a_device_away():
    assert store("devnodes", "sda:none", stored="sda:rw sdb:r") == "sdb:r"
    assert store("devices", "c:10:200:none", stored="c:10:200:rw") is None
    assert store("devices", "none", stored="c:10:200:rw b:8:0:r") is None
    assert store("devnodes", "sda:r", "none", "sdb:r", stored="sdc:rw") == "sdb:r"


def test_bind_mounts_are_added_replaced_and_removed():
    stored = store("bindmount_add", "/usr:/x", "/etc:/y", stored="/old:/x,ro")
    assert stored == "/usr:/x /etc:/y"
    assert store("bindmount_del", "/x/", stored=stored) == "/etc:/y"
    assert store("bindmount_del", "all", stored=stored) is None
    with pytest.raises(InvalidValue):
        store("bindmount_del", "/z", stored=stored)


def test_every_beancounter_is_a_setting():
    assert {row.name for row in ubc.BEANCOUNTERS} <= TABLE.keys()
    assert {row.option for row in ACCESS_ROWS} <= TABLE.keys()


@pytest.mark.parametrize("most", ["2147483647", "9223372036854775807", "unlimited"])
def test_both_long_max_of_old_files_mean_unlimited(most):
    assert ubc.parse("VMGUARPAGES", f"33792:{most}") == (33792, UNLIMITED)


def test_limits_leave_out_what_nobody_understands():
    found = ubc.limits({"NUMPROC": "480", "KMEMSIZE": "lots", "SHMPAGES": "", "FOO": "1"})
    assert found == {"NUMPROC": (480, 480)}
