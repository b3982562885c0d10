"""vzmetrics: the figures of pstat for Prometheus, once or on a loopback port.

Nothing starts it by itself. The text format is that of
https://prometheus.io/docs/instrumenting/exposition_formats/.
"""

from __future__ import annotations

import argparse
import ipaddress
import sys
import threading
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from runtime.errors import InvalidValue, SystemFailure
from tools._command import Context, Program, option
from tools._command import main as run_program
from tools._monitor import Guest, Look, look

_USUAL = "127.0.0.1:9410"
_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def _run(context: Context, args: argparse.Namespace) -> int:
    if args.once:
        sys.stdout.write(render(look(context)))
        return 0
    address, port = parse_address(args.listen)
    if not ipaddress.ip_address(address).is_loopback and not args.public:
        raise InvalidValue(
            f"{address} is not a loopback address",
            hint="--public says that everybody may read how this server is doing",
        )
    try:
        server = make_server(context, address, port)
    except OSError as error:
        raise SystemFailure(f"cannot listen on {args.listen}: {error.strerror}") from error
    print(f"http://{args.listen}/metrics", flush=True)
    with server:
        server.serve_forever()
    return 0


def parse_address(text: str) -> tuple[str, int]:
    """Return address and port of ``ADDRESS:PORT``; raises InvalidValue."""
    address, colon, port = text.rpartition(":")
    address = address.strip("[]")
    try:
        ipaddress.ip_address(address)
        number = int(port)
    except ValueError:
        number = -1
    if not colon or not 0 <= number < 65536:
        raise InvalidValue(f"not ADDRESS:PORT: {text!r}")
    return address, number


def make_server(context: Context, address: str, port: int) -> ThreadingHTTPServer:
    """Return a server that is listening; raises OSError."""
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        """Answers GET /metrics."""

        timeout = 10

        def do_GET(self) -> None:  # the name is http.server's
            if self.path.partition("?")[0] != "/metrics":
                self.send_error(404)
                return
            with lock:
                body = render(look(context)).encode()
            self.send_response(200)
            self.send_header("Content-Type", _TYPE)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Keep quiet: whoever asks every few seconds is no news."""

    return ThreadingHTTPServer((address, port), Handler)


def render(now: Look) -> str:
    """Return every figure of one look in the text format."""
    node = now.node
    out: list[str] = []
    single = (
        ("pyvz_containers_running", "gauge", "Running containers.", _count(now, "ct")),
        ("pyvz_machines_running", "gauge", "Running virtual machines.", _count(now, "vm")),
        ("pyvz_containers_stopped", "gauge", "Configured containers that do not run.", now.stopped),
        ("pyvz_node_memory_bytes", "gauge", "RAM of the server.", node.memory["MemTotal"]),
        (
            "pyvz_node_memory_available_bytes",
            "gauge",
            "RAM that could be given out.",
            node.memory.get("MemAvailable", node.memory["MemFree"]),
        ),
        ("pyvz_node_processes", "gauge", "Processes of the server.", node.processes.total),
    )
    for name, kind, text, value in single:
        out += [*_heading(name, kind, text), f"{name} {value}"]
    for name, kind, text, field in _GUEST_METRICS:
        rows = [
            f"{name}{_labels(guest)} {value}"
            for guest in now.guests.values()
            for value in _values(guest, field)
        ]
        if rows:
            out += [*_heading(name, kind, text), *rows]
    return "\n".join(out) + "\n"


_GUEST_METRICS = (
    ("pyvz_cpu_seconds_total", "counter", "Processor time used.", "cpu_s"),
    ("pyvz_cpu_throttled_seconds_total", "counter", "Time held back by the limit.", "throttled_s"),
    ("pyvz_memory_bytes", "gauge", "RAM used, page cache included.", "ram"),
    ("pyvz_memory_limit_bytes", "gauge", "RAM it may use.", "ram_limit"),
    ("pyvz_swap_bytes", "gauge", "Swap used.", "swap"),
    ("pyvz_processes", "gauge", "Processes.", "processes"),
    ("pyvz_sockets", "gauge", "Sockets in use.", "sockets"),
    ("pyvz_oom_kills_total", "counter", "Processes killed for want of memory.", "oom"),
    ("pyvz_failures_total", "counter", "Refused forks and processes killed.", "failures"),
    ("pyvz_disk_read_bytes_total", "counter", "Bytes read from disks.", "read"),
    ("pyvz_disk_written_bytes_total", "counter", "Bytes written to disks.", "written"),
)


def _values(guest: Guest, field: str) -> Iterator[float]:
    """Yield the one value of a metric, nothing where there is none."""
    limit = guest.memory.limit
    found: dict[str, float | None] = {
        "cpu_s": guest.cpu.total_ns / 1e9,
        "throttled_s": guest.cpu.throttled_ns / 1e9,
        "ram": guest.memory.used,
        "ram_limit": limit,
        "swap": guest.memory.swap,
        "processes": guest.processes.total,
        "sockets": guest.sockets,
        "oom": guest.memory.oom_kills,
        "failures": guest.failures,
        "read": guest.io.read_bytes,
        "written": guest.io.written_bytes,
    }
    value = found[field]
    if value is not None:
        yield value


def _count(now: Look, kind: str) -> int:
    return sum(guest.kind == kind for guest in now.guests.values())


def _heading(name: str, kind: str, text: str) -> tuple[str, str]:
    return f"# HELP {name} {text}", f"# TYPE {name} {kind}"


def _labels(guest: Guest) -> str:
    name = guest.name if guest.config is None else guest.config.get("NAME", "")
    escaped = name.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    ctid = str(guest.ctid) if guest.kind == "ct" else ""
    return f'{{type="{guest.kind}",ctid="{ctid}",name="{escaped}"}}'


PROGRAM = Program(
    "vzmetrics",
    "Offer the figures of this server and its guests to Prometheus.",
    run=_run,
    options=(
        option(
            "--listen",
            help=f"where to answer GET /metrics (usual: {_USUAL})",
            metavar="ADDRESS:PORT",
            default=_USUAL,
        ),
        option("--public", help="allow an address that is not loopback", action="store_true"),
        option("--once", help="print them once instead", action="store_true"),
    ),
    usage_code=1,
    exit_code=lambda error: 1,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run vzmetrics; return its exit status."""
    return run_program(PROGRAM, argv)


if __name__ == "__main__":
    sys.exit(main())
