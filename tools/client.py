"""The stub every command starts as: hand the work to the warm service, or do it here.

It runs on an interpreter without ``site`` (``-I -S``) and imports C modules only: what it costs is
what a command costs. Whatever goes wrong on the way to the service, the command runs in-process.
"""

# The C module: ``signal`` itself imports enum, which costs more than all of this stub.
import _signal  # type: ignore[import-not-found]  # no stub: private, as stable as signal
import _socket
import posix
import sys

#: Format of the request: see ``service.read_request``.
MAGIC = b"pyvz1"
#: Commands the service runs; every other runs here.
SERVED = ("pctl", "prlctl", "vzctl", "vzpkg")
#: Commands that need nothing beyond the standard library: they do without ``site``.
LIGHT = ("vzlist", "vzpid")
#: Verbs that only read small files: quicker here than over the service.
LIGHT_VERBS = ("status", "--help", "-h", "help", "--version", "completion")
_RELAYED = (
    _signal.SIGHUP,
    _signal.SIGINT,
    _signal.SIGQUIT,
    _signal.SIGTERM,
    _signal.SIGUSR1,
    _signal.SIGUSR2,
    _signal.SIGWINCH,
    _signal.SIGCONT,
)


def system_root(arguments: list[str], environment: dict[bytes, bytes]) -> str:
    """Return the root the command is for: ``--root`` before or after the verb, else VZ_ROOT."""
    for index, word in enumerate(arguments):
        if word == "--":
            break
        if word == "--root" and index + 1 < len(arguments):
            return arguments[index + 1]
        if word.startswith("--root="):
            return word[7:]
    return environment.get(b"VZ_ROOT", b"/").decode() or "/"


def connect(root: str) -> "_socket.socket | None":
    """Return a connection to the service of the system at ``root``, or None."""
    try:
        directory = posix.open(root + "/run/vz", posix.O_PATH | posix.O_DIRECTORY | posix.O_CLOEXEC)
    except OSError:
        return None
    sock = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    try:
        sock.connect(f"/proc/self/fd/{directory}/service.sock")
    except OSError:
        sock.close()
        return None
    finally:
        posix.close(directory)
    return sock


def delegate(sock: "_socket.socket", program: str, arguments: list[str]) -> int | None:
    """Let the service run the command; return its exit status.

    None means that the service did not take it (older code, other user, gone): nothing was done.
    """
    here = posix.open(".", posix.O_RDONLY | posix.O_CLOEXEC)
    mask = posix.umask(0o077)
    posix.umask(mask)
    words = [program.encode(), str(mask).encode(), str(len(arguments)).encode()]
    words += [_bytes(word) for word in arguments]
    words += [name + b"=" + value for name, value in posix.environ.items()]
    body = b"\0".join(words)
    head = MAGIC + len(body).to_bytes(4, "little")
    descriptors = b"".join(fd.to_bytes(4, sys.byteorder) for fd in (0, 1, 2, here))
    try:
        sock.sendmsg([head], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, descriptors)])
        sock.sendall(body)
        answer = sock.recv(5)
    except OSError:
        return None
    finally:
        posix.close(here)
    # "G" and the process id: the command has begun, in a process of its own.
    if len(answer) != 5 or answer[:1] != b"G":
        return None
    child = int.from_bytes(answer[1:], "little")

    def relay(number: int, frame: object) -> None:
        try:
            posix.kill(child, number)
        except OSError:
            pass

    for number in _RELAYED:
        _signal.signal(number, relay)
    status = sock.recv(4)
    if len(status) == 4:
        return int.from_bytes(status, "little")
    sys.stderr.write(f"{program}: the command was killed before it finished\n")
    return 137


def _bytes(word: str) -> bytes:
    return word.encode(sys.getfilesystemencoding(), "surrogateescape")


def run(program: str, module: str) -> int:
    """Run ``program``, whose in-process implementation is ``tools.MODULE``; return its status."""
    arguments = sys.argv[1:]
    environment = posix.environ
    verb = next((word for word in arguments if not word.startswith("-")), "--help")
    light = program in LIGHT or (program in SERVED and verb in LIGHT_VERBS)
    local = light or program not in SERVED or environment.get(b"VZ_SERVICE") == b"no"
    if not local and posix.geteuid() == 0:
        sock = connect(system_root(arguments, environment))
        if sock is not None:
            status = delegate(sock, program, arguments)
            if status is not None:
                # Nothing is left to tidy up, which would take a fifth of the time.
                posix._exit(status)
            sock.close()
    if "site" not in sys.modules and not light:
        import site

        site.main()
    import importlib

    status = int(importlib.import_module(f"tools.{module}").main())
    if not local and status == 0:
        from tools import service

        service.start_if_wanted(program, arguments)
    return status
