"""vzquota, vzdqcheck, vzdqdump and vzdqload as their users see them."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tools import quotaview, vzdqcheck, vzdqdump, vzdqload, vzquota
from vzfs.quotafile import QuotaFile
from vzfs.quotalayout import F_DIRTY, W_BOOT

Run = Callable[..., int]
LIMITS = ("-b", "1000", "-B", "1100", "-i", "90", "-I", "100", "-e", "7d", "-n", "600")


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Return a function that runs vzquota on a system of its own, with an area ``a``."""
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "f").write_bytes(b"x" * 300_000)

    def run(*words: str) -> int:
        head = [word for word in words if word in ("-b", "-q", "-v") and word == words[0]]
        rest = words[len(head) :]
        return vzquota.main([*head, "--root", str(tmp_path), *rest])

    return run


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return where the quota file of container 101 is."""
    return tmp_path / "var/vzquota/quota.101"


@pytest.fixture
def made(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Return ``run`` with a quota file made."""
    assert run("init", "101", "-p", str(tmp_path / "a"), *LIMITS) == 0
    capsys.readouterr()
    return run


def test_stat_prints_the_columns_of_the_manual(
    made: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    made("on", "101")
    assert made("stat", "101") == 0
    assert capsys.readouterr().out == (
        "   resource          usage       softlimit      hardlimit    grace\n"
        "  1k-blocks            300            1000           1100         \n"
        "     inodes              2              90            100         \n"
    )


def test_a_star_and_the_grace_left_mark_what_is_over_its_soft_limit(
    made: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    made("on", "101")
    made("setlimit", "101", "-b", "100")
    made("-q", "stat", "101")
    assert (
        "  1k-blocks            300*            100           1100    7days"
        in capsys.readouterr().out
    )


def test_batch_output_is_numbers(made: Run, capsys: pytest.CaptureFixture[str]) -> None:
    made("-b", "show", "101")
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines] == [
        ["300", "1000", "1100", "0", "604800"],
        ["2", "90", "100", "0", "600"],
    ]


def test_json_has_field_names(made: Run, capsys: pytest.CaptureFixture[str]) -> None:
    made("show", "101", "-j")
    state = json.loads(capsys.readouterr().out)
    assert state["blocks"]["usage"] == 300
    assert state["inodes"]["hardlimit"] == 100
    assert state["running"] is False


def test_stat_t_of_inactive_users_says_so_with_9(
    made: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    made("on", "101")
    assert made("stat", "101", "-t") == 9
    assert "User/group quota: off,inactive\n" in capsys.readouterr().out


def test_stat_t_lists_users_and_groups(made: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert made("on", "101", "-s", "1", "-u", "10") == 0
    assert made("setlimit2", "101", "-u", "0", "10", "2000", "30", "40") == 0
    assert made("setlimit2", "101", "-t", "-u", "1d", "2:00") == 0
    capsys.readouterr()
    assert made("stat", "101", "-t") == 0
    out = capsys.readouterr().out
    assert "User/group quota: on,active\nUgids: loaded 2, total 2, limit 10\n" in out
    assert "Ugid limit was exceeded: no\n" in out
    assert " type block_exp_time inode_exp_time  dqi_flags\n" in out
    assert " user          1days          00:02         0h\n" in out
    header = "ID           type  resource       usage   softlimit   hardlimit    grace status\n"
    assert header in out
    row = "0            user 1k-blocks         300          10        2000    1days loaded\n"
    assert row in out


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("init", "101"), 2),
        (("init", "101", "-p", "a", "-b", "1"), 2),
        (("on", "101"), 11),
        (("off", "101"), 11),
        (("stat", "101"), 11),
        (("show", "101"), 11),
        (("drop", "101"), 11),
        (("setlimit", "101", "-b", "1"), 11),
        (("setlimit2", "101", "-u", "1", "1", "2", "3", "4"), 11),
        (("reload2", "101"), 11),
        (("on", "web"), 2),
        (("frobnicate", "101"), 2),
        (("setlimit", "101", "-b", "many"), 2),
        (("setlimit", "101", "-e", "soon"), 2),
    ],
)
def test_failures_have_the_documented_codes(run: Run, words: tuple[str, ...], code: int) -> None:
    assert run(*words) == code


