"""``pctl svc``: services inside a container, by whatever its init offers."""

from __future__ import annotations

import argparse
import re

from runtime import registry
from runtime.errors import InvalidOption, InvalidValue
from tools import environments
from tools._command import Context, Verb, option
from tools.verbs_container import ID

_UNIT = re.compile(r"[A-Za-z0-9@_.:\\-]{1,256}")
_ACTIONS = ("list", "status", "start", "stop", "restart", "reload", "enable", "disable", "mode")

#: $1 action, $2 unit. One script for all inits: what is there inside is only known inside.
_SCRIPT = r"""
action=$1 unit=$2
if [ -d /run/systemd/system ]; then
    case $action in
    list) exec systemctl --no-pager --plain --no-legend list-units --type=service,socket --all ;;
    socket) systemctl disable --now "$unit.service" && exec systemctl enable --now "$unit.socket" ;;
    standalone) systemctl disable --now "$unit.socket" && exec systemctl enable --now "$unit.service" ;;
    status) exec systemctl --no-pager status "$unit" ;;
    *) exec systemctl "$action" "$unit" ;;
    esac
elif [ -d /etc/init.d ]; then
    case $action in
    list) for script in /etc/init.d/*; do
              [ -x "$script" ] && printf '%s\n' "${script##*/}"
          done ;;
    socket|standalone) echo "socket activation needs systemd inside" >&2; exit 5 ;;
    enable) exec update-rc.d "$unit" enable ;;
    disable) exec update-rc.d "$unit" disable ;;
    *) [ -x "/etc/init.d/$unit" ] || { echo "no such service: $unit" >&2; exit 4; }
       exec "/etc/init.d/$unit" "$action" ;;
    esac
else
    echo "this container's init manages no services" >&2
    exit 5
fi
"""


def svc(context: Context, args: argparse.Namespace) -> int:
    """Act on a service inside; the status is that of the init's own tool.

    The id and the action may come in either order: ``svc web1 list``, ``svc list web1``.
    """
    if args.ident in _ACTIONS and args.action not in _ACTIONS:
        args.ident, args.action = args.action, args.ident
    if args.action not in _ACTIONS:
        raise InvalidOption(
            f"svc cannot {registry.printable(args.action)}", hint=f"one of: {', '.join(_ACTIONS)}"
        )
    if args.action != "list" and not args.unit:
        raise InvalidOption(f"svc {args.action} needs the name of a service")
    if args.unit and not _UNIT.fullmatch(args.unit):
        raise InvalidValue(f"not the name of a service: {registry.printable(args.unit)}")
    action = args.action
    if action == "mode":
        if args.mode is None:
            raise InvalidOption("svc mode needs 'socket' or 'standalone'")
        action = args.mode
    ct = environments.find_container(context, args.ident)
    return ct.exec(["/bin/sh", "-c", _SCRIPT, "svc", action, args.unit or ""])


VERBS: tuple[Verb, ...] = (
    Verb(
        "svc",
        "services inside a container",
        svc,
        (
            ID,
            option("action", help=f"what to do: {', '.join(_ACTIONS)}; before the ID too"),
            option("unit", help="the service", nargs="?", metavar="SERVICE"),
            option("mode", help="for 'mode'", nargs="?", choices=("socket", "standalone")),
        ),
        changes=False,
    ),
)
