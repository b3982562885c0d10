"""vzcfgscale and vzcfgconvert: what is multiplied, what stays, what is refused."""

import pytest

from runtime.config import ConfigFile
from tests.unit.tools.sizing_samples import UBC_512, VSWAP_512
from tools import vzcfgconvert, vzcfgscale
from tools._conversion import convert, is_old, to_vswap
from tools._scaling import Coefficients, scale


def scaled(text, **by):
    file = ConfigFile(text)
    scale(file, Coefficients(**by))
    return file


def test_beancounters_and_memory_are_multiplied_and_unlimited_stays():
    file = scaled(UBC_512, ubc=2)
    assert file.get("KMEMSIZE") == "44223692:45508198"
    assert file.get("VMGUARPAGES") == "135168:unlimited"
    assert file.get("PHYSPAGES") == "0:unlimited"
    assert file.get("NUMPROC") == "960:960"
    assert file.get("CPUUNITS") == "1000"
    assert file.get("DISKSPACE") == "1048576:1153024"
    assert file.get("MY_OWN_KEY") == "kept"
    assert scaled(VSWAP_512, ubc=0.5).get("PHYSPAGES") == "65536:65536"


def test_each_family_has_its_own_coefficient():
    text = UBC_512 + 'RATE="eth0:1:16 *:2:8"\nCPULIMIT="50"\nCPUS="2"\n'
    file = scaled(text, cpu=3, disk=0.5, network=2)
    assert file.get("CPUUNITS") == "3000"
    assert file.get("CPULIMIT") == "150"
    assert file.get("CPUS") == "6"
    assert file.get("DISKSPACE") == "524288:576512"
    assert file.get("DISKINODES") == "100000:110000"
    assert file.get("RATE") == "eth0:1:32 *:2:16"
    assert file.get("NUMPROC") == "480:480"


def test_results_stay_in_their_legal_range():
    assert scaled(UBC_512, cpu=1e5).get("CPUUNITS") == "500000"
    assert scaled(UBC_512, cpu=0.001).get("CPUUNITS") == "8"
    assert scaled('CPULIMIT="0"\n', cpu=4).get("CPULIMIT") == "0"
    assert scaled(UBC_512, ubc=1e18).get("KMEMSIZE") == "unlimited:unlimited"


@pytest.fixture
def conf(tmp_path):
    file = tmp_path / "ve-basic.conf-sample"
    file.write_text(VSWAP_512 + 'HOSTNAME="a.b"\nIP_ADDRESS="10.0.0.1"\n')
    return file


def test_it_prints_by_default_and_a_specific_option_overrides_all(conf, capsys):
    assert vzcfgscale.main(["-c", "4", "-a", "2", str(conf)]) == 0
    out, err = capsys.readouterr()
    assert 'CPUUNITS="4000"' in out
    assert 'PHYSPAGES="262144:262144"' in out
    assert err == "Scale completed: success\n"
    assert 'CPUUNITS="1000"' in conf.read_text()


def test_remove_drops_what_belongs_to_one_container(conf, tmp_path):
    out = tmp_path / "out.conf"
    out.write_text("old\n")
    assert vzcfgscale.main(["-r", "-a", "1", "-o", str(out), str(conf)]) == 0
    assert "HOSTNAME" not in out.read_text() and "IP_ADDRESS" not in out.read_text()
    assert (tmp_path / "out.conf.bak").read_text() == "old\n"


@pytest.mark.parametrize("words", [["-a", "0"], ["-a", "-1"], ["-u", "x"], ["-c", "nan"]])
def test_a_bad_coefficient_has_code_1(conf, words, capsys):
    assert vzcfgscale.main([*words, str(conf)]) == 1
    assert "Bad parameter" in capsys.readouterr().err


def test_the_file_that_is_read_is_never_written(conf, tmp_path, capsys):
    before = conf.read_text()
    assert vzcfgscale.main(["-a", "2", "-o", str(conf), str(conf)]) == 1
    assert vzcfgscale.main(["-a", "2", "-o", str(tmp_path), str(conf)]) == 1
    assert vzcfgscale.main(["-a", "2", str(tmp_path / "none")]) == 1
    assert conf.read_text() == before


OLD = 'KMEMSIZE="1000000:1100000"\nNUMPROC="100:100"\nTOTVMPAGES="65536:131072"\nNUMUNIXSOCK="100:100"\nTCPSENDBUF="1000:2000"\n'


def test_the_first_format_is_converted_once():
    file = ConfigFile(OLD)
    assert is_old(file)
    convert(file)
    assert file.get("KMEMSIZE") == "1728000:1900800"  # × 1.44 × 1.2
    assert file.get("NUMFILE") == "3277:3277"  # numproc × 20.48 × 1.6
    assert file.get("DCACHESIZE") == "2097152:2097152"  # 2048 files × 512 × 2
    assert file.get("NUMOTHERSOCK") == "267:267"
    assert file.get("TCPSNDBUF") == "1000:4000"
    assert file.get("PRIVVMPAGES") == "65536:131072"
    assert file.get("AVNUMPROC") == "21:21"
    assert "TOTVMPAGES" not in file and file.get("VERSION") == "2"
    assert not is_old(file)


def test_beancounters_become_ram_and_a_factor():
    file = ConfigFile('PRIVVMPAGES="65536:131072"\nKMEMSIZE="1:2"\nNUMPROC="9:9"\nX="y"\n')
    assert to_vswap(file)
    assert file.items() == {
        "NUMPROC": "9:9",
        "X": "y",
        "PHYSPAGES": "0:65536",
        "SWAPPAGES": "0:0",
        "VM_OVERCOMMIT": "2",
        "VERSION": "2",
    }
    assert not to_vswap(file)


def test_vzcfgconvert_rewrites_a_container_once_and_keeps_the_old_file(tmp_path, capsys):
    conf = tmp_path / "etc/vz/conf/101.conf"
    conf.parent.mkdir(parents=True)
    conf.write_text(OLD)
    argv = ["--root", str(tmp_path), "101"]
    assert vzcfgconvert.main(argv) == 0
    assert "converted: success" in capsys.readouterr().err
    assert conf.with_name("101.conf.bak").read_text() == OLD
    once = conf.read_text()
    assert vzcfgconvert.main(argv) == 0
    assert "Nothing to convert" in capsys.readouterr().err
    assert conf.read_text() == once
    assert vzcfgconvert.main(["--root", str(tmp_path), "102"]) == 1
