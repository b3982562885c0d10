"""The rules of vzcfgvalidate on configuration files as they are found."""

import io
from pathlib import Path

import pytest

from runtime.config import ConfigFile
from runtime.sizing import Server
from tests.unit.tools.sizing_samples import UBC_512, VSWAP_512
from tools import vzcfgvalidate
from tools._validation import Level, Surroundings, findings

GIB = 1 << 30
SERVER = Server(8 * GIB, 2 * GIB, 8 * GIB, 60000, 4, 20000.0)
NOWHERE = Surroundings()


def judge(text, around=NOWHERE, **changes):
    file = ConfigFile(text)
    for key, value in changes.items():
        file.unset(key) if value is None else file.set(key, value)
    return [str(finding) for finding in findings(file, around)]


def test_a_shipped_ubc_configuration_is_consistent():
    assert judge(UBC_512) == []
    assert judge(UBC_512.replace("\n", "\r\n")) == []


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [
        ("NUMPROC", None, "Error: parameter numproc not found"),
        ("DISKSPACE", None, "Error: parameter diskspace not found"),
        ("KMEMSIZE", "lots", "Error: kmemsize is not a limit (currently, lots)"),
        (
            "PRIVVMPAGES",
            "139264:131072",
            "Error: barrier should be <= limit for privvmpages (currently, 139264:131072)",
        ),
        (
            "NUMPTY",
            "16:32",
            "Error: barrier should be equal to limit for numpty (currently, 16:32)",
        ),
        (
            "VMGUARPAGES",
            "67584:70000",
            "Error: limit should be = 9223372036854775807 for vmguarpages (currently, 70000)",
        ),
        (
            "KMEMSIZE",
            "9367000:9832700",
            "Error: kmemsize.bar should be > 21995520 (currently, 9367000)",
        ),
        (
            "DCACHESIZE",
            "4096:4096",
            "Warning: dcachesize.lim should be > 7151616 (currently, 4096)",
        ),
        (
            "PRIVVMPAGES",
            "65536:139264",
            "Warning: privvmpages.bar should be > 67584 (currently, 65536)",
        ),
        (
            "TCPSNDBUF",
            "3440640:3440641",
            "Error: tcpsndbuf.lim-tcpsndbuf.bar should be > 1843200 (currently, 1)",
        ),
        (
            "TCPRCVBUF",
            "3440640:3440641",
            "Warning: tcprcvbuf.lim-tcprcvbuf.bar should be > 1843200 (currently, 1)",
        ),
        (
            "OTHERSOCKBUF",
            "2252160:2252161",
            "Error: othersockbuf.lim-othersockbuf.bar should be > 1843200 (currently, 1)",
        ),
        ("TCPRCVBUF", "1:4194304", "Warning: tcprcvbuf.bar should be > 65536 (currently, 1)"),
        ("DGRAMRCVBUF", "1:1", "Warning: dgramrcvbuf.bar should be > 32768 (currently, 1)"),
        (
            "DGRAMRCVBUF",
            "40000:40000",
            "Recommendation: dgramrcvbuf.bar should be > 132096 (currently, 40000)",
        ),
        ("NUMFILE", "100:100", "Warning: numfile should be > 11520 (currently, 100)"),
        ("CPUUNITS", "5", "Error: cpuunits should be from 8 to 500000 (currently, 5)"),
        (
            "DISKSPACE",
            "2000:1000",
            "Error: barrier should be <= limit for diskspace (currently, 2000:1000)",
        ),
    ],
)
def test_one_broken_rule_is_one_finding(key, value, text):
    assert judge(UBC_512, **{key: value}) == [text]


def test_every_repair_makes_the_file_consistent():
    file = ConfigFile(UBC_512)
    for key in ("KMEMSIZE", "TCPSNDBUF", "TCPRCVBUF", "OTHERSOCKBUF", "DGRAMRCVBUF", "DCACHESIZE"):
        file.set(key, "2:1")
    for key in ("NUMPROC", "NUMFILE", "NUMPTY", "VMGUARPAGES", "PHYSPAGES"):
        file.set(key, "7:9")
    file.set("CPUUNITS", "600000")
    assert list(findings(file, NOWHERE, lambda finding: True)) == []
    assert list(findings(file, NOWHERE)) == []
    assert 'MY_OWN_KEY="kept"' in file.text()
    assert "# UBC parameters" in file.text()


