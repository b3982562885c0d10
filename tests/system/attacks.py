"""What a hostile root of a container would try; runs inside, with nothing but the standard library.

Usage: python3 attacks.py NAME. Prints ``blocked: why`` or ``SUCCEEDED: what``.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import pty
import socket
import struct
import sys
import time
from collections.abc import Callable

libc = ctypes.CDLL(None, use_errno=True)
_ARCHITECTURE = os.uname().machine
_NUMBERS = {  # x86_64, others (asm-generic)
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "keyctl": (250, 219),
    "add_key": (248, 217),
    "open_by_handle_at": (304, 265),
    "init_module": (175, 105),
    "kexec_load": (246, 104),
    "io_uring_setup": (425, 425),
    "clock_settime": (227, 112),
    "ptrace": (101, 117),
}


class Blocked(Exception):
    """The kernel refused."""


def syscall(name: str, *arguments: object) -> int:
    """Make a raw system call; raises Blocked."""
    number = _NUMBERS[name][0 if _ARCHITECTURE == "x86_64" else 1]
    result = libc.syscall(number, *arguments)
    if result < 0:
        raise Blocked(errno.errorcode[ctypes.get_errno()])
    return int(result)


def mount(source: str, target: str, kind: str, data: str = "", flags: int = 0) -> None:
    """Mount; raises Blocked."""
    os.makedirs(target, exist_ok=True)
    if libc.mount(source.encode(), target.encode(), kind.encode(), flags, data.encode()):
        raise Blocked(f"mount {kind}: {errno.errorcode[ctypes.get_errno()]}")


def write(path: str, text: str) -> None:
    """Write to a file; raises Blocked."""
    try:
        with open(path, "w") as file:
            file.write(text)
    except OSError as error:
        raise Blocked(f"{path}: {errno.errorcode[error.errno or 0]}") from error


def core_pattern() -> None:
    write("/proc/sys/kernel/core_pattern", "|/bin/evil")


def core_pattern_fresh_proc() -> None:
    mount("proc", "/tmp/proc", "proc")
    write("/tmp/proc/sys/kernel/core_pattern", "|/bin/evil")


def core_pattern_remounted_proc() -> None:
    if libc.mount(b"proc", b"/proc", b"proc", 32, b""):  # MS_REMOUNT
        raise Blocked("remount")
    write("/proc/sys/kernel/core_pattern", "|/bin/evil")


def sysrq() -> None:
    libc.umount2(b"/proc/sysrq-trigger", 2)
    libc.mount(b"proc", b"/proc/sysrq-trigger", b"", 32 | 4096, b"")
    write("/proc/sysrq-trigger", "h")


def sys_writable() -> None:
    libc.mount(b"sysfs", b"/sys", b"sysfs", 32, b"")
    write("/sys/kernel/mm/ksm/run", "1")


def memory_limit_v1() -> None:
    mount("cgroup", "/tmp/memory", "cgroup", "memory")
    write("/tmp/memory/memory.limit_in_bytes", "-1")


def release_agent() -> None:
    mount("cgroup", "/tmp/devices", "cgroup", "devices")
    write("/tmp/devices/release_agent", "/bin/evil")


def devices_allow() -> None:
    mount("cgroup", "/tmp/devices", "cgroup", "devices")
    write("/tmp/devices/devices.allow", "a")


def cgroup2_limits() -> None:
    for name in ("memory.max", "pids.max", "cpu.max", "cgroup.freeze"):
        path = f"/sys/fs/cgroup/{name}"
        if os.path.exists(path):
            write(path, "max" if name != "cgroup.freeze" else "0")


def cgroup_escape() -> None:
    write("/sys/fs/cgroup/../cgroup.procs", str(os.getpid()))


def kernel_file_systems() -> None:
    refused = []
    for kind in [
        "fusectl",
        "debugfs",
        "tracefs",
        "securityfs",
        "bpf",
        "devtmpfs",
        "configfs",
        "pstore",
        "efivarfs",
        "binfmt_misc",
        "ext4",
        "xfs",
        "nfs",
    ]:
        try:
            mount("none", "/tmp/kernel", kind)
        except Blocked as error:
            refused.append(str(error))
            continue
        if kind == "binfmt_misc":  # one of its own per user namespace (Linux 6.7)
            libc.umount2(b"/tmp/kernel", 2)
            continue
        return
    raise Blocked(", ".join(refused))


def open_by_handle() -> None:
    handle = struct.pack("<Ii", 8, 1) + struct.pack("<II", 2, 0)  # inode 2: the root of ext4
    buffer = ctypes.create_string_buffer(handle, len(handle) + 128)
    fd = os.open("/", os.O_RDONLY)
    syscall("open_by_handle_at", fd, buffer, os.O_RDONLY)


def session_keyring() -> None:
    syscall("keyctl", 11, -3, None, 0)  # KEYCTL_READ, KEY_SPEC_SESSION_KEYRING


def add_key() -> None:
    syscall("add_key", b"user", b"evil", b"x", 1, -3)


def bpf() -> None:
    syscall("bpf", 0, ctypes.create_string_buffer(72), 72)


def userfaultfd() -> None:
    syscall("userfaultfd", 0)


def perf() -> None:
    attributes = ctypes.create_string_buffer(struct.pack("<IIQ", 1, 112, 0), 112)
    syscall("perf_event_open", attributes, -1, 0, -1, 0)


def io_uring() -> None:
    syscall("io_uring_setup", 8, ctypes.create_string_buffer(120))


def kernel_module() -> None:
    syscall("init_module", b"x", 1, b"")


def kexec() -> None:
    syscall("kexec_load", 0, 0, None, 0)


def set_time() -> None:
    syscall("clock_settime", 0, ctypes.create_string_buffer(struct.pack("<qq", 1, 0)))


def push_terminal_input() -> None:
    pid, master = pty.fork()
    if pid == 0:
        for number in (0x5412, 0x5412 | 1 << 32):
            if libc.ioctl(0, ctypes.c_ulong(number), ctypes.c_char_p(b"x")) == 0:
                os._exit(0)
        os._exit(1)
    _pid, status = os.waitpid(pid, 0)
    os.close(master)
    if status:
        raise Blocked("TIOCSTI")


def make_node() -> None:
    try:
        os.mknod("/tmp/mem", 0o600 | 0o020000, os.makedev(1, 1))
    except OSError as error:
        raise Blocked(errno.errorcode[error.errno or 0]) from error
    os.close(os.open("/tmp/mem", os.O_RDONLY))


def open_node_of_tree() -> None:
    try:
        os.close(os.open("/node", os.O_RDWR))
    except OSError as error:
        raise Blocked(errno.errorcode[error.errno or 0]) from error


def disks_of_host() -> None:
    found = [name for name in os.listdir("/dev") if name.startswith(("sd", "vd", "nvme", "mem"))]
    if not found:
        raise Blocked("no disk in /dev")


def init_program() -> None:
    """Open the program of process 1 when that is the server's interpreter."""
    try:
        fd = os.open("/proc/1/exe", os.O_RDONLY)
    except OSError as error:
        raise Blocked(errno.errorcode[error.errno or 0]) from error
    _own_file(fd)


