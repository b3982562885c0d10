"""The system calls no container process may make, as a filter made by libseccomp.

A container's root has no power over the host (user namespace); this list keeps it away from
kernel code whose flaws would give it some, and from the few calls namespaces do not cover.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import os

from runtime.errors import NoKernelSupport

_EPERM = tuple(
    """
    bpf perf_event_open userfaultfd
    add_key keyctl request_key
    open_by_handle_at
    io_uring_setup io_uring_enter io_uring_register
    init_module finit_module delete_module create_module query_module get_kernel_syms
    kexec_load kexec_file_load
    iopl ioperm
    swapon swapoff
    acct nfsservctl lookup_dcookie syslog
    vm86 vm86old uselib _sysctl sysfs
    """.split()  # noqa: SIM905 # one word a call reads better than a list
)
_CLOCK = tuple(
    """
    clock_settime clock_settime64 settimeofday stime adjtimex clock_adjtime clock_adjtime64
    """.split()  # noqa: SIM905
)
#: ioctls: pushing input into a terminal (ioctl_tty(2); linux/tiocl.h pastes a selection).
_TIOCSTI = 0x5412
_TIOCLINUX = 0x541C

#: linux/netlink.h; linux/netfilter_ipv4/ip_tables.h: REPLACE, ADD_COUNTERS and one to come.
_AF_NETLINK, _NETLINK_NETFILTER = 16, 12
_IPPROTO_IP, _IPPROTO_IPV6 = 0, 41
_IPT_SO_SET_REPLACE = 64

# seccomp.h
_ACT_ALLOW = 0x7FFF0000
_CMP_MASKED_EQ = 7
_ATTR_BADARCH = 2
_ATTR_OPTIMIZE = 8
#: x86 programs of 32 bits and x32 run on the same kernel: their calls must be refused too.
_OTHER_ARCHITECTURES = {"x86_64": ("x86", "x32"), "aarch64": ("arm",)}


class _Compare(ctypes.Structure):
    """struct scmp_arg_cmp."""

    _fields_ = (
        ("arg", ctypes.c_uint),
        ("op", ctypes.c_int),
        ("datum_a", ctypes.c_uint64),
        ("datum_b", ctypes.c_uint64),
    )


def _refuse(number: int) -> int:
    return 0x00050000 | number


@functools.cache
def program(*, netfilter: bool = True, clock: bool = False) -> bytes:
    """Return the filter as BPF instructions for ``syscalls.load_seccomp``.

    With ``clock`` the server's clock can be set by who has the capability. Without ``netfilter`` there is no way to its rules: neither its netlink family nor the socket
    options of the old iptables. Raises NoKernelSupport when libseccomp is missing.
    """
    try:
        library = ctypes.CDLL("libseccomp.so.2", use_errno=True)
    except OSError as error:
        raise NoKernelSupport(
            f"libseccomp cannot be loaded: {error}", hint="install libseccomp2"
        ) from error
    library.seccomp_init.restype = ctypes.c_void_p
    library.seccomp_init.argtypes = [ctypes.c_uint32]
    library.seccomp_release.argtypes = [ctypes.c_void_p]
    library.seccomp_arch_resolve_name.restype = ctypes.c_uint32
    library.seccomp_arch_resolve_name.argtypes = [ctypes.c_char_p]
    library.seccomp_arch_add.argtypes = [ctypes.c_void_p, ctypes.c_uint32]
    library.seccomp_attr_set.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_uint32]
    library.seccomp_syscall_resolve_name.argtypes = [ctypes.c_char_p]
    library.seccomp_rule_add_array.argtypes = [
        ctypes.c_void_p,
        ctypes.c_uint32,
        ctypes.c_int,
        ctypes.c_uint,
        ctypes.POINTER(_Compare),
    ]
    library.seccomp_export_bpf.argtypes = [ctypes.c_void_p, ctypes.c_int]
    context = library.seccomp_init(_ACT_ALLOW)
    if not context:
        raise NoKernelSupport("libseccomp cannot make a filter")
    try:
        for name in _OTHER_ARCHITECTURES.get(os.uname().machine, ()):
            token = library.seccomp_arch_resolve_name(name.encode())
            _check(library.seccomp_arch_add(context, token), name)
        # A binary tree of the numbers: a chain of forty comparisons would tax every system call.
        library.seccomp_attr_set(context, _ATTR_OPTIMIZE, 2)
        library.seccomp_attr_set(context, _ATTR_BADARCH, _refuse(errno.ENOSYS))
        for name in _EPERM if clock else (*_EPERM, *_CLOCK):
            number = library.seccomp_syscall_resolve_name(name.encode())
            if number == -1:  # __NR_SCMP_ERROR: this libseccomp does not know it
                continue
            _check(
                library.seccomp_rule_add_array(context, _refuse(errno.EPERM), number, 0, None), name
            )
        ioctl = library.seccomp_syscall_resolve_name(b"ioctl")
        for request in (_TIOCSTI, _TIOCLINUX):
            # The kernel looks at 32 bits of the request: a high bit must not slip through.
            compare = _Compare(1, _CMP_MASKED_EQ, 0xFFFFFFFF, request)
            _check(
                library.seccomp_rule_add_array(
                    context, _refuse(errno.EPERM), ioctl, 1, ctypes.byref(compare)
                ),
                "ioctl",
            )
        if not netfilter:
            _refuse_netfilter(library, context)
        return _exported(library, context)
    finally:
        library.seccomp_release(context)


def _refuse_netfilter(library: ctypes.CDLL, context: int) -> None:
    """Refuse socket(AF_NETLINK, any, NETLINK_NETFILTER) and setsockopt of iptables' options."""
    word = 0xFFFFFFFF
    refused = [("socket", (0, _AF_NETLINK), (2, _NETLINK_NETFILTER))]
    for level in (_IPPROTO_IP, _IPPROTO_IPV6):
        refused += [("setsockopt", (1, level), (2, _IPT_SO_SET_REPLACE + n)) for n in range(3)]
    for name, one, two in refused:
        compares = (_Compare * 2)(
            *(_Compare(place, _CMP_MASKED_EQ, word, value) for place, value in (one, two))
        )
        number = library.seccomp_syscall_resolve_name(name.encode())
        _check(
            library.seccomp_rule_add_array(context, _refuse(errno.EPERM), number, 2, compares), name
        )


def _exported(library: ctypes.CDLL, context: int) -> bytes:
    fd = os.memfd_create("seccomp", os.MFD_CLOEXEC)
    try:
        _check(library.seccomp_export_bpf(context, fd), "export")
        return os.pread(fd, os.fstat(fd).st_size, 0)
    finally:
        os.close(fd)


def _check(result: int, what: str) -> None:
    # EEXIST, EDOM: this architecture is already in, or lacks the call.
    if result < 0 and -result not in (errno.EEXIST, errno.EDOM):
        raise NoKernelSupport(f"libseccomp refuses {what}: {os.strerror(-result)}")