def test_vswap_is_judged_against_the_server():
    around = Surroundings(SERVER, 100 * GIB)
    assert judge(VSWAP_512, around) == []
    assert judge(VSWAP_512, around, PHYSPAGES="0:4194304")[0].startswith("Warning: physpages.lim")
    assert judge(VSWAP_512, around, SWAPPAGES="0:2621440")[0].startswith("Warning: RAM and swap")
    promised = Surroundings(SERVER, 100 * GIB, guaranteed_bytes=8 * GIB)
    assert "guarantees" in judge(VSWAP_512, promised, MEMGUARANTEE="50")[0]
    assert "file system" in judge(VSWAP_512, Surroundings(disk_bytes=GIB))[0]


def test_an_address_of_another_container_is_an_error():
    around = Surroundings(addresses={"10.0.0.5": 105})
    found = judge(VSWAP_512, around, IP_ADDRESS="10.0.0.4 10.0.0.5/24")
    assert found == ["Error: address 10.0.0.5 belongs to container 105"]
    found = judge(VSWAP_512, around, NETIF="ifname=eth0,ip=10.0.0.5/24,mac=00:18:51:00:00:01")
    assert found == ["Error: address 10.0.0.5 belongs to container 105"]


def test_a_line_nobody_understands_is_named():
    assert judge(VSWAP_512 + "what is this\n")[0].startswith("Error: line 8 is ignored")


@pytest.fixture
def run(tmp_path, capsys):
    def run(text, *options, answers=""):
        file = tmp_path / "101.conf"
        file.write_bytes(text.encode())
        import sys

        sys.stdin, stdin = io.StringIO(answers), sys.stdin
        try:
            code = vzcfgvalidate.main([*options, "--root", str(tmp_path / "sys"), str(file)])
        finally:
            sys.stdin = stdin
        out = capsys.readouterr()
        return code, out.out, out.err, file.read_text()

    return run


BROKEN = UBC_512.replace('NUMFILE="18624:18624"', 'NUMFILE="100:100"')


def test_exit_codes_are_0_consistent_2_not_and_1_for_errors(run, tmp_path):
    assert run(UBC_512)[:2] == (0, "Validation completed: success\n")
    code, out, err, text = run(BROKEN)
    assert (code, out) == (2, "")
    assert err == "Warning: numfile should be > 11520 (currently, 100)\n"
    assert text == BROKEN
    missing = str(tmp_path / "missing.conf")
    assert vzcfgvalidate.main([missing]) == 1
    assert vzcfgvalidate.main(["--nonsense"]) == 1


def test_a_recommendation_alone_is_no_failure(run):
    code, out, err, _text = run(UBC_512.replace("524288:524288", "40000:40000"))
    assert (code, out) == (0, "Validation completed: success\n")
    assert err.startswith("Recommendation")


def test_repair_rewrites_only_what_is_wrong(run):
    code, _out, _err, text = run(BROKEN, "-r")
    assert code == 0
    changed = set(text.splitlines()) ^ set(BROKEN.splitlines())
    assert changed == {'NUMFILE="11520:11520"', 'NUMFILE="100:100"   # plenty'}


def test_interactive_repairs_what_is_agreed_to(run):
    code, _out, err, text = run(BROKEN, "-i", answers="\n")
    assert code == 0 and 'NUMFILE="11520:11520"' in text
    assert "set to 11520:11520 (y/n) [y]" in err
    code, _out, _err, text = run(BROKEN, "-i", answers="n\n")
    assert code == 2 and text == BROKEN
    code, _out, _err, text = run(BROKEN, "-i", answers="")
    assert code == 2 and text == BROKEN


def test_levels_are_named_as_in_the_manual():
    assert [str(level) for level in Level] == ["Error", "Warning", "Recommendation"]


def test_shipped_samples_need_no_repair():
    shipped = Path(vzcfgvalidate.__file__).parents[1] / "templates/samples"
    for sample in shipped.glob("ve-*.conf-sample"):
        assert judge(sample.read_text()) == [], sample.name
