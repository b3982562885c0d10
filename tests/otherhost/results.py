"""What became of the tests: the JSON lines of the guest, and what a person reads of them.

The page shows the last outcome of each test that was ever recorded: a whole run takes an emulated
guest many hours, and a part of it is what a change asks for. So outcomes are kept, with their day.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from runtime import files

#: Worst first: a test that passed and failed in its teardown counts as an error.
_ORDER = ("error", "failed", "skipped", "passed")
_BEGIN, _END = "<!-- other-host: begin -->", "<!-- other-host: end -->"
_TITLES = "| tests | passed | failed | skipped | last run |"
_UNITS = "unit tests"
_LONGEST_REASON = 160


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one test ended."""

    test: str
    #: One of passed, failed, error, skipped.
    word: str
    seconds: float
    reason: str
    #: The day it ran (YYYY-MM-DD), where it was recorded.
    day: str = ""

    @property
    def file(self) -> str:
        """The file it is in."""
        return self.test.partition("::")[0]


@dataclass(slots=True)
class Results:
    """Everything the guest told."""

    outcomes: dict[str, Outcome] = field(default_factory=dict)
    kernel: str = ""
    system: str = ""
    #: How many processors the guest had.
    processors: int = 0
    #: The test that had begun and not ended.
    running: str = ""
    #: pytest's exit status; None when it did not come to its end.
    status: int | None = None

    def of(self, *words: str) -> list[Outcome]:
        """Return the tests that ended so, in the order they ran."""
        return [outcome for outcome in self.outcomes.values() if outcome.word in words]

    @property
    def good(self) -> bool:
        """Whether the run came to its end and nothing failed."""
        return self.status == 0

    @property
    def figures(self) -> str:
        """The counts in one line, in the manner of pytest."""
        counted = Counter(outcome.word for outcome in self.outcomes.values())
        counts = ", ".join(f"{counted[word]} {_NOUNS[word]}" for word in reversed(_ORDER))
        minutes = sum(outcome.seconds for outcome in self.outcomes.values()) / 60
        return f"{counts} in {minutes:.0f} minutes of test time"


_NOUNS = {"passed": "passed", "skipped": "skipped", "failed": "failed", "error": "errors"}


def read(lines: Iterable[str]) -> Results:
    """Return the results from the guest's lines; a last line cut short is left out."""
    results = Results()
    for line in lines:
        try:
            fields = json.loads(line)
        except ValueError:
            continue
        if "kernel" in fields:
            results.kernel, results.system = fields["kernel"], fields["system"]
            results.processors = fields["processors"]
        elif "begin" in fields:
            results.running = fields["begin"]
        elif "test" in fields:
            results.running = ""
            outcome = Outcome(
                fields["test"], fields["outcome"], float(fields["seconds"]), fields["reason"]
            )
            before = results.outcomes.get(outcome.test)
            if before is None or _ORDER.index(outcome.word) < _ORDER.index(before.word):
                results.outcomes[outcome.test] = outcome
        elif "status" in fields:
            results.status = fields["status"]
    return results


def summary(results: Results) -> str:
    """Return the figures and the names of what failed, for a terminal."""
    lines = [f"{results.system}, kernel {results.kernel}: {results.figures}"]
    lines += [
        f"{outcome.word.upper()} {outcome.test}: {_short(outcome.reason)}"
        for outcome in results.of("failed", "error")
    ]
    if results.status is None:
        lines.append(f"the guest did not finish; it ran {results.running or 'no test'}")
    return "\n".join(lines)


