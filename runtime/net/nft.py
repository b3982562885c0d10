"""libnftables (libnftables(3)): atomic scripts in, JSON out. One of the few modules with ctypes.

A context is bound to the network namespace in which it was made. A script is applied as a whole
or not at all.
"""

from __future__ import annotations

import ctypes
import functools
import json
import os
from typing import Any

from runtime.errors import NoKernelSupport, SystemFailure
from runtime.net.contexts import Closing

# nftables/libnftables.h
_NFT_CTX_OUTPUT_JSON = 1 << 4


@functools.cache
def _library() -> Any:
    try:
        library = ctypes.CDLL("libnftables.so.1")
    except OSError as error:
        raise NoKernelSupport(
            "libnftables.so.1 is not installed", hint="apt-get install libnftables1"
        ) from error
    library.nft_ctx_new.restype = ctypes.c_void_p
    library.nft_ctx_new.argtypes = [ctypes.c_uint32]
    for name in ("nft_ctx_get_output_buffer", "nft_ctx_get_error_buffer"):
        getattr(library, name).restype = ctypes.c_char_p
        getattr(library, name).argtypes = [ctypes.c_void_p]
    for name in ("nft_ctx_buffer_output", "nft_ctx_buffer_error"):
        getattr(library, name).restype = ctypes.c_int
        getattr(library, name).argtypes = [ctypes.c_void_p]
    library.nft_ctx_free.restype = None
    library.nft_ctx_free.argtypes = [ctypes.c_void_p]
    library.nft_ctx_output_set_flags.restype = None
    library.nft_ctx_output_set_flags.argtypes = [ctypes.c_void_p, ctypes.c_uint]
    library.nft_run_cmd_from_buffer.restype = ctypes.c_int
    library.nft_run_cmd_from_buffer.argtypes = [ctypes.c_void_p, ctypes.c_char_p]
    return library


class NftFailed(SystemFailure):
    """nftables refused a script."""


class Nft(Closing):
    """A context of libnftables in the network namespace of the moment; use it in a ``with``."""

    def __init__(self) -> None:
        """Open the context; raises NoKernelSupport."""
        self._library = _library()
        self._context = self._library.nft_ctx_new(0)
        if not self._context:
            raise NoKernelSupport("nftables cannot be used", hint="modprobe nf_tables")
        self._library.nft_ctx_buffer_output(self._context)
        self._library.nft_ctx_buffer_error(self._context)

    def close(self) -> None:
        """Free the context; twice is success."""
        if self._context:
            self._library.nft_ctx_free(self._context)
            self._context = None

    def run(self, script: str) -> None:
        """Apply ``script`` atomically; raises NftFailed with nftables' own first words."""
        self._run(script, 0)

    def tables(self) -> set[tuple[str, str]]:
        """Return (family, name) of every table of this namespace."""
        return {
            (entry["table"]["family"], entry["table"]["name"])
            for entry in self.query("list tables")
            if "table" in entry
        }

    def query(self, command: str) -> list[dict[str, Any]]:
        """Return what a ``list …`` command gives, as libnftables-json(5); raises NftFailed."""
        text = self._run(command, _NFT_CTX_OUTPUT_JSON)
        return list(json.loads(text)["nftables"]) if text.strip() else []

    def _run(self, script: str, flags: int) -> str:
        self._library.nft_ctx_output_set_flags(self._context, flags)
        status = self._library.nft_run_cmd_from_buffer(self._context, os.fsencode(script))
        out: bytes = self._library.nft_ctx_get_output_buffer(self._context) or b""
        wrong: bytes = self._library.nft_ctx_get_error_buffer(self._context) or b""
        if status:
            words = " ".join(os.fsdecode(wrong).split())
            raise NftFailed(f"nftables: {words[:300] or 'refused without a word'}")
        return os.fsdecode(out)


def apply(script: str) -> None:
    """Apply a script in this network namespace; raises NftFailed, NoKernelSupport."""
    with Nft() as context:
        context.run(script)
