"""pstat, vztop, vzps and vzmetrics on looks made up for the purpose."""

import dataclasses

import pytest

from runtime.config import Config
from runtime.errors import BadConfig, InvalidValue
from runtime.figures import CpuFigures, IoFigures, MemoryFigures
from runtime.memory import memory_of
from runtime.paths import Paths
from tools import _processes, vzmetrics, vzps
from tools._monitor import Counts, Guest, Look, Node
from tools._pstat_view import Detail, Table, lines, objects, terse
from tools._rates import Level, Thresholds, rates

MIB = 1 << 20
CONFIG = Config(ctid=101, overrides={"NAME": 'we"b', "PHYSPAGES": "0:65536", "CPULIMIT": "50"})


def guest(ctid, cpu_s=0.0, read=0, written=0, **changes):
    made = Guest(
        str(ctid), ctid, "ct", CONFIG, MemoryFigures(used=64 * MIB, kernel=MIB, limit=256 * MIB),
        memory_of(CONFIG), CpuFigures(int(cpu_s * 1e9)), IoFigures(read, written, 1, 2),
        Counts(4, 1, 3), 480, 7, 0, 0, 0, "10.0.0.1", "4",
    )  # fmt: skip
    return dataclasses.replace(made, **changes)


def node(busy=0, idle=0, wait_us=0):
    return Node(
        (busy, 0, 0, idle, 0, 0, 0, 0), 2, ("0.10", "0.20", "0.30"), 90061.0, 1,
        Counts(100, 2, 95, 1, 1, 1),
        {"MemTotal": 1024 * MIB, "MemFree": 300 * MIB, "MemAvailable": 512 * MIB,
         "SwapTotal": 0, "SwapFree": 0},
        0, 0, (0, 0, 0, 0, 0), (0, 0), {"cpu": 0, "memory": 0, "io": wait_us},
    )  # fmt: skip


BEFORE = Look(10.0, node(), {"101": guest(101), "102": guest(102)})
AFTER = Look(
    12.0,
    node(busy=100, idle=300, wait_us=1_800_000),
    {"101": guest(101, 1.0, read=2048 * 1024), "102": guest(102, 0.2), "103": guest(103)},
)


@pytest.fixture
def thresholds(tmp_path):
    return Thresholds(Paths(tmp_path))


def test_rates_are_differences_over_the_time_between(thresholds):
    server, guests = rates(BEFORE, AFTER)
    assert [row.guest.ctid for row in guests] == [101, 102]
    assert guests[0].cpu == pytest.approx(50)
    assert guests[0].read_per_s == 1024 * 1024
    assert guests[0].memory == pytest.approx(25)
    assert server.user == 25 and server.idle == 75
    assert server.containers == pytest.approx(30)  # of both processors
    assert server.io_wait == pytest.approx(90)
    assert server.memory_used == 50


def test_a_container_that_was_restarted_in_between_is_left_out():
    again = Look(12.0, node(), {"101": guest(101, 0.0)})
    assert rates(Look(10.0, node(), {"101": guest(101, 5.0)}), again)[1] == []


def test_the_standard_screen_has_the_server_and_a_row_for_each_guest(thresholds):
    shown = [line.text for line in lines(BEFORE, AFTER, thresholds)]
    assert "up 1 days, 1:01, 1 users, load average: 0.10, 0.20, 0.30" in shown[0]
    assert shown[1] == (
        "CTNum 3, VMNum 0, procs 100: running 2, sleeping 95, unint 1, zombie 1, stopped 1"
    )
    assert shown[2].startswith("CPU [ OK ]: CTs  30%")
    assert shown[6].startswith("Disks [CRIT]")
    assert shown[8].split()[:6] == ["CTID", "ST", "%VM", "%KM", "PROC", "CPU"]
    assert shown[9].split() == [
        "101", "OK", "25.0", "0.4", "1/4/480", "50.0/50", "7", "0", "0%", "10.0.0.1",
    ]  # fmt: skip


def test_brief_shows_the_server_only_and_verbose_more(thresholds):
    brief = lines(BEFORE, AFTER, thresholds, detail=Detail.BRIEF)
    assert len(brief) == 7
    verbose = lines(BEFORE, AFTER, thresholds, detail=Detail.VERBOSE)
    assert 'we"b' in verbose[9].text and "cached" in verbose[3].text


