"""How long a command takes to start: vzlist with 200 containers, status, against an interpreter.

.venv/bin/python tests/bench/bench_commands.py [--quick]
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.bench._harness import BIN, arguments, emit, interleaved, report, run, scratch

_CONF = """VERSION="2"
ONBOOT="yes"
NAME="web{0}"
HOSTNAME="web{0}.example.com"
IP_ADDRESS="10.0.{1}.{2}/24"
OSTEMPLATE=".debian-12-x86_64"
PHYSPAGES="65536:65536"
SWAPPAGES="0:65536"
CPUUNITS="1000"
DISKSPACE="10485760:10485760"
DISKINODES="655360:655360"
QUOTATIME="0"
"""


def main() -> None:
    """Measure and print."""
    args = arguments(__doc__ or "")
    with scratch() as place:
        for count in (200, 1000):
            conf = place / str(count) / "etc/vz/conf"
            conf.mkdir(parents=True)
            for number in range(count):
                text = _CONF.format(number, number // 250, number % 250)
                (conf / f"{101 + number}.conf").write_text(text)
        few = {**os.environ, "VZ_ROOT": str(place / "200"), "VZ_SERVICE": "no"}
        many = {**os.environ, "VZ_ROOT": str(place / "1000"), "VZ_SERVICE": "no"}
        seconds = interleaved(
            {
                "python3 -IS -c pass": lambda: run(BIN / "python3", "-IS", "-c", "pass"),
                "vzlist -a, 200 containers": lambda: run(BIN / "vzlist", "-a", env=few),
                "vzlist -a, 1000 containers": lambda: run(BIN / "vzlist", "-a", env=many),
                "pctl status": lambda: run(BIN / "pctl", "status", "101", env=few),
            },
            args.rounds,
        )
        emit([report("command start-up", seconds, base="python3 -IS -c pass")])


if __name__ == "__main__":
    main()
