"""A terminal screen that shows lines again and again until somebody leaves it (curses)."""

from __future__ import annotations

import curses
import time
from collections.abc import Callable, Sequence

from tools._pstat_view import Line
from tools._rates import Level

_COLOURS = {Level.OK: 1, Level.WARN: 2, Level.CRIT: 3}


def show(
    make: Callable[[], Sequence[Line]], key: Callable[[str], bool], delay_s: Callable[[], float]
) -> None:
    """Show what ``make`` returns every ``delay_s()`` seconds.

    ``key`` is told every key and returns False to leave; ``q`` leaves always.
    """
    try:
        curses.wrapper(_loop, make, key, delay_s)
    except KeyboardInterrupt:
        return


def _loop(
    window: curses.window,
    make: Callable[[], Sequence[Line]],
    key: Callable[[str], bool],
    delay_s: Callable[[], float],
) -> None:
    curses.use_default_colors()
    for number, colour in (
        (1, curses.COLOR_GREEN),
        (2, curses.COLOR_YELLOW),
        (3, curses.COLOR_RED),
    ):
        curses.init_pair(number, colour, -1)
    curses.curs_set(0)
    top = 0
    while True:
        lines = make()
        drawn = time.monotonic()
        while True:
            top = max(min(top, len(lines) - window.getmaxyx()[0]), 0)
            _draw(window, lines, top)
            left = delay_s() - (time.monotonic() - drawn)
            if left <= 0:
                break
            window.timeout(max(int(left * 1000), 1))
            code = window.getch()
            if code == -1:
                break
            if code == curses.KEY_DOWN:
                top += 1
            elif code == curses.KEY_UP:
                top -= 1
            elif code == curses.KEY_NPAGE:
                top += window.getmaxyx()[0] // 2
            elif code == curses.KEY_PPAGE:
                top -= window.getmaxyx()[0] // 2
            elif code == curses.KEY_RESIZE:
                continue
            elif 0 < code < 256:
                if chr(code) == "q" or not key(chr(code)):
                    return
                break


def _draw(window: curses.window, lines: Sequence[Line], top: int) -> None:
    height, width = window.getmaxyx()
    window.erase()
    for row, line in enumerate(lines[top : top + height]):
        text = line.text[: width - 1]
        window.addstr(row, 0, text, curses.A_REVERSE if line.head else curses.A_NORMAL)
        if line.head:
            window.addstr(row, len(text), " " * (width - 1 - len(text)), curses.A_REVERSE)
        start, end = line.text.find("["), line.text.find("]")
        if line.level is not None and 0 <= start < end < width - 1:
            attribute = curses.color_pair(_COLOURS[line.level])
            if line.level is not Level.OK:
                attribute |= curses.A_BOLD
            window.addstr(row, start, line.text[start : end + 1], attribute)
    window.refresh()
