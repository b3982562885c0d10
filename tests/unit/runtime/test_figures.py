"""Figures of a container from control files as kernels of both cgroup versions write them."""

from dataclasses import dataclass

import pytest

from runtime import figures
from runtime.figures import Figures


@dataclass(frozen=True)
class Hosts:
    v1: dict
    v2: str | None


def write(place, **files):
    place.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (place / name.replace("__", ".")).write_text(text)


@pytest.fixture
def v1(tmp_path, monkeypatch):
    mounts = {name: str(tmp_path / name) for name in ("memory", "pids", "blkio", "cpu", "cpuacct")}
    monkeypatch.setattr(figures, "hierarchies", lambda: Hosts(mounts, None))
    write(
        tmp_path / "memory/pyvz/101",
        memory__stat="cache 1\nrss 1\ntotal_cache 5000\ntotal_rss 3000\ntotal_shmem 1000\n",
        memory__usage_in_bytes="9000\n",
        memory__max_usage_in_bytes="9500\n",
        memory__limit_in_bytes="268435456\n",
        **{"memory__memsw.usage_in_bytes": "9600\n", "memory__memsw.limit_in_bytes": "301989888\n"},
        memory__oom_control="oom_kill_disable 0\nunder_oom 0\noom_kill 2\n",
        memory__failcnt="7\n",
    )
    write(
        tmp_path / "pids/pyvz/101",
        pids__current="5\n",
        pids__max="max\n",
        pids__events="max 3\n",
    )
    write(
        tmp_path / "blkio/pyvz/101",
        **{
            "blkio__throttle.io_service_bytes_recursive": (
                "8:0 Read 4096\n8:0 Write 8192\n8:0 Total 12288\n8:16 Read 1\nTotal 12289\n"
            ),
            "blkio__throttle.io_serviced_recursive": "8:0 Read 1\n8:0 Write 2\nTotal 3\n",
        },
    )
    write(tmp_path / "cpu/pyvz/101", cpu__stat="nr_periods 9\nnr_throttled 4\nthrottled_time 77\n")
    write(
        tmp_path / "cpuacct/pyvz/101",
        cpuacct__usage="3000\n",
        cpuacct__usage_user="2000\n",
        cpuacct__usage_sys="1000\n",
        cpuacct__usage_percpu_user="1500 500\n",
        cpuacct__usage_percpu_sys="400 600\n",
    )
    return Figures("", 101)


@pytest.fixture
def v2(tmp_path, monkeypatch):
    monkeypatch.setattr(figures, "hierarchies", lambda: Hosts({}, str(tmp_path)))
    place = tmp_path / "pyvz/101"
    write(
        place,
        memory__stat="anon 3000\nfile 5000\nkernel 700\nsock 30\nshmem 1000\nslab_reclaimable 50\n",
        memory__current="9000\n",
        memory__peak="9500\n",
        memory__max="max\n",
        **{"memory__swap.current": "600\n", "memory__swap.max": "33554432\n"},
        memory__events="low 0\nhigh 0\nmax 7\noom 1\noom_kill 2\n",
        pids__current="5\n",
        pids__max="480\n",
        pids__events="max 3\n",
        io__stat="8:0 rbytes=4096 wbytes=8192 rios=1 wios=2 dbytes=0 dios=0\n8:16 rbytes=1\n",
        cpu__stat="usage_usec 3\nuser_usec 2\nsystem_usec 1\nnr_throttled 4\nthrottled_usec 5\n",
        **{"cpuset__cpus.effective": "0-1,3\n"},
        cpu__pressure="some avg10=0.00 avg60=0.00 avg300=0.00 total=1234\nfull total=9\n",
        cgroup__procs="",
        cgroup__threads="",
    )
    write(place / "ct", cgroup__procs="11\n12\n", cgroup__threads="11\n12\n13\n")
    write(place / "ct/system.slice", cgroup__procs="20\n", cgroup__threads="20\n")
    return Figures("", 101)


def test_v1_swap_is_the_sum_less_the_memory(v1):
    memory = v1.memory()
    assert (memory.used, memory.swap, memory.limit) == (9000, 600, 268435456)
    assert memory.swap_limit == 33554432
    assert (memory.cache, memory.anonymous, memory.shared) == (5000, 3000, 1000)
    assert (memory.peak, memory.limit_hits, memory.oom_kills) == (9500, 7, 2)


def test_v2_refused_forks_are_found_where_the_kernel_counts_them(v2, tmp_path):
    write(tmp_path / "pyvz/101", **{"pids__events.local": "max 0\n"})
    write(tmp_path / "pyvz/101/ct", pids__events="max 4\n")
    assert v2.tasks().failures == 3
    (tmp_path / "pyvz/101/pids.events.local").unlink()
    write(tmp_path / "pyvz/101", pids__events="max 0\n")
    write(tmp_path / "pyvz/101/ct/system.slice", pids__events="max 2\n")
    assert v2.tasks().failures == 6


def test_v1_counts_processors_one_by_one(v1):
    assert v1.cpu_of_each() == [(1500, 400), (500, 600)]
    cpu = v1.cpu()
    assert (cpu.total_ns, cpu.user_ns, cpu.throttled_ns, cpu.throttled_periods) == (
        3000,
        2000,
        77,
        4,
    )


def test_disk_io_is_summed_over_devices(v2):
    assert (v2.io().read_bytes, v2.io().written_bytes, v2.io().writes) == (4097, 8192, 2)
    assert v2.io_of_each()["8:16"].read_bytes == 1


def test_v1_disk_io_leaves_totals_out(v1):
    assert (v1.io().read_bytes, v1.io().written_bytes, v1.io().reads) == (4097, 8192, 1)


def test_v2_memory_has_no_limit_where_it_says_max(v2):
    memory = v2.memory()
    assert (memory.used, memory.swap, memory.limit, memory.swap_limit) == (
        9000,
        600,
        None,
        33554432,
    )
    assert (memory.kernel, memory.slab_reclaimable, memory.oom_kills) == (730, 50, 2)


def test_v2_times_are_nanoseconds_and_processors_unknown(v2):
    cpu = v2.cpu()
    assert (cpu.total_ns, cpu.system_ns, cpu.throttled_ns) == (3000, 1000, 5000)
    assert v2.cpu_of_each() is None
    assert v2.cpus() == "0-1,3"
    assert v2.stalled_us("cpu") == 1234
    assert v2.stalled_us("io") is None


def test_processes_of_groups_below_are_its_own(v2):
    assert sorted(v2.pids()) == [11, 12, 20]
    assert sorted(v2.threads()) == [11, 12, 13, 20]
    tasks = v2.tasks()
    assert (tasks.now, tasks.limit, tasks.failures) == (5, 480, 3)


def test_a_container_that_is_gone_has_nothing(v2, tmp_path, monkeypatch):
    monkeypatch.setattr(figures, "hierarchies", lambda: Hosts({}, str(tmp_path / "none")))
    gone = Figures("", 101)
    assert not gone.exists and gone.pids() == []
    assert gone.memory().used == 0 and gone.io().read_bytes == 0


def test_files_kept_open_show_what_is_written_later(v2, tmp_path):
    kept = Figures("", 101, keep_open=True)
    assert kept.tasks().now == 5
    (tmp_path / "pyvz/101/pids.current").write_text("6\n")
    assert kept.tasks().now == 6
