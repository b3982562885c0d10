"""Programs of the server that do one step of a command of ours."""

from __future__ import annotations

#: Put before a program that writes: it is killed with the command that runs it (setpriv(1)), so
#: that whoever repairs what that left has no living writer beside it.
ENDING_WITH_US = ("setpriv", "--pdeathsig", "KILL", "--")
