"""A file's bytes where the system's cache holds them, if it holds them in large pages.

Recent Linux kernels do, on some file systems. A start then takes neither memory nor a copy (0.8 GB: 0.04 s, where fresh
memory took 0.1 to 1.8 s on a virtual machine that had given its free memory back), and decode reads as fast as from
memory of its own. From small pages it is up to a quarter slower: there nothing stays mapped. Which pages they are shows
once they have been read, which several threads do (0.04 s, where MAP_POPULATE and reading after it took 0.06). What the
cache lacks comes from the disk in large pages if the mapping asks for them (0.7 GB of 0.8; 0.1 without).
"""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
from pathlib import Path

import numpy as np

from edgellm.backends.cpu.arena import ask_for_large_pages

#: Share of a mapping that is in pages of 2 MiB where its file is kept in large pages at all. The rest is in large pages
#: that are not aligned to 2 MiB.
_LARGE_SHARE = 0.25


def map_file(path: Path, begin: int, nbytes: int) -> np.ndarray | None:
    """uint8 [nbytes], the file's bytes from `begin` on; None where the system cannot map them, or tell of their pages.

    Nobody may write to it, though NumPy would let them: kernels are compiled for arrays that can be written. The file
    must be one that nobody truncates, a private one that is only ever replaced: reading behind its end would end the
    process.
    """
    if not sys.platform.startswith("linux") or not nbytes:
        return None
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if os.fstat(descriptor).st_size < begin + nbytes:
            return None
        mapping = mmap.mmap(descriptor, begin + nbytes, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ)
    except OSError:
        return None
    finally:
        os.close(descriptor)
    ask_for_large_pages(mapping)
    memory = (ctypes.c_uint8 * nbytes).from_address(np.frombuffer(mapping, np.uint8).ctypes.data + begin)
    memory.mapping = mapping  # lives as long as the array does
    return np.ctypeslib.as_array(memory)


def in_large_pages(mapped: np.ndarray, begin: int) -> bool:
    """Whether the system has what `map_file` gave for `begin`, and what has been read since, in large pages."""
    return _large_bytes(mapped.ctypes.data - begin) >= _LARGE_SHARE * len(mapped)


def _large_bytes(address: int) -> int:
    """Bytes of the mapping at `address` that are in pages of 2 MiB; 0 where the system does not say."""
    try:
        with open("/proc/self/smaps") as lines:
            for line in lines:
                if line.startswith(f"{address:x}-"):
                    break
            for line in lines:
                name, _, rest = line.partition(":")
                if name == "FilePmdMapped":
                    return int(rest.split()[0]) << 10
                if name == "VmFlags":
                    break
    except (OSError, ValueError):
        return 0
    return 0