def _own_file(fd: int) -> None:
    """Raises Blocked when an open file is one the container sees under its name anyway."""
    name = os.readlink(f"/proc/self/fd/{fd}")
    try:
        same = os.path.samestat(os.stat(name), os.fstat(fd))
    except OSError:
        same = False
    if same:
        raise Blocked("the container's own file")


def program_of_helper() -> None:
    """Watch for processes entering the container and open their programs while they are ours."""
    deadline = time.monotonic() + float(os.environ.get("WATCH_S", "3"))
    while time.monotonic() < deadline:
        for name in os.listdir("/proc"):
            if not name.isdecimal() or int(name) in (1, os.getpid()):
                continue
            for what in ("exe", "cwd", "root"):
                try:
                    fd = os.open(f"/proc/{name}/{what}", os.O_RDONLY)
                except OSError:
                    continue
                try:
                    _own_file(fd)
                except Blocked:
                    continue
                finally:
                    os.close(fd)
                return
            try:
                if os.listdir(f"/proc/{name}/fd") and "python" in os.readlink(f"/proc/{name}/exe"):
                    return
            except OSError:
                continue
    raise Blocked("nothing of the server was in reach")


def leaked_descriptors() -> None:
    listing = os.open("/proc/self/fd", os.O_RDONLY)
    found = {int(name) for name in os.listdir(listing)} - {0, 1, 2, listing}
    alive = []
    for fd in found:
        try:
            alive.append((fd, os.readlink(f"/proc/self/fd/{fd}")))
        except OSError:
            continue
    if not [item for item in alive if item[1] != "/proc/self/fd"]:
        raise Blocked("only 0, 1 and 2")
    print(alive)


