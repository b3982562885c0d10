"""The frame of the commands: rows, errors, exit codes."""

import os

import pytest

from runtime.errors import InvalidOption, NotRunning
from tools import _command
from tools._command import Context, Program, Verb, option


def fail(context, args):
    raise NotRunning("container 101 is not running", hint="start\x1b[31m it")


def bug(context, args):
    raise KeyError("x")


VERBS = (
    Verb("stop", "stop it", fail, (option("ident", help="id"),), aliases=("halt",)),
    Verb("bug", "fail", bug),
    Verb("run", "run", lambda c, a: print(a.rest) or 7, (option("ident", help="id"),), rest=True),
    Verb("root", "print the root", lambda c, a: print(c.paths.root)),
)
PROGRAM = Program("prog", "Test.", verbs=VERBS)


def test_an_error_is_one_line_a_hint_and_its_code(capsys):
    assert _command.main(PROGRAM, ["stop", "101"]) == 31
    out, err = capsys.readouterr()
    assert out == ""
    assert err == "prog: container 101 is not running\nhint: start\\x1b[31m it\n"


def test_an_alias_is_the_verb():
    assert _command.main(PROGRAM, ["halt", "101"]) == 31


def test_bad_usage_has_the_programs_own_code(capsys):
    assert _command.main(PROGRAM, ["stop"]) == InvalidOption.code
    assert "prog stop --help" in capsys.readouterr().err
    other = Program("other", "Test.", verbs=VERBS, usage_code=2)
    assert _command.main(other, ["stop"]) == 2


def test_an_unknown_verb_names_the_nearest(capsys):
    assert _command.main(PROGRAM, ["stpo", "101"]) == InvalidOption.code
    assert "did you mean stop" in capsys.readouterr().err


def test_a_bug_says_so_and_shows_where(capsys):
    assert _command.main(PROGRAM, ["bug"]) == 3
    err = capsys.readouterr().err
    assert "Traceback" in err and "please report" in err


def test_what_follows_a_rest_verb_is_not_parsed(capsys):
    assert _command.main(PROGRAM, ["run", "101", "ls", "-l", "--help"]) == 7
    assert capsys.readouterr().out == "['ls', '-l', '--help']\n"


def test_two_dashes_before_the_rest_are_dropped(capsys):
    _command.main(PROGRAM, ["run", "101", "--", "-x"])
    assert capsys.readouterr().out == "['-x']\n"


def test_root_comes_from_the_option_then_from_the_environment(capsys, monkeypatch):
    monkeypatch.setenv("VZ_ROOT", "/one")
    _command.main(PROGRAM, ["root"])
    _command.main(PROGRAM, ["--root", "/two", "root"])
    assert capsys.readouterr().out == "/one\n/two\n"


def test_help_lists_every_verb(capsys):
    assert _command.main(PROGRAM, ["--help"]) == 0
    out = capsys.readouterr().out
    assert all(verb.help in out for verb in VERBS)


def test_no_arguments_is_bad_usage_with_the_overview(capsys):
    assert _command.main(PROGRAM, []) == InvalidOption.code


def test_a_reader_that_went_away_is_no_error(tmp_path):
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        os.dup2(writer, 1)

        def flood(context, args):
            while True:
                os.write(1, b"x" * 65536)

        program = Program("flood", "Flood.", verbs=(Verb("go", "go", flood),))
        os._exit(_command.main(program, ["go"]))
    os.close(writer)
    os.close(reader)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 141


def test_every_row_of_every_program_resolves():
    from tools.manual import programs

    for name, program in programs().items():
        parser = _command.full_parser(program)
        assert parser.prog == name
        for verb in program.verbs:
            assert callable(verb.function())


def test_a_global_file_that_cannot_be_read_is_code_10(tmp_path):
    from runtime.errors import GlobalConfigMissing
    from runtime.paths import Paths

    (tmp_path / "etc/vz/vz.conf").mkdir(parents=True)
    with pytest.raises(GlobalConfigMissing):
        Context("prog", Paths(tmp_path)).server()


def test_a_server_without_memory_is_code_4(capsys):
    def greedy(_context, _args):
        raise MemoryError

    program = Program("greedy", "Takes all.", run=greedy)
    assert _command.main(program, []) == 4
    assert capsys.readouterr().err.count("\n") == 1