def record(page: Path, store: Path, results: Results, today: str, manner: str) -> None:
    """Add the outcomes to those in ``store`` and write them all between the page's markers.

    A test that is in no file any more is left out. A file of which the page tells more tests than
    the store knows (the store is a cache) keeps the page's line and failures. ``manner`` tells how
    the guest ran ("emulated"). Raises ValueError for a page without markers, OSError.
    """
    text = page.read_text(encoding="utf-8")
    head, begin, rest = text.partition(_BEGIN)
    old, end, tail = rest.partition(_END)
    if not begin or not end:
        raise ValueError(f"{page} has no lines {_BEGIN} and {_END}")
    top = page.parent.parent
    new = {name: replace(outcome, day=today) for name, outcome in results.outcomes.items()}
    kept = {name: outcome for name, outcome in (_stored(store) | new).items() if _is_in(top, name)}
    lines = "".join(f"{json.dumps(asdict(outcome))}\n" for outcome in kept.values())
    files.replace(store, lines.encode())
    there = {_UNITS, *(path.name for path in (top / "tests/system").glob("test_*.py"))}
    rows, reasons = _rows(kept.values()), _reasons(kept.values())
    for row in _told(old):
        if row.name in there and (row.name not in rows or row.tests > rows[row.name].tests):
            rows[row.name] = row
            mark = "unit/" if row.name == _UNITS else f"system/{row.name}::"
            reasons = [line for line in reasons if not line.startswith(f"| `{mark}")]
            reasons += [line for line in old.splitlines() if line.startswith(f"| `{mark}")]
    counts = [sum(numbers) for numbers in zip(*(row.counts for row in rows.values()), strict=True)]
    body = [
        f"{results.system}, kernel {results.kernel}, {manner}, {results.processors} processor"
        + ("s" if results.processors > 1 else "")
        + f", until {today}: **{counts[0]} passed, {counts[1]} failed, {counts[2]} skipped**.",
    ]
    if results.status is None:
        body.append(f"The last run did not come to its end (in `{results.running or 'no test'}`).")
    body += ["", _TITLES, "|---|---|---|---|---|", *(str(rows[name]) for name in sorted(rows))]
    if reasons:
        body += ["", "| test | | reason |", "|---|---|---|", *reasons]
    if never := sorted(there - {_UNITS} - set(rows)):
        body += ["", f"Never recorded there: {', '.join(f'`{name}`' for name in never)}."]
    page.write_text(f"{head}{begin}\n" + "\n".join(body) + f"\n{end}{tail}", encoding="utf-8")


def _stored(store: Path) -> dict[str, Outcome]:
    if not store.exists():
        return {}
    found = (Outcome(**json.loads(line)) for line in store.read_text(encoding="utf-8").splitlines())
    return {outcome.test: outcome for outcome in found}


def _is_in(top: Path, test: str) -> bool:
    """Whether the checkout still has this test."""
    file, *names = test.partition("[")[0].split("::")
    try:
        text = (top / file).read_text(encoding="utf-8")
    except FileNotFoundError:
        return False
    return all(name in text for name in names)


@dataclass(frozen=True, slots=True)
class _Row:
    """A line of the page's table: the tests of a file, or all unit tests."""

    name: str
    #: Passed, failed, skipped.
    counts: tuple[int, int, int]
    day: str

    @property
    def tests(self) -> int:
        return sum(self.counts)

    def __str__(self) -> str:
        return f"| {self.name} | {' | '.join(map(str, self.counts))} | {self.day} |"


def _rows(outcomes: Collection[Outcome]) -> dict[str, _Row]:
    groups: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        unit = outcome.test.startswith("tests/unit/")
        groups.setdefault(_UNITS if unit else Path(outcome.file).name, []).append(outcome)
    rows = {}
    for name, group in groups.items():
        counted = Counter(outcome.word for outcome in group)
        counts = (counted["passed"], counted["failed"] + counted["error"], counted["skipped"])
        rows[name] = _Row(name, counts, max(outcome.day for outcome in group))
    return rows


def _told(page: str) -> list[_Row]:
    """Return the lines of the table which the page has."""
    row = re.compile(r"\| ([^|`]+) \| (\d+) \| (\d+) \| (\d+) \| (\d{4}-\d\d-\d\d) \|")
    found = (row.fullmatch(line) for line in page.splitlines())
    return [_Row(m[1], (int(m[2]), int(m[3]), int(m[4])), m[5]) for m in found if m is not None]


def _reasons(outcomes: Collection[Outcome]) -> list[str]:
    """Return the table's lines of what did not pass, failures first."""
    return [
        f"| `{outcome.test.removeprefix('tests/')}` | {title} | {_cell(outcome.reason)} |"
        for word, title in (("failed", "failed"), ("error", "failed"), ("skipped", "skipped"))
        for outcome in outcomes
        if outcome.word == word
    ]


def _short(reason: str) -> str:
    words = " ".join(reason.split())
    return words if len(words) <= _LONGEST_REASON else f"{words[: _LONGEST_REASON - 1]}…"


def _cell(reason: str) -> str:
    return _short(reason).replace("|", "\\|").replace("<", "&lt;")