def directory_outside() -> None:
    here = os.getcwd()
    mounts_here = os.stat(".").st_dev
    os.chdir("../../../../../../../..")
    if os.stat(".").st_ino == os.stat("/").st_ino and here.startswith("/") and mounts_here:
        raise Blocked("the top is the container's root")


def chroot_break() -> None:
    os.makedirs("/tmp/jail", exist_ok=True)
    fd = os.open("/", os.O_RDONLY)
    os.chroot("/tmp/jail")
    os.fchdir(fd)
    for _ in range(64):
        os.chdir("..")
    os.chroot(".")
    if os.path.exists("/vz") or os.path.exists("/marker-of-the-server"):
        return
    raise Blocked("back in the container's root")


def environment_of_caller() -> None:
    if "SERVER_SECRET" not in os.environ:
        raise Blocked("a clean environment")


def host_processes() -> None:
    for name in os.listdir("/proc"):
        if name.isdecimal():
            with open(f"/proc/{name}/cmdline", "rb") as file:
                text = file.read()
            if b"/.venv/" in text or b"pytest" in text or b"vzctl" in text:
                return
    raise Blocked("only the container's own")


def abstract_socket() -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        try:
            sock.connect("\0" + os.environ["ABSTRACT"])
        except OSError as error:
            raise Blocked(errno.errorcode[error.errno or 0]) from error


def network_of_host() -> None:
    names = [name for _number, name in socket.if_nameindex() if name != "lo"]
    if not [name for name in names if not name.startswith(("sit", "tunl", "ip6tnl", "gre"))]:
        raise Blocked("only lo")


def trace_process_one() -> None:
    syscall("ptrace", 0x4206, 1, 0, 0)  # PTRACE_SEIZE
    raise Blocked("its own init may be traced") if not _is_ours(1) else SystemExit(0)


def _is_ours(pid: int) -> bool:
    with open(f"/proc/{pid}/cmdline", "rb") as file:
        return b"python" in file.read()


def signal_outside() -> None:
    try:
        os.kill(int(os.environ["HOST_PID"]), 0)
    except OSError as error:
        raise Blocked(errno.errorcode[error.errno or 0]) from error
    if os.path.exists(f"/proc/{os.environ['HOST_PID']}"):
        raise Blocked("an own process has that number")


def namespace_of_host() -> None:
    for kind in ("mnt", "net", "user", "pid"):
        for pid in (1, os.getppid() or 1):
            try:
                fd = os.open(f"/proc/{pid}/ns/{kind}", os.O_RDONLY)
            except OSError:
                continue
            other = os.readlink(f"/proc/{pid}/ns/{kind}") != os.readlink(f"/proc/self/ns/{kind}")
            if other and libc.setns(fd, 0) == 0:
                return
    raise Blocked("none but its own in reach")


def nested_user_namespace() -> None:
    if libc.unshare(0x10000000 | 0x20000):
        raise Blocked("unshare")
    write("/proc/sys/kernel/core_pattern", "|/bin/evil")


ATTACKS: dict[str, Callable[[], None]] = {
    function.__name__: function
    for function in (
        core_pattern, core_pattern_fresh_proc, core_pattern_remounted_proc, sysrq, sys_writable,
        memory_limit_v1, release_agent, devices_allow, cgroup2_limits, cgroup_escape,
        kernel_file_systems, open_by_handle, session_keyring, add_key, bpf, userfaultfd, perf,
        io_uring, kernel_module, kexec, set_time, push_terminal_input, make_node,
        open_node_of_tree, disks_of_host, init_program, program_of_helper, leaked_descriptors,
        directory_outside, chroot_break, environment_of_caller, host_processes, abstract_socket,
        network_of_host, trace_process_one, signal_outside, namespace_of_host,
        nested_user_namespace,
    )
}  # fmt: skip


def main() -> None:
    """Try one attack."""
    try:
        ATTACKS[sys.argv[1]]()
    except Blocked as error:
        print(f"blocked: {error}")
    else:
        print(f"SUCCEEDED: {sys.argv[1]}")


if __name__ == "__main__":
    fcntl.fcntl(0, fcntl.F_GETFD)
    main()
