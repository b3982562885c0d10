"""Builds manual pages and completions: ``python -m tools.manual DIRECTORY``.

Both are made from the rows that parse the command line, so they cannot disagree with it. They are
built once, at installation; nothing of this runs at a TAB.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path

from runtime import errors
from tools._command import VERSION, Program, full_parser
from tools.launchers import COMMANDS


def programs() -> dict[str, Program]:
    """Return every command with its rows, by name."""
    return {
        name: importlib.import_module(f"tools.{module}").PROGRAM
        for name, module in COMMANDS.items()
        if name == importlib.import_module(f"tools.{module}").PROGRAM.name
    }


def exit_codes() -> str:
    """Return the table of exit codes as troff, from the error classes."""
    lines = [".SH EXIT STATUS", ".TP", "0", "Success."]
    for cls in errors.documented():
        if cls.__module__ == "runtime.errors":
            lines += [".TP", str(cls.code), (cls.__doc__ or "").splitlines()[0]]
    return "\n".join(lines) + "\n"


def page(program: Program) -> str:
    """Return the manual page of ``program`` as troff."""
    text = _troff(full_parser(program), program.name, program.help)
    if program.exit_code is None:
        text += exit_codes()
    return text


def vzfs_page() -> str:
    """Return the manual page of ``python -m vzfs`` as troff."""
    from vzfs import __main__ as alone

    text = _troff(alone.parser(), "vzfs", "the file layer, mounted on its own")
    for heading, paragraphs in alone.SECTIONS:
        text += f".SH {heading}\n"
        text += "".join(f".PP\n{line}\n" for line in paragraphs).replace("-", "\\-")
    return text


def _troff(parser: argparse.ArgumentParser, name: str, summary: str) -> str:
    from argparse_manpage.manpage import Manpage

    # Read by argparse-manpage from the parser object.
    parser._manpage = []  # type: ignore[attr-defined]
    made = Manpage(
        parser,
        format="pretty",
        _data={
            "project_name": "pyvz",
            "prog": name,
            "manual_section": 8,
            "manual_title": "pyvz",
            "version": VERSION,
            "description": summary,
        },
    )
    made.prog = name
    return str(made)


def build(target: Path) -> None:
    """Write man pages and bash and zsh completions below ``target``; raises OSError."""
    import shtab

    places = {
        "man": target / "man" / "man8",
        "bash": target / "bash-completion" / "completions",
        "zsh": target / "zsh" / "site-functions",
    }
    for place in places.values():
        place.mkdir(parents=True, exist_ok=True)
    (places["man"] / "vzfs.8").write_text(vzfs_page(), encoding="utf-8")
    for name, program in programs().items():
        (places["man"] / f"{name}.8").write_text(page(program), encoding="utf-8")
        parser = full_parser(program)
        (places["bash"] / name).write_text(shtab.complete(parser, shell="bash"), encoding="utf-8")
        (places["zsh"] / f"_{name}").write_text(
            shtab.complete(parser, shell="zsh"), encoding="utf-8"
        )


if __name__ == "__main__":
    build(Path(sys.argv[1]).absolute())
