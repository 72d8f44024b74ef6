"""Bytes from the files of a store by position: few descriptors, no lock, any thread, before and after a fork."""

import os
import time
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path

_ATTEMPTS = 3
_PAUSE = 0.1  # seconds before the second attempt; twice that before the third
_BUFFERS_A_CALL = 1024  # IOV_MAX of Linux


class _Descriptor:
    """An open file that closes when its last user lets go: eviction from the cache never cuts off a read."""

    def __init__(self, path: Path) -> None:
        self.number = -1
        self.number = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self) -> None:
        if self.number >= 0:
            os.close(self.number)


class Files:
    """Reads files by name, and keeps those used last open.

    `preadv` carries its own offset, so threads and forked processes share a descriptor without harm.

    Args:
        path: gives the local path of a file; asked at each opening, since a cached file may have been evicted.
        keep: files that are kept open.
    """

    def __init__(self, path: Callable[[str], Path], keep: int = 64) -> None:
        self._open = lru_cache(maxsize=keep)(lambda name: _Descriptor(path(name)))

    def read_into(self, name: str, offset: int, buffers: Sequence[memoryview]) -> int:
        """Fill the buffers (of bytes) one after another; returns the bytes read, fewer only where the file ends.

        Raises:
            OSError: the file is gone or cannot be read, in each of three attempts.
        """
        left, done = [buffer for buffer in buffers if len(buffer)], 0
        while left:  # the kernel moves at most 2 GiB a call
            count = self._preadv(name, left[:_BUFFERS_A_CALL], offset + done)
            if not count:
                break
            done += count
            filled = 0
            while filled < len(left) and count >= len(left[filled]):
                count -= len(left[filled])
                filled += 1
            left = left[filled:]
            if count:
                left[0] = left[0][count:]
        return done

    def read(self, name: str) -> bytes:
        """All bytes of a small file. Raises OSError as `read_into`."""
        content = bytearray(self.size(name))
        return bytes(content[: self.read_into(name, 0, [memoryview(content)])])

    def size(self, name: str) -> int:
        """Size of a file. Raises OSError as `read_into`."""
        return self._patiently(name, lambda file: os.fstat(file.number).st_size)

    def _preadv(self, name: str, buffers: list[memoryview], offset: int) -> int:
        return self._patiently(name, lambda file: os.preadv(file.number, buffers, offset))

    def _patiently(self, name: str, call: Callable[[_Descriptor], int]) -> int:
        # The argument keeps the descriptor open until the call returns, even if another thread evicts it.
        for attempt in range(1, _ATTEMPTS):
            try:
                return call(self._open(name))
            except OSError:  # a network file system that stumbles, a handle that went stale, a file just evicted
                self._open.cache_clear()
                time.sleep(_PAUSE * attempt)
        return call(self._open(name))

    def close(self) -> None:
        """Let go of all descriptors; a later read opens its file again."""
        self._open.cache_clear()
