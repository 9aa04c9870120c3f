"""Packed weights of large models are kept: `<user cache folder>/edgellm/packed/<key>.safetensors`.

Packing reads and turns every weight at each start, 1 to 2 GB/s on two cores; reading what was packed before runs at
the speed of a copy (7 GB/s from the system's file cache). The key is a digest of what decides the bytes: the model's
files (sizes, times, samples of their contents), how they are read, the kernels' sources and this processor's lanes. A
file is written behind the model's back, once it runs, and only where it is worth it:

    models of at least `MIN_BYTES`, on a disk that writes `MIN_RATE` bytes a second and has `FREE_SHARE` times as much
    free

`EDGELLM_KEEP_PACKED=0` turns it off. What is not used for `KEPT_SECONDS`, more than `KEPT_FILES`, and what is more than
`KEPT_SHARE` of the disk together, is removed, the least recently used first.
"""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import logging
import os
import shutil
import threading
import time
from pathlib import Path

from edgellm.backends.cpu.jit_digest import digest
from edgellm.backends.cpu.kept_file import read_kept, write_kept
from edgellm.backends.cpu.packed import PackedWeights, pack_weights
from edgellm.backends.cpu.packed_plan import plan_packing
from edgellm.backends.interface import Progress
from edgellm.errors import EdgeLLMError
from edgellm.folders import folder as user_folder
from edgellm.folders import require_own_home, require_private
from edgellm.formats import fingerprint
from edgellm.formats.writer import partial_name
from edgellm.model.program import Program
from edgellm.model.weights import Weights

MIN_BYTES = 64 << 20
FREE_SHARE = 4
#: A slower disk reads no faster than packing runs, and is perhaps a card that wears.
MIN_RATE = 150e6
KEPT_FILES = 8
KEPT_SHARE = 0.1
KEPT_SECONDS = 30 * 86400
#: A file that could not be written, or was too slow to be worth it, is not tried again for so long.
RETRY_SECONDS = 86400
_UNFINISHED_SECONDS = 3600
#: A process that has nothing else to do any more waits so long for the file, or as long as packing took, which is what
#: the next start saves; longer than `_SILENT_SECONDS` not without a word.
_EXIT_SECONDS = 5.0
_SILENT_SECONDS = 2.0
_TRIED = ".tried"

_log = logging.getLogger("edgellm")


def load_packed(
    program: Program,
    weights: Weights,
    head: str = "int8",
    progress: Progress | None = None,
    threads: int = 1,
    min_bytes: int = MIN_BYTES,
) -> PackedWeights:
    """As `pack_weights`, from what is kept where there is some; what is not there yet is written in the background."""
    size = plan_packing(program, weights, head).nbytes
    folder = _folder() if size >= min_bytes else None
    if folder is None:
        return pack_weights(program, weights, head, progress, threads)
    path = folder / f"{_key(program, weights, head)}.safetensors"
    if path.exists():
        try:
            packed = read_kept(path, progress, threads)
        except EdgeLLMError as error:
            _log.warning("packed weights that were kept are damaged and packed anew: %s", error)
            path.unlink(missing_ok=True)
        else:
            with contextlib.suppress(OSError):
                os.utime(path)  # for `_prune`
            return packed
    began = time.monotonic()
    packed = pack_weights(program, weights, head, progress, threads)
    seconds = max(time.monotonic() - began, _EXIT_SECONDS)
    if _worth_it(path, packed.nbytes):
        keeper = threading.Thread(target=_keep, args=(path, packed), name="edgellm-keep", daemon=True)
        keeper.start()
        atexit.register(_finish, keeper, path, seconds)
    return packed


def _folder() -> Path | None:
    """The private folder, created where it must be; None where there is none or it is not wanted."""
    cache = user_folder("cache")
    if cache is None or os.environ.get("EDGELLM_KEEP_PACKED", "").strip() == "0":
        return None
    folder = cache / "packed"
    try:
        if not folder.is_dir():
            require_own_home(folder)
            os.makedirs(cache, mode=0o700, exist_ok=True)
            with contextlib.suppress(FileExistsError):
                os.mkdir(folder, 0o700)
        require_private(folder)
    except OSError as error:
        _log.info("packed weights are not kept: %s", error)
        return None
    return folder


def _key(program: Program, weights: Weights, head: str) -> str:
    checkpoint = weights.checkpoint
    stats = [os.stat(file) for file in checkpoint.files]
    parts = [
        fingerprint(checkpoint),
        *(f"{found.st_size} {found.st_mtime_ns}" for found in stats),
        repr(weights.quantization),
        repr(sorted(program.weights.items())),
        repr((weights.prefix, weights.lm_head_is_embedding, head)),
        digest(),
    ]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]


def _worth_it(path: Path, nbytes: int) -> bool:
    try:
        disk = shutil.disk_usage(path.parent)
        if not os.access(path.parent, os.W_OK) or nbytes > min(disk.free / FREE_SHARE, disk.total * KEPT_SHARE):
            return False
        return time.time() - path.with_suffix(_TRIED).stat().st_mtime > RETRY_SECONDS
    except FileNotFoundError:
        return True
    except OSError:
        return False


def _keep(path: Path, packed: PackedWeights) -> None:
    """Write the file, in a thread of its own. A process that ends meanwhile leaves the note that it was tried."""
    tried = path.with_suffix(_TRIED)
    try:
        _prune(path.parent, packed.nbytes)
        tried.touch(mode=0o600)
        began = time.monotonic()
        write_kept(path, packed)
        seconds = time.monotonic() - began
        if packed.nbytes < MIN_RATE * seconds:
            _log.info("packed weights are not kept: the disk took %.0f s for them", seconds)
            path.unlink(missing_ok=True)
        else:
            tried.unlink(missing_ok=True)
    except (OSError, EdgeLLMError) as error:
        _log.info("packed weights are not kept: %s", error)


def _finish(keeper: threading.Thread, path: Path, seconds: float) -> None:
    """Wait for the file at the process's end, and leave no half of it."""
    with contextlib.suppress(KeyboardInterrupt, SystemExit):  # of who does not want to wait
        keeper.join(_SILENT_SECONDS)
        if keeper.is_alive():
            _log.warning("keeping packed weights for the next start: %.0f s at most, Ctrl-C leaves it", seconds)
            keeper.join(seconds)
    if keeper.is_alive():
        with contextlib.suppress(OSError):
            partial_name(path).unlink(missing_ok=True)


def _prune(folder: Path, coming: int) -> None:
    """Make room for a file of `coming` bytes."""
    now = time.time()
    kept = []
    with contextlib.suppress(OSError):
        for entry in list(os.scandir(folder)):
            age = now - entry.stat().st_mtime
            if entry.name.endswith(".safetensors") and age <= KEPT_SECONDS:
                kept.append((age, entry.stat().st_size, entry.path))
            elif age > _UNFINISHED_SECONDS and not (entry.name.endswith(_TRIED) and age <= RETRY_SECONDS):
                os.unlink(entry.path)
        together, most = coming, KEPT_SHARE * shutil.disk_usage(folder).total
        for number, (_, nbytes, path) in enumerate(sorted(kept), start=2):
            together += nbytes
            if number > KEPT_FILES or together > most:
                os.unlink(path)
