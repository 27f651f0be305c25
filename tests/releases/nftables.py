"""What release 0.1.0 uses of Debian's Python module ``nftables``, over libnftables itself.

Installed beside 0.1.0 by `mixed`: the lab's image has the library of Debian 12, which 0.1.0 needs,
but no Python there. Source: libnftables(3).
"""

from __future__ import annotations

import ctypes

_library = ctypes.CDLL("libnftables.so.1")
for _name in ("nft_ctx_new", "nft_ctx_get_output_buffer", "nft_ctx_get_error_buffer"):
    getattr(_library, _name).restype = ctypes.c_void_p
_library.nft_ctx_new.argtypes = [ctypes.c_uint32]
for _name in ("output_buffer", "error_buffer"):
    getattr(_library, f"nft_ctx_get_{_name}").argtypes = [ctypes.c_void_p]
for _name in ("nft_ctx_buffer_output", "nft_ctx_buffer_error", "nft_ctx_free"):
    getattr(_library, _name).argtypes = [ctypes.c_void_p]
_library.nft_run_cmd_from_buffer.argtypes = [ctypes.c_void_p, ctypes.c_char_p]


class Nftables:
    """A context of libnftables."""

    def __init__(self) -> None:
        self._context = _library.nft_ctx_new(0)
        _library.nft_ctx_buffer_output(self._context)
        _library.nft_ctx_buffer_error(self._context)

    def __del__(self) -> None:
        """Free the context."""
        _library.nft_ctx_free(self._context)

    def cmd(self, script: str) -> tuple[int, str, str]:
        """Run nft commands; return the status, the output, and the errors."""
        status = _library.nft_run_cmd_from_buffer(self._context, script.encode())
        said = (
            ctypes.string_at(getattr(_library, f"nft_ctx_get_{name}_buffer")(self._context))
            for name in ("output", "error")
        )
        output, error = (text.decode() for text in said)
        return status, output, error
