"""Caches of OS templates: built whole or not at all, shared file by file, kept while used."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import _templates
import pytest
from conftest import System

pytestmark = pytest.mark.root

BUSYBOX = _templates.BUSYBOX


@pytest.fixture
def alone() -> Iterator[System]:
    """A system with a template area of its own."""
    root = Path(tempfile.mkdtemp(prefix="pyvz-", dir="/var/tmp"))
    system = System(root)
    try:
        yield system
        assert system.strays() == []
    finally:
        system.close()
        shutil.rmtree(root, ignore_errors=True)


def test_list_shows_when_a_template_was_cached(alone: System) -> None:
    before = alone.ok("vzpkg", "list", "-O").splitlines()
    assert BUSYBOX in before
    alone.ok("vzpkg", "create", "cache", "busybox")
    line = next(line for line in alone.ok("vzpkg", "list", "-O").splitlines() if BUSYBOX in line)
    assert time.strptime(line[35:], "%Y-%m-%d %H:%M:%S")
    (body,) = json.loads(alone.ok("vzpkg", "list", "-O", "--json", "busybox"))
    assert body["init"] == "busybox" and body["files"] > 10


def test_a_second_build_is_refused_and_changes_nothing(alone: System) -> None:
    alone.ok("vzpkg", "create", "cache", "busybox")
    before = _templates.trees(alone)
    assert "exists already" in alone.fails(29, "vzpkg", "create", "cache", "busybox")
    assert _templates.trees(alone) == before


def test_force_keeps_the_old_cache_and_the_tree_a_container_stands_on(alone: System) -> None:
    alone.create(101)
    first = _templates.tree(alone, BUSYBOX)
    alone.ok("vzpkg", "create", "cache", "-f", "busybox")
    old = json.loads((alone.paths.template / f"cache/{BUSYBOX}-old.json").read_text())
    assert alone.paths.template / old["tree"] == first
    alone.ok("vzpkg", "create", "cache", "-f", "busybox")
    assert first.is_dir(), "the container's tree is gone"
    alone.ok("vzctl", "start", 101)
    assert alone.ok("vzctl", "exec", 101, "echo", "up") == "up\n"
    alone.ok("vzctl", "stop", 101, "--fast")
    alone.ok("vzctl", "destroy", 101)
    alone.ok("vzpkg", "clean")
    assert not first.exists()


@pytest.mark.parametrize("delay_s", [0.0, 0.05, 0.1, 0.15, 0.2, 0.3])
def test_a_killed_build_leaves_no_half_cache(alone: System, delay_s: float) -> None:
    process = alone.popen(
        "vzpkg", "create", "cache", "busybox", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    time.sleep(0.1 + delay_s)
    process.send_signal(signal.SIGKILL)
    process.wait()
    built = (alone.paths.template / f"cache/{BUSYBOX}.json").exists()
    if built:
        assert (_templates.tree(alone, BUSYBOX) / "sbin/init").is_symlink()
    alone.create(101)
    assert (_templates.tree(alone, BUSYBOX) / "sbin/init").is_symlink()
    assert [path.name for path in _templates.trees(alone) if path.name.startswith(".")] == []
    alone.ok("vzpkg", "clean")
    assert len(_templates.trees(alone)) == 1
    alone.ok("vzctl", "destroy", 101)


def test_a_failing_script_leaves_the_area_as_it_was(alone: System) -> None:
    alone.ok("vzpkg", "list")
    directory = _templates.copy(alone, BUSYBOX, "broken-1-x86_64")
    (directory / "post-cache").write_text("echo no such luck >&2\nexit 7\n")
    assert "no such luck" in alone.fails(8, "vzpkg", "create", "cache", "broken-1-x86_64")
    assert _templates.trees(alone) == []
    assert alone.fails(93, "vzctl", "create", 101, "--ostemplate", "broken-1", "--force")
    assert not alone.paths.private(101).exists()


def test_two_builds_at_once_make_one_cache(alone: System) -> None:
    alone.ok("vzpkg", "list")
    directory = _templates.copy(alone, BUSYBOX, "slow-1-x86_64")
    (directory / "pre-cache").write_text("sleep 1\n")
    builds = [
        alone.popen("vzpkg", "create", "cache", "slow-1", stderr=subprocess.DEVNULL)
        for _ in range(2)
    ]
    assert [build.wait() for build in builds] == [0, 0]
    assert len(_templates.trees(alone)) == 1


def test_templates_share_equal_files_as_one_inode(alone: System) -> None:
    alone.ok("vzpkg", "create", "cache", "busybox")
    directory = _templates.copy(alone, BUSYBOX, "other-2-x86_64")
    (directory / "post-cache").write_text('echo different >"$VE_ROOT/etc/issue"\n')
    alone.ok("vzpkg", "create", "cache", "other-2-x86_64")
    one, other = _templates.tree(alone, BUSYBOX), _templates.tree(alone, "other-2-x86_64")
    assert _templates.inode(one / "bin/busybox") == _templates.inode(other / "bin/busybox")
    assert _templates.inode(one / "etc/issue") != _templates.inode(other / "etc/issue")


def test_only_genuine_hard_links_are_one_inode_within_a_tree(alone: System) -> None:
    alone.ok("vzpkg", "list")
    directory = _templates.copy(alone, BUSYBOX, "links-1-x86_64")
    (directory / "post-cache").write_text(
        'cd "$VE_ROOT/etc"; echo same >a; echo same >b; ln a c; touch -r a b\n'
    )
    alone.ok("vzpkg", "create", "cache", "links-1")
    tree = _templates.tree(alone, "links-1-x86_64")
    assert _templates.inode(tree / "etc/a") == _templates.inode(tree / "etc/c")
    assert _templates.inode(tree / "etc/a") != _templates.inode(tree / "etc/b")
    groups = json.loads(tree.with_name(f"{tree.name}.groups").read_text())
    assert groups == [["etc/a", "etc/c"]]


def test_a_damaged_store_entry_is_not_used_again(alone: System) -> None:
    alone.ok("vzpkg", "create", "cache", "busybox")
    first = _templates.tree(alone, BUSYBOX)
    os.truncate(first / "etc/passwd", 3)
    alone.ok("vzpkg", "create", "cache", "-f", "busybox")
    assert (_templates.tree(alone, BUSYBOX) / "etc/passwd").read_text().startswith("root:x:0:0")


def test_a_template_in_use_is_not_removed(alone: System) -> None:
    alone.create(101)
    assert "101" in alone.fails(27, "vzpkg", "remove", "template", "busybox")
    alone.ok("vzctl", "destroy", 101)
    alone.ok("vzpkg", "remove", "template", "busybox")
    assert not (alone.paths.template / "busybox").exists()
    assert BUSYBOX not in alone.ok("vzpkg", "list", "-O")
    alone.fails(91, "vzctl", "create", 101, "--ostemplate", "busybox", "--force")
    assert BUSYBOX in alone.ok("vzpkg", "list", "--available")
    alone.ok("vzpkg", "install", "template", "busybox")
    assert BUSYBOX in alone.ok("vzpkg", "list", "-O")


def test_a_removed_cache_stays_for_its_containers(alone: System) -> None:
    alone.create(101)
    alone.ok("vzpkg", "remove", "cache", "busybox")
    alone.fails(23, "vzpkg", "remove", "cache", "busybox")
    alone.ok("vzctl", "start", 101)
    assert alone.ok("vzctl", "exec", 101, "echo", "up") == "up\n"
    alone.ok("vzctl", "stop", 101, "--fast")
    alone.ok("vzctl", "destroy", 101)


def test_create_does_not_build_where_that_is_forbidden(alone: System) -> None:
    alone.paths.etc.mkdir(parents=True, exist_ok=True)
    alone.paths.global_config.write_text('CREATE_MISSING_CACHE="no"\n')
    error = alone.fails(91, "vzctl", "create", 101, "--ostemplate", "busybox", "--force")
    assert "vzpkg create cache" in error


def test_the_template_area_is_where_the_configuration_says(alone: System) -> None:
    alone.paths.etc.mkdir(parents=True, exist_ok=True)
    alone.paths.global_config.write_text('TEMPLATE="/srv/templates"\n')
    alone.create(101)
    area = alone.paths.area("/srv/templates")
    assert (area / "cache/busybox-1-x86_64.json").is_file()
    assert not alone.paths.template.exists()
    alone.ok("vzctl", "start", 101)
    assert alone.ok("vzctl", "exec", 101, "echo", "up") == "up\n"
    assert "busybox" in alone.ok("vzpkg", "list", "-O")
    shared = json.loads(alone.ok("pctl", "sharing", "-j"))
    assert shared["total"]["shared_files"] > 0
    alone.ok("vzctl", "stop", 101, "--fast")
    alone.ok("vzpkg", "remove", "cache", "busybox")
    alone.ok("vzctl", "start", 101)
    alone.ok("vzctl", "stop", 101, "--fast")
    alone.ok("vzctl", "destroy", 101)


@pytest.mark.parametrize(
    ("code", "name"),
    [
        (24, "debian-99-x86_64"),
        (24, "debian"),
        (46, "../../etc"),
        (46, "a\nb"),
        (46, "x" * 300),
        (46, "шаблон"),
        (46, ""),
    ],
)
def test_a_bad_name_is_told_with_its_code(alone: System, code: int, name: str) -> None:
    alone.fails(code, "vzpkg", "create", "cache", name)
    assert not alone.paths.private_dir.exists() or not any(alone.paths.private_dir.iterdir())


def test_an_unknown_repository_is_explained(alone: System) -> None:
    alone.ok("vzpkg", "list")
    _templates.define(
        alone, "nowhere-1-x86_64", packages="bash\n", package_manager="dpkg\n",
        repositories="$NOWHERE_SERVER stable main\n",
    )  # fmt: skip
    assert "url.map" in alone.fails(56, "vzpkg", "create", "cache", "nowhere-1")
    (alone.root / "etc/vztt").mkdir(parents=True)
    (alone.root / "etc/vztt/url.map").write_text("$NOWHERE_SERVER file:///nonexistent/archive\n")
    done = alone.run("vzpkg", "create", "cache", "nowhere-1")
    assert done.returncode in (8, 52), done.stderr
    assert _templates.trees(alone) == []


def test_unknown_package_managers_are_named(alone: System) -> None:
    alone.ok("vzpkg", "list")
    _templates.define(alone, "rpm-1-x86_64", packages="bash\n", package_manager="rpm49x64\n")
    assert "rpm49x64" in alone.fails(45, "vzpkg", "create", "cache", "rpm-1")


def test_a_set_adds_to_its_base(alone: System) -> None:
    alone.ok("vzpkg", "list")
    place = _templates.place(alone, BUSYBOX) / "config/os/extra"
    place.mkdir()
    (place / "packages").write_text("busybox-static\n")
    (place / "post-cache").write_text('echo set >"$VE_ROOT/etc/set"\n')
    alone.ok("vzpkg", "create", "cache", f"{BUSYBOX}-extra")
    alone.create(101, f"{BUSYBOX}-extra")
    alone.ok("vzctl", "start", 101)
    assert alone.ok("vzctl", "exec", 101, "cat", "/etc/set") == "set\n"
    alone.ok("vzctl", "stop", 101, "--fast")
    alone.ok("vzctl", "destroy", 101)
    assert "extra" in alone.fails(32, "vzpkg", "remove", "template", "busybox")


def test_an_archive_becomes_a_template(alone: System, tmp_path: Path) -> None:
    alone.ok("vzpkg", "create", "cache", "busybox")
    archive = tmp_path / "rootfs.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(_templates.tree(alone, BUSYBOX), ".")
    directory = _templates.define(
        alone, "packed-1-x86_64", packages="", package_manager="archive\n",
        repositories=f"file://{archive} sha256:{'0' * 64}\n",
    )  # fmt: skip
    assert "digest" in alone.fails(52, "vzpkg", "create", "cache", "packed-1")
    (directory / "repositories").write_text(f"file://{archive}\n")
    alone.create(101, "packed-1")
    alone.ok("vzctl", "start", 101)
    assert "busybox" in alone.ok("vzctl", "exec", 101, "cat", "/etc/os-release")
    alone.ok("vzctl", "stop", 101, "--fast")
    alone.ok("vzctl", "destroy", 101)


def test_what_an_administrator_changed_is_not_replaced(alone: System) -> None:
    alone.ok("vzpkg", "list")
    summary = _templates.place(alone, BUSYBOX) / "config/os/default/summary"
    summary.write_text("mine\n")
    assert ":mine" in alone.ok("vzpkg", "list", "-O", "-S", "busybox")


def test_a_private_area_is_small_and_only_roots(alone: System) -> None:
    alone.create(101)
    private = alone.paths.private(101)
    used = subprocess.run(["du", "-sk", private], capture_output=True, text=True, check=True)
    assert int(used.stdout.split()[0]) <= 200
    assert os.stat(private).st_mode & 0o7777 == 0o700
    assert os.stat(alone.paths.template).st_mode & 0o7777 == 0o700
    assert os.readlink(private / "VERSION") == "vzfs-3"
    machine_id = (private / "root/etc/machine-id").read_text()
    alone.create(102)
    assert (alone.paths.private(102) / "root/etc/machine-id").read_text() != machine_id
    for ctid in (101, 102):
        alone.ok("vzctl", "destroy", ctid)


def with_cron(system: System) -> str:
    """Define a template whose containers would all run their jobs at the same minute."""
    system.ok("vzpkg", "list")
    directory = _templates.copy(system, BUSYBOX, "cron-1-x86_64")
    (directory / "distribution").write_text("debian-12\n")
    (directory / "post-cache").write_text('echo "17 * * * * root true" >"$VE_ROOT/etc/crontab"\n')
    return "cron-1"


def test_jobs_of_new_containers_are_spread(alone: System) -> None:
    name = with_cron(alone)
    minutes = set()
    for ctid in range(101, 106):
        alone.create(ctid, name)
        crontab = alone.paths.private(ctid) / "root/etc/crontab"
        minute, rest = crontab.read_text().split(" ", 1)
        assert rest == "* * * * root true\n" and 0 <= int(minute) < 60
        minutes.add(minute)
        assert [mark for mark in os.listxattr(crontab) if "overlay" in mark] == []
    assert len(minutes) > 1
    alone.ok("vzctl", "start", 101)
    assert "root true" in alone.ok("vzctl", "exec", 101, "cat", "/etc/crontab")
    alone.ok("vzctl", "stop", 101, "--fast")


def test_an_administrators_failing_script_undoes_the_create(alone: System) -> None:
    name = with_cron(alone)
    (alone.paths.dists / "scripts").mkdir(parents=True)
    (alone.paths.dists / "debian.conf").write_text("POST_CREATE=mine.sh\n")
    (alone.paths.dists / "scripts/mine.sh").write_text("echo x >/etc/mine; exit 9\n")
    alone.fails(79, "vzctl", "create", 101, "--ostemplate", name, "--force")
    assert not alone.paths.private(101).exists() and not alone.paths.ct_conf(101).exists()


def test_a_tree_stays_while_a_private_area_is_away(alone: System) -> None:
    alone.create(101)
    tree = _templates.tree(alone, BUSYBOX)
    private = alone.paths.private(101)
    away = alone.root / "away"
    os.rename(private, away)
    alone.ok("vzpkg", "remove", "cache", "busybox")
    alone.ok("vzpkg", "clean", "-a")
    assert tree.is_dir()
    os.rename(away, private)
    alone.ok("vzctl", "start", 101)
    alone.ok("vzctl", "stop", 101, "--fast")
    alone.ok("vzctl", "destroy", 101)
    alone.ok("vzpkg", "clean")
    assert not tree.exists()


def test_only_root_may_use_it(alone: System) -> None:
    alone.ok("vzpkg", "list")
    done = subprocess.run(
        ["setpriv", "--reuid", "65534", "--clear-groups", Path(__file__).parents[2] / ".venv/bin/vzpkg", "list"],
        capture_output=True, text=True, check=False, env={"VZ_ROOT": str(alone.root), "PATH": "/usr/bin:/bin"},
    )  # fmt: skip
    assert done.returncode == 10 and "root" in done.stderr, done.stderr


def test_a_full_disk_is_told_and_leaves_nothing(alone: System) -> None:
    area = alone.paths.template
    area.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", area], check=True)
    try:
        assert "full" in alone.fails(
            46, "vzctl", "create", 101, "--ostemplate", "busybox", "--force"
        )
        assert _templates.trees(alone) == []
    finally:
        subprocess.run(["umount", area], check=True)
