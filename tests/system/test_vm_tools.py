"""Commands of machines that start none: prl_convert, psrvctl user."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.system.conftest import System

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(
        shutil.which("qemu-img") is None, reason="qemu-img is missing: apt-get install qemu-utils"
    ),
]


def content(image: Path, format: str) -> bytes:
    """Return the first block of an image."""
    raw = image.with_name("content")
    subprocess.run(["qemu-img", "convert", "-f", format, "-O", "raw", image, raw], check=True)
    return raw.read_bytes()[:512]


def test_images_are_converted_there_and_back(system: System, tmp_path: Path) -> None:
    source = tmp_path / "disk.raw"
    source.write_bytes(b"x" * 512 + bytes(4 << 20))
    for word, suffix, format in (("vmdk", "vmdk", "vmdk"), ("vdi", "vdi", "vdi"),
                                 ("vhd", "vhd", "vpc"), ("expanding", "qcow2", "qcow2")):  # fmt: skip
        system.ok("prl_convert", str(source), "--to", word)
        assert content(tmp_path / f"disk.{suffix}", format) == b"x" * 512
    system.ok("pconvert", str(tmp_path / "disk.vdi"), "--to", "plain", "--dst",
              str(tmp_path / "back.raw"))  # fmt: skip
    assert (tmp_path / "back.raw").read_bytes()[:512] == b"x" * 512
    assert "exists" in system.fails(155, "prl_convert", str(source))
    assert system.fails(14, "prl_convert", str(tmp_path / "none.vmdk"))
    assert system.fails(20, "prl_convert", str(source), "--to", "zip")
    (tmp_path / "bad.vdi").write_bytes(b"not a VDI")
    assert system.fails(35, "prl_convert", str(tmp_path / "bad.vdi"))
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".tmp")]
    assert not (tmp_path / "bad.qcow2").exists()


def test_the_home_of_new_machines_is_chosen(system: System, tmp_path: Path) -> None:
    assert str(system.paths.machines) in system.ok("psrvctl", "user", "list")
    assert system.fails(21, "psrvctl", "user", "set", "--def-vm-home", str(tmp_path / "none"))
    assert not system.paths.global_config.exists()
    system.ok("psrvctl", "user", "set", "--def-vm-home", str(tmp_path))
    assert str(tmp_path) in system.ok("psrvctl", "user", "list")
