"""``recover`` gives a container its template's files back and leaves what is its users'."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from posixcases import beds

from vzfs.check import Area
from vzfs.restoring import Restored, Restorer

pytestmark = pytest.mark.root


def test_damage_is_undone_and_own_files_stay(system):
    system.create(101)
    system.ok("vzctl", "start", 101)
    shown = system.ok("vzctl", "exec", 101, "stat -c '%n %a %u %s %F' / /etc /bin /bin/* /usr/*")
    system.ok(
        "vzctl", "exec", 101,
        "echo mine > /etc/mine; mkdir -p /srv /var/lib/x; echo data > /var/lib/x/y;"
        "echo changed > /etc/passwd; echo kept > /bin/kept; mv /bin/ls /root/ls;"
        "rm /bin/vi; rm /etc/group; rm -r /usr; mkdir /usr; echo own > /usr/own;"
        "chmod 700 /etc; chmod 711 /; rm /bin/cat; mkdir /bin/cat;",
    )  # fmt: skip
    said = system.ok("pctl", "recover", 101, "--dry-run")
    assert "/bin/vi" in said
    assert system.run("vzctl", "exec2", 101, "test -e /bin/vi").returncode == 1
    done = system.run("vzctl", "recover", 101)
    assert done.returncode == 0, done.stderr
    assert "Recovering Container completed successfully" in done.stdout
    assert "'/bin/cat' stays" in done.stderr
    inside = system.ok(
        "vzctl", "exec", 101,
        "rmdir /bin/cat; cat /etc/mine /var/lib/x/y /etc/passwd /bin/kept /usr/own;"
        "test -s /etc/group && echo group; test -L /root/ls && echo moved; stat -c %a / /etc",
    )  # fmt: skip
    assert inside.split() == [
        "mine",
        "data",
        "changed",
        "kept",
        "own",
        "group",
        "moved",
        "755",
        "755",
    ]
    system.ok("vzctl", "exec", 101, "rm /bin/kept /usr/own")
    assert "vi" in system.ok("vzctl", "exec", 101, "ls /bin")
    assert "Files and directories restored: 1" in system.ok("vzctl", "recover", 101)
    again = system.ok("vzctl", "exec", 101, "stat -c '%n %a %u %s %F' / /etc /bin /bin/* /usr/*")
    assert again == shown


@pytest.fixture
def bed(tmp_path: Path):
    """A private area above one tree, with a file of two names and one of its own."""
    tree = tmp_path / "tree"
    (tree / "lib" / "deep").mkdir(parents=True)
    for name in ("one", "two", "lib/plain", "lib/deep/leaf"):
        (tree / name).write_text(f"template {name}")
    os.link(tree / "one", tree / "alias")
    bed = beds.Vzfs(tmp_path / "bed", 0)
    bed.lowers = (tree,)
    try:
        yield bed
    finally:
        bed.abandon()


def restore(bed: beds.Vzfs) -> Restored:
    area = Area(bed.options(), modify=True)
    try:
        done = Restorer(area).restore(lambda difference: True)
        assert list(area.check()) == []
        return done
    finally:
        area.close()


def test_a_copy_that_was_moved_away_becomes_a_file_of_its_own(bed):
    with bed.mounted():
        os.chmod(bed.merged / "two", 0o600)
        os.rename(bed.merged / "two", bed.merged / "moved")
        os.chmod(bed.merged / "lib/deep/leaf", 0o600)
        os.rename(bed.merged / "lib/deep/leaf", bed.merged / "leaf")
        os.rmdir(bed.merged / "lib/deep")
    assert restore(bed).kept == {}
    with bed.mounted():
        assert (bed.merged / "moved").read_text() == "template two"
        assert (bed.merged / "moved").stat().st_mode & 0o777 == 0o600
        assert (bed.merged / "two").stat().st_ino != (bed.merged / "moved").stat().st_ino
        (bed.merged / "moved").write_text("private")
        assert (bed.merged / "two").read_text() == "template two"
        (bed.merged / "leaf").write_text("private")
        assert (bed.merged / "lib/deep/leaf").read_text() == "template lib/deep/leaf"


def test_files_with_several_names_are_restored_under_all(bed):
    with bed.mounted():
        (bed.merged / "one").write_text("changed")
        os.link(bed.merged / "one", bed.merged / "third")
        assert (bed.merged / "alias").read_text() == "changed"
    restore(bed)
    with bed.mounted():
        assert (bed.merged / "one").read_text() == (bed.merged / "alias").read_text()
        assert (bed.merged / "one").read_text() == "template one"
        assert (bed.merged / "third").read_text() == "changed"
        assert (bed.merged / "third").stat().st_ino != (bed.merged / "one").stat().st_ino


def test_a_directory_that_was_moved_stays_where_it_is(bed):
    with bed.mounted():
        os.rename(bed.merged / "lib", bed.merged / "library")
        (bed.merged / "library/own").write_text("own")
    assert restore(bed).kept == {b"/lib": "it was moved to /library"}
    with bed.mounted():
        assert sorted(os.listdir(bed.merged / "library")) == ["deep", "own", "plain"]
        assert not (bed.merged / "lib").exists()


def test_a_directory_made_anew_shows_the_old_contents_again(bed):
    with bed.mounted():
        for name in ("lib/deep/leaf", "lib/plain"):
            os.unlink(bed.merged / name)
        os.rmdir(bed.merged / "lib/deep")
        os.rmdir(bed.merged / "lib")
        (bed.merged / "lib").mkdir(mode=0o700)
        (bed.merged / "lib/own").write_text("own")
        (bed.merged / "lib/plain").write_text("other")
    restore(bed)
    with bed.mounted():
        assert sorted(os.listdir(bed.merged / "lib")) == ["deep", "own", "plain"]
        assert (bed.merged / "lib/plain").read_text() == "template lib/plain"
        assert (bed.merged / "lib").stat().st_mode & 0o777 == 0o755


def test_killed_between_any_two_steps_the_next_run_does_the_rest(bed, monkeypatch):
    class Killed(BaseException):
        pass

    with bed.mounted():
        (bed.merged / "one").write_text("changed")
        os.rename(bed.merged / "two", bed.merged / "moved")
        for name in ("lib/deep/leaf", "lib/plain"):
            os.unlink(bed.merged / name)
        os.rmdir(bed.merged / "lib/deep")
        os.chmod(bed.merged / "lib", 0o700)
    steps = 0
    apply, part = Restorer._apply, Restorer._part

    def count(function):
        def counted(self, *given):
            nonlocal steps
            if steps == 0:
                raise Killed
            steps -= 1
            function(self, *given)

        return counted

    monkeypatch.setattr(Restorer, "_apply", count(apply))
    monkeypatch.setattr(Restorer, "_part", count(part))
    for allowed in range(1, 12):
        steps = allowed
        try:
            done = restore(bed)
        except Killed:
            continue
        assert done.kept == {}
        break
    else:
        raise AssertionError("it never came to an end")
    assert allowed > 1, "nothing was interrupted"
    with bed.mounted():
        for name in ("one", "alias", "two", "lib/plain", "lib/deep/leaf"):
            wanted = f"template {'one' if name == 'alias' else name}"
            assert (bed.merged / name).read_text() == wanted
        assert (bed.merged / "moved").read_text() == "template two"
        assert (bed.merged / "lib").stat().st_mode & 0o777 == 0o755
