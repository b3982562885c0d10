"""Manual pages and completions come from the rows, for every command."""

import subprocess

import pytest

from tools import manual
from tools.launchers import COMMANDS


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    target = tmp_path_factory.mktemp("share")
    manual.build(target)
    return target


def test_every_command_has_a_page_and_completions(built):
    names = set(manual.programs())
    assert {path.stem for path in (built / "man/man8").iterdir()} == names | {"vzfs"}
    assert {path.name for path in (built / "bash-completion/completions").iterdir()} == names
    aliases = {name for name in COMMANDS if name not in names}
    assert aliases == {"prlctl", "prlsrvctl", "vzstat", "vznetcfg", "pconvert"}


def test_the_page_of_pctl_has_its_verbs_options_and_codes(built):
    text = (built / "man/man8/pctl.8").read_text().replace("\\-", "-")
    for word in ("create", "snapshot", "--ostemplate", "--cpuunits", "EXIT STATUS"):
        assert word in text
    assert "\n31\n" in text


def test_the_page_of_vzfs_has_every_option(built):
    text = (built / "man/man8/vzfs.8").read_text().replace("\\-", "-")
    from vzfs.__main__ import parser

    for verb in parser()._subparsers._group_actions[0].choices.values():
        for action in verb._actions:
            assert action.dest == "help" or all(word in text for word in action.option_strings)
    for word in ("EXAMPLES", "EXIT STATUS", "umount", "probe"):
        assert word in text


def test_the_completion_is_a_script_bash_accepts(built):
    for path in (built / "bash-completion/completions").iterdir():
        subprocess.run(["bash", "-n", path], check=True)
