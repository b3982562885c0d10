"""What a container reads in its own /proc, made from known figures."""

import json

import pytest

from runtime import procview, procview_files
from runtime.figures import CpuFigures, MemoryFigures, TaskFigures
from runtime.paths import Paths
from runtime.procview_files import Load, View
from vzfs import protocol

MIB = 1 << 20


class Figures:
    """Stands for the cgroups of a container."""

    ram, swap = 256 * MIB, 64 * MIB
    allowed = "1,3"
    each = ((10**9, 10**9), (3 * 10**9, 2 * 10**9), (0, 0), (4 * 10**9, 10**9))
    stalled = 0
    tids = ()

    def memory_limits(self):
        return self.ram, self.swap

    def memory(self, *, now_only=False):
        return MemoryFigures(
            used=100 * MIB,
            swap=16 * MIB,
            anonymous=40 * MIB,
            cache=50 * MIB,
            inactive_file=30 * MIB,
            active_file=20 * MIB,
            kernel=10 * MIB,
            slab_reclaimable=4 * MIB,
        )

    def cpus(self):
        return self.allowed

    def cpu(self):
        return CpuFigures(12 * 10**9, 8 * 10**9, 4 * 10**9)

    def cpu_of_each(self):
        return None if self.each is None else list(self.each)

    def tasks(self):
        return TaskFigures(3)

    def io_of_each(self):
        return {}

    def stalled_us(self, resource):
        return self.stalled

    def threads(self):
        return list(self.tids)


@pytest.fixture
def view(tmp_path, monkeypatch):
    clock = [1000.0]
    monkeypatch.setattr(procview_files, "_boottime", lambda: clock[0])
    view = View(Paths(tmp_path), 101, 1000.0, 1_700_000_000.0)
    view._figures = Figures()
    view.load = Load(view._figures, 1000.0)
    view.host_memory = lambda: {"MemTotal": 1024 * MIB, "SwapTotal": 512 * MIB}
    view.clock = clock
    view.settings_path = tmp_path / "run/vz/procview/101.json"
    view.settings_path.parent.mkdir(parents=True)
    return view


def fields(content):
    return {
        line.partition(":")[0]: int(line.split()[1])
        for line in content.decode().splitlines()
        if line
    }


def test_meminfo_shows_the_limits_and_what_is_used(view):
    rows = fields(view.meminfo())
    assert rows["MemTotal"] == 256 * 1024
    assert rows["MemFree"] == 156 * 1024
    assert rows["MemAvailable"] == (156 + 50 + 4) * 1024
    assert rows["SwapTotal"] == 64 * 1024
    assert rows["SwapFree"] == 48 * 1024
    assert rows["Cached"] == 50 * 1024


def test_without_a_limit_the_server_is_the_limit(view):
    view._figures.ram = view._figures.swap = None
    assert view.total_memory() == (1024 * MIB, 512 * MIB)
    view._figures.ram, view._figures.swap = 4096 * MIB, 4096 * MIB
    assert view.total_memory() == (1024 * MIB, 512 * MIB)


@pytest.mark.parametrize(
    ("settings", "mib"),
    [
        ({"MEMINFO": "privvmpages:1", "PRIVVMPAGES": "32768:40000"}, 128),
        ({"MEMINFO": "privvmpages:3", "PRIVVMPAGES": "32768:40000"}, 384),
        ({"MEMINFO": "privvmpages:1"}, 256),
        ({"MEMINFO": "pages:16384"}, 64),
        ({"MEMINFO": "pages:16384", "PHYSPAGES": "0:65536"}, 256),
        ({"MEMINFO": "none"}, 1024),
    ],
)
def test_the_mode_of_meminfo_decides_where_vswap_does_not(view, settings, mib):
    view.settings_path.write_text(json.dumps(settings))
    assert view.total_memory()[0] == mib * MIB


def test_a_changed_setting_is_seen_without_being_told(view):
    view.settings_path.write_text(json.dumps({"MEMINFO": "pages:16384"}))
    assert view.total_memory()[0] == 64 * MIB
    view.settings_path.write_text(json.dumps({"MEMINFO": "pages:32768"}))
    view._settings_at = -1.0
    assert view.total_memory()[0] == 128 * MIB


def test_processors_are_counted_from_zero(view):
    assert view.online() == b"0-1\n"
    view._figures.allowed = "3"
    assert view.online() == b"0\n"