def test_init_of_a_missing_directory_is_13(run: Run, path: Path) -> None:
    assert run("init", "101", "-p", "/nonexistent", *LIMITS) == 13
    assert not path.exists()


def test_on_twice_is_5_and_off_twice_is_6(made: Run) -> None:
    assert [made("on", "101"), made("on", "101")] == [0, 5]
    assert [made("off", "101"), made("off", "101")] == [0, 6]


def test_stat_of_a_quota_that_is_off_is_6(made: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert made("stat", "101") == 6
    assert "Quota accounting is off, try vzquota show id" in capsys.readouterr().err


def test_init_and_drop_of_a_running_quota_are_refused(
    made: Run, path: Path, tmp_path: Path
) -> None:
    made("on", "101")
    assert made("init", "101", "-p", str(tmp_path / "a"), *LIMITS) == 5
    assert made("drop", "101") == 5
    assert path.exists()
    assert made("drop", "101", "-f") == 0
    assert not path.exists()


def test_a_file_that_is_no_quota_file_is_4(run: Run, path: Path) -> None:
    path.parent.mkdir(parents=True)
    path.write_text("something else")
    assert run("show", "101") == 4
    assert run("on", "101") == 4
    assert run("drop", "101") == 4
    assert run("drop", "101", "-f") == 0


def test_a_file_somebody_keeps_locked_is_7(
    made: Run, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    edit = QuotaFile.edit
    monkeypatch.setattr(QuotaFile, "edit", lambda self: edit(self, 0.02))
    with QuotaFile.open(path) as holder:
        assert holder.try_edit()
        assert made("on", "101") == 7


def test_show_of_a_dirty_quota_is_10(made: Run) -> None:
    assert made("setlimit", "101", "-f") == 0
    assert made("show", "101") == 10
    assert made("on", "101") == 0
    assert made("off", "101") == 0
    assert made("show", "101") == 0


def test_on_after_a_crash_counts_afresh(
    made: Run, path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made("on", "101")
    with QuotaFile.open(path) as file:
        file.live[W_BOOT] += 1
    (tmp_path / "a" / "more").touch()
    assert made("show", "101") == 10
    assert made("on", "101") == 0
    assert "Incorrect quota shutdown" in capsys.readouterr().err
    made("-b", "stat", "101")
    assert capsys.readouterr().out.splitlines()[1].split()[0] == "3"


def test_off_after_a_crash_repairs_the_file_and_leaves_it_dirty(made: Run, path: Path) -> None:
    made("on", "101")
    with QuotaFile.open(path) as file:
        file.live[W_BOOT] += 1
    assert made("off", "101") == 0
    with QuotaFile.open(path) as file:
        assert file.flags & F_DIRTY


def test_a_soft_limit_above_the_hard_one_is_refused_and_changes_nothing(
    made: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    assert made("setlimit", "101", "-b", "5000") == 2
    assert "block_hard_limit [1100] < block_soft_limit [5000]" in capsys.readouterr().err
    made("-b", "show", "101")
    assert capsys.readouterr().out.split()[1] == "1000"


def test_setlimit2_needs_users_and_groups_to_be_active(made: Run) -> None:
    words = ("setlimit2", "101", "-u", "5", "1", "2", "3", "4")
    assert made(*words) == 6
    made("on", "101")
    assert made(*words) == 6


def test_setlimit2_by_options_keeps_the_other_limits(
    made: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    made("on", "101", "-s", "1", "-u", "10")
    made("setlimit2", "101", "-g", "7", "1", "2", "3", "4")
    assert made("setlimit2", "101", "-g", "7", "-B", "9") == 0
    capsys.readouterr()
    made("stat", "101", "-j")
    objects = json.loads(capsys.readouterr().out)["ugid"]["objects"]
    (row,) = (row for row in objects if (row["type"], row["id"]) == ("group", 7))
    assert (row["block_softlimit"], row["block_hardlimit"], row["inode_hardlimit"]) == (1, 9, 4)


def test_a_relative_quota_file_lies_beside_its_area(run: Run, tmp_path: Path) -> None:
    area = str(tmp_path / "a")
    assert run("init", "101", "-R", "-p", area, *LIMITS) == 0
    assert (tmp_path / "quota.a").exists()
    assert run("on", "101", "-R", "-p", area) == 0


def test_of_a_private_area_the_users_layer_is_accounted(run: Run, tmp_path: Path) -> None:
    for name in ("root", "cow/index", "dump"):
        (tmp_path / "private" / name).mkdir(parents=True)
    assert run("init", "101", "-p", str(tmp_path / "private"), *LIMITS) == 0
    with QuotaFile.open(tmp_path / "var/vzquota/quota.101") as file:
        assert file.area == str(tmp_path / "private/root")
        assert file.index == str(tmp_path / "private/cow/index")


def test_the_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert vzquota.main(["-V"]) == 0
    assert capsys.readouterr().out.startswith("vzquota ")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(29, "00:00"), (30, "00:01"), (3600, "01:00"), (86399, "1days"), (86400 * 3, "3days")],
)
def test_periods_are_rounded_as_vzquota_does(seconds: int, text: str) -> None:
    assert quotaview.period(seconds) == text


def test_expired_grace_is_none() -> None:
    assert [quotaview.grace(0, 5), quotaview.grace(5, 5), quotaview.grace(65, 5)] == [
        "",
        "none",
        "00:01",
    ]


def test_vzdqcheck_counts_a_tree(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "f").write_bytes(b"x" * 5000)
    assert vzdqcheck.main([str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert out == f"quota usage for {tmp_path}\n     blocks     inodes\n         12          2\n"
    assert vzdqcheck.main([str(tmp_path / "f")]) == 13


def test_what_vzdqdump_prints_vzdqload_loads(
    made: Run,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made("on", "101", "-s", "1", "-u", "10")
    made("setlimit2", "101", "-g", "7", "1", "2", "3", "4")
    made("setlimit2", "101", "-t", "-g", "11", "12")
    made("off", "101")
    capsys.readouterr()
    dump = ["--root", str(tmp_path), "101", "-G", "-U", "-T", "-F"]
    assert vzdqdump.main(dump) == 0
    text = capsys.readouterr().out
    assert "ugid_quota_status:\t1\n" in text and "ugid:\t7\t1\t1\t2\t3\t4\t0\t0\n" in text
    made("init", "101", "-p", str(tmp_path / "a"), *LIMITS, "-s", "1", "-u", "10")
    monkeypatch.setattr("sys.stdin", io.StringIO(text))
    assert vzdqload.main(dump) == 0
    capsys.readouterr()
    assert vzdqdump.main(dump) == 0
    assert capsys.readouterr().out == text


def test_vzdqload_into_a_running_quota_is_refused(
    made: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made("on", "101")
    monkeypatch.setattr("sys.stdin", io.StringIO("ugid_quota_status:\t0\n"))
    assert vzdqload.main(["--root", str(tmp_path), "101", "-G"]) == 5


@pytest.mark.parametrize(
    "text",
    [
        "",
        "ugid_quota_status:\t2\n",
        "ugid_quota_status:\t1\ngrace_time:\t1\t2\t3\n",
        "ugid_quota_status:\t1\ngrace_time:\t0\t2\t-3\n",
        "nonsense\n",
    ],
)
def test_a_bad_dump_is_refused_and_changes_nothing(
    made: Run, tmp_path: Path, path: Path, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = path.read_bytes()
    monkeypatch.setattr("sys.stdin", io.StringIO(text))
    assert vzdqload.main(["--root", str(tmp_path), "101", "-G"]) == 2
    assert path.read_bytes() == before
