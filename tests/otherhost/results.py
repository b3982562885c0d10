"""What became of the tests: the JSON lines of the guest, and what a person reads of them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

#: Worst first: a test that passed and failed in its teardown counts as an error.
_ORDER = ("error", "failed", "skipped", "passed")
_BEGIN, _END = "<!-- other-host: begin -->", "<!-- other-host: end -->"
_LONGEST_REASON = 160


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one test ended."""

    test: str
    #: One of passed, failed, error, skipped.
    word: str
    seconds: float
    reason: str


@dataclass(slots=True)
class Results:
    """Everything the guest told."""

    outcomes: dict[str, Outcome] = field(default_factory=dict)
    kernel: str = ""
    system: str = ""
    #: The test that had begun and not ended.
    running: str = ""
    #: pytest's exit status; None when it did not come to its end.
    status: int | None = None

    def count(self, word: str) -> int:
        """Return how many tests ended so."""
        return sum(outcome.word == word for outcome in self.outcomes.values())

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
        seconds = sum(outcome.seconds for outcome in self.outcomes.values())
        counts = ", ".join(f"{self.count(word)} {_NOUNS[word]}" for word in reversed(_ORDER))
        return f"{counts} in {seconds / 60:.0f} minutes of test time"


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


def record(page: Path, results: Results, arguments: str, today: str, manner: str) -> None:
    """Write figures, failures and reasons of skips between the page's markers.

    ``manner`` tells how the guest ran ("emulated"). Raises ValueError for a page without markers,
    OSError.
    """
    text = page.read_text(encoding="utf-8")
    head, begin, rest = text.partition(_BEGIN)
    _, end, tail = rest.partition(_END)
    if not begin or not end:
        raise ValueError(f"{page} has no lines {_BEGIN} and {_END}")
    lines = [
        f"{today}, {results.system}, kernel {results.kernel}, {manner}, `pytest {arguments}`:",
        f"**{results.figures}**.",
    ]
    if results.status is None:
        lines.append(f"The run did not come to its end (in `{results.running or 'no test'}`).")
    for word, title in (("failed", "failed"), ("error", "failed"), ("skipped", "skipped")):
        rows = [
            f"| `{outcome.test.removeprefix('tests/')}` | {title} | {_cell(outcome.reason)} |"
            for outcome in results.of(word)
        ]
        if rows and not any(line.startswith("|---") for line in lines):
            lines += ["", "| test | | reason |", "|---|---|---|"]
        lines += rows
    page.write_text(f"{head}{begin}\n" + "\n".join(lines) + f"\n{end}{tail}", encoding="utf-8")


def _short(reason: str) -> str:
    words = " ".join(reason.split())
    return words if len(words) <= _LONGEST_REASON else f"{words[: _LONGEST_REASON - 1]}…"


def _cell(reason: str) -> str:
    return _short(reason).replace("|", "\\|").replace("<", "&lt;")