def test_disk_tables_show_rates_and_totals(thresholds):
    disk = lines(BEFORE, AFTER, thresholds, table=Table.DISK)
    assert disk[8].text.split()[:2] == ["CTID/NAME", "IOPRIO"]
    assert disk[9].text.split() == ["101", "4", "1024.0", "0.0", "0.0%"]
    totals = lines(BEFORE, AFTER, thresholds, table=Table.ACCOUNTING)
    assert totals[9].text.split() == ["101", "2048", "1", "0", "2"]


def test_terse_output_is_one_line_a_guest_without_alignment():
    many = {str(n): guest(n, n / 100) for n in range(101, 120)}
    out = terse(Look(10.0, node(), {n: guest(int(n)) for n in many}), Look(11.0, node(), many))
    assert len(out) == 11
    assert out[1].split()[0] == "119"
    assert "  " not in "\n".join(out)


def test_json_has_field_names():
    found = objects(BEFORE, AFTER)
    assert found["containers"] == 3
    assert found["guests"][0]["ram_limit_bytes"] == 256 * MIB


def test_thresholds_come_from_the_file(tmp_path):
    conf = tmp_path / "etc/vz/pstat.conf"
    conf.parent.mkdir(parents=True)
    conf.write_text('CPU_WARN="10"\nCPU_CRIT="20"\n')
    judge = Thresholds(Paths(tmp_path)).judge
    assert [judge(CPU=value) for value in (9, 10, 20)] == [Level.OK, Level.WARN, Level.CRIT]
    assert judge(CPU=0, CPU_WAIT=100) is Level.CRIT
    conf.write_text("CPU_WARN=much\n")
    with pytest.raises(BadConfig):
        Thresholds(Paths(tmp_path))


def test_metrics_are_escaped_and_without_limit_left_out():
    text = vzmetrics.render(AFTER)
    assert 'pyvz_cpu_seconds_total{type="ct",ctid="101",name="we\\"b"} 1.0' in text
    assert "# TYPE pyvz_cpu_seconds_total counter" in text
    free = guest(104, memory=MemoryFigures(used=1))
    assert "pyvz_memory_limit_bytes" not in vzmetrics.render(Look(1.0, node(), {"104": free}))


@pytest.mark.parametrize("text", ["9410", "localhost:1", "127.0.0.1:70000", "127.0.0.1:", ":1"])
def test_an_address_to_listen_on_is_checked(text):
    with pytest.raises(InvalidValue):
        vzmetrics.parse_address(text)


def test_metrics_are_offered_to_the_server_itself_only(tmp_path, capsys):
    assert vzmetrics.main(["--root", str(tmp_path), "--listen", "0.0.0.0:9410"]) == 1
    assert "loopback" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "passed"),
    [
        (["aux", "-E", "101"], ["--everything", "-E", "101", "--", "aux"]),
        (["-E", "web1", "-ef"], ["--everything", "-E", "web1", "--", "-ef"]),
        (["-E101"], ["--everything", "-E", "101", "--"]),
        (["aux", "-E"], ["--everything", "--", "aux"]),
        (["-o", "pid,cmd"], ["--", "-o", "pid,cmd"]),
        (["--root", "/r", "-e"], ["--root", "/r", "--", "-e"]),
    ],
)
def test_vzps_takes_its_own_option_out_of_those_of_ps(given, passed):
    assert vzps.split(given) == passed


def process(pid, ticks=1, cpu_s=0.0, **changes):
    made = _processes.Process(pid, 0, 0, "R", 20, 0, MIB, MIB, 0, cpu_s, ticks, "name", "name -x")
    return dataclasses.replace(made, **changes)


def test_a_reused_process_id_brings_no_processor_time_along():
    before = _processes.Snapshot(0.0, {1: process(1, cpu_s=5), 2: process(2, cpu_s=5)})
    after = _processes.Snapshot(1.0, {1: process(1, cpu_s=5.5), 2: process(2, ticks=9, cpu_s=1)})
    rows = {row.process.pid: row.cpu_percent for row in _processes.rows(before, after)}
    assert rows == {1: 50.0, 2: 0.0}


def test_names_of_processes_never_reach_the_terminal_raw():
    assert _processes.printable("a\x1b[31mb\n") == "a?[31mb?"