def test_cpuinfo_keeps_only_the_allowed_processors(view):
    stanza = b"processor\t: %d\nmodel name\t: X\nsiblings\t: 4\ncpu cores\t: 4"
    view._stanzas = [(number, stanza % number) for number in range(4)]
    view._stanzas_at = float("inf")
    text = view.cpuinfo().decode()
    numbers = [line.split()[-1] for line in text.splitlines() if line.startswith("processor")]
    assert numbers == ["0", "1"]
    assert "siblings\t: 2" in text and "cpu cores\t: 2" in text


def test_uptime_counts_from_the_start_and_idle_is_what_was_not_used(view):
    view.clock[0] = 1060.0
    assert view.uptime() == b"60.00 108.00\n"  # 2 processors × 60 s − 12 s


def test_stat_has_a_line_for_each_processor_and_their_sum(view):
    view.clock[0] = 1060.0
    lines = view.stat().decode().splitlines()
    assert lines[1] == "cpu0 300 0 200 5500 0 0 0 0 0 0"
    assert lines[2] == "cpu1 400 0 100 5500 0 0 0 0 0 0"
    # What ran elsewhere before the mask was set is part of the sum.
    assert lines[0] == "cpu  800 0 400 10800 0 0 0 0 0 0"
    assert "btime 1700000000" in lines


def test_where_the_kernel_counts_no_processors_the_time_is_shared(view):
    view._figures.each = None
    view.clock[0] = 1060.0
    assert view.stat().decode().splitlines()[1] == "cpu0 400 0 200 5400 0 0 0 0 0 0"


def test_swaps_shows_one_area_or_none(view):
    assert view.swaps().decode().splitlines()[1].split() == [
        "none",
        "virtual",
        "65536",
        "16384",
        "0",
    ]
    view._figures.swap = 0
    assert len(view.swaps().splitlines()) == 1


def test_the_load_of_an_unwatched_container_comes_from_the_time_it_ran(view):
    load = view.load
    load._busy_ns = 0
    view.clock[0] = 1000.0 + 6.0  # 12 s of processor time in 6 s: two tasks on average
    first = load.read()[0]
    assert first == pytest.approx(2 * (1 - 2.718281828 ** (-6 / 60)), rel=0.001)
    assert load.pause_s() == pytest.approx(5.0)


def test_a_watched_load_counts_every_five_seconds_and_stops_when_nobody_looks(view):
    view.load.read()
    view.clock[0] += 5.0
    assert view.load.pause_s() == 0
    view.load.sample()
    view.clock[0] += 301.0
    assert view.load.pause_s() is None


class Wire:
    """Collects what a server answers."""

    def __init__(self, view):
        self.server = procview.Server(-1, view)

    def ask(self, op, node, body=b""):
        request = bytearray(protocol.IN_SIZE) + bytearray(body)
        return self.server._answer(op, node, request, len(request))


def test_reading_from_the_start_is_fresh_and_going_on_is_the_same_content(view):
    wire = Wire(view)
    contents = iter([b"a" * 10, b"b" * 10])
    wire.server._make = (lambda: next(contents),) * 8

    def read(offset, count):
        return wire.ask(
            protocol.Op.READ, 2, (7).to_bytes(8, "little") + offset.to_bytes(8, "little")
            + count.to_bytes(4, "little"),
        )  # fmt: skip

    assert read(0, 6) == b"aaaaaa"
    assert read(6, 6) == b"aaaa"
    assert read(10, 6) == b""
    assert read(0, 20) == b"b" * 10


@pytest.mark.parametrize(
    ("op", "node", "body", "number"),
    [
        (protocol.Op.LOOKUP, 1, b"shadow\0", 2),
        (protocol.Op.LOOKUP, 2, b"meminfo\0", 2),
        (protocol.Op.OPEN, 2, (1).to_bytes(8, "little"), 13),
        (protocol.Op.WRITE, 2, b"", 30),
        (protocol.Op.GETATTR, 99, b"", 116),
        (protocol.Op.READ, 1, bytes(20), 21),
    ],
)
def test_everything_but_reading_is_refused(view, op, node, body, number):
    with pytest.raises(OSError) as error:
        Wire(view).ask(op, node, body)
    assert error.value.errno == number
