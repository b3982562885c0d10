"""The network verbs of psrvctl as a command of their own, for tests."""

from __future__ import annotations

import sys

from tools._command import Program, main
from tools.psrvctl_net import VERBS

if __name__ == "__main__":
    sys.exit(main(Program("psrvctl", "The server.", verbs=VERBS)))
