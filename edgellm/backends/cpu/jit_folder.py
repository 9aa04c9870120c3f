"""Where compiled kernels lie: `<user cache folder>/edgellm/jit/<digest>/`, or `$EDGELLM_CACHE_DIR/jit/<digest>/`.

A cached kernel is machine code that is loaded and run, so a folder is trusted only where nobody but this user, or root,
can write, and no place is ever taken from the working directory or from beside a model. Where the user's folder cannot
be written, a private one in the system's temporary folder takes its place; where that cannot be had either, kernels are
compiled anew in every process. Each is said once, through the logger "edgellm"; neither is an error.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shutil
import time
from pathlib import Path

from edgellm.backends.cpu.jit_digest import DIGEST_LENGTH, digest
from edgellm.folders import absolute, require_own_home, require_private
from edgellm.folders import folder as user_folder

KEPT_DIGESTS = 8  # of other versions, processors or edits, by last use
KEPT_SECONDS = 30 * 86400
_IN_USE_SECONDS = 600  # another process may be at it
_TOUCHED_SECONDS = 3600
_DIGEST = re.compile(f"[0-9a-f]{{{DIGEST_LENGTH}}}")
_REMOVED = ".removed-"
WRITING = ".writing-"  # in the names of entries that are not whole yet

_log = logging.getLogger("edgellm")


class CacheFolders:
    """The folders of one process: where to look, and where to put.

    Args:
        roots: folders that hold one folder a digest, the best first; None for those of this user.
    """

    def __init__(self, roots: list[Path] | None = None) -> None:
        self._roots = user_roots() if roots is None else roots
        self._readable: list[Path] | None = None
        self._refused: list[str] = []
        self._warned = False
        self._hopeless: set[Path] = set()
        if not self._roots:
            self._refused.append("this user has no home folder")

    def readable(self) -> list[Path]:
        """Folders that exist and can be trusted."""
        if self._readable is None:
            self._readable = [root / digest() for root in self._roots if self._exists(root)]
            for folder in self._readable:
                _touch(folder)
        return self._readable

    def writable(self) -> Path | None:
        """A private folder, created where it must be; None where there is no place left, which is said once."""
        for root in self._roots:
            if root in self._hopeless:
                continue
            try:
                folder = _create(root)
            except OSError as error:
                self.give_up(root / digest(), error)
                continue
            if self._readable is not None and folder not in self._readable:
                self._readable.append(folder)
            return folder
        self._warn("they are compiled anew in every process")
        return None

    def give_up(self, folder: Path, error: OSError) -> None:
        """Writing to `folder` failed: never try again in this process."""
        self._hopeless.add(folder.parent)
        self._refused.append(f"{folder.parent}: {error.strerror or error}")

    def written(self, folder: Path) -> None:
        """Writing to `folder` succeeded: where others were refused before, that is said now."""
        if self._refused:
            self._warn(f"they are kept in {folder.parent} instead")

    def _exists(self, root: Path) -> bool:
        try:
            for folder in (root, root / digest()):
                require_private(folder)
        except FileNotFoundError:
            return False
        except OSError as error:
            self.give_up(root / digest(), error)
            return False
        return True

    def _warn(self, consequence: str) -> None:
        if self._warned:
            return
        self._warned = True
        reasons = "; ".join(self._refused)
        _log.warning("compiled kernels cannot be kept (%s): %s. Set EDGELLM_CACHE_DIR.", reasons, consequence)


def user_roots() -> list[Path]:
    """The folders of this user that hold one folder a digest, the best first; none is created."""
    cache = user_folder("cache")
    roots = [None if cache is None else cache / "jit", _temporary()]
    return [root for root in roots if root is not None]


def _create(root: Path) -> Path:
    folder = root / digest()
    if not folder.is_dir():
        require_own_home(root)
        os.makedirs(root.parent, mode=0o700, exist_ok=True)
        for level in (root, folder):
            with contextlib.suppress(FileExistsError):
                os.mkdir(level, 0o700)
        _prune(root)
    for level in (root, folder):
        require_private(level)
    if not os.access(folder, os.W_OK):
        raise PermissionError(f"{folder} is read-only")
    return folder


def _touch(folder: Path) -> None:
    """Note the use, for `_prune`; not in every process, the disk may be a memory card."""
    with contextlib.suppress(OSError):
        if time.time() - folder.stat().st_mtime > _TOUCHED_SECONDS:
            os.utime(folder)


def _prune(root: Path) -> None:
    """Remove the folders of digests that nobody used for long, and what crashed processes left.

    A folder is renamed before it is emptied, so another process finds all of it or nothing, and nothing means that it
    compiles again.
    """
    now = time.time()
    kept = []
    with contextlib.suppress(OSError):
        for entry in list(os.scandir(root)):
            if entry.name.startswith(_REMOVED):
                shutil.rmtree(entry.path, ignore_errors=True)
            elif _DIGEST.fullmatch(entry.name) and entry.is_dir(follow_symlinks=False):
                kept.append((entry.stat().st_mtime, entry.path))
    for position, (used, path) in enumerate(sorted(kept, reverse=True)):
        unused = now - used
        if unused > KEPT_SECONDS or (position > KEPT_DIGESTS and unused > _IN_USE_SECONDS):
            _remove(path, root)
        else:
            _remove_unfinished(path, now)


def _remove(path: str, root: Path) -> None:
    aside = root / f"{_REMOVED}{os.urandom(6).hex()}"
    with contextlib.suppress(OSError):
        os.rename(path, aside)
        shutil.rmtree(aside, ignore_errors=True)


def _remove_unfinished(folder: str, now: float) -> None:
    with contextlib.suppress(OSError):
        for entry in list(os.scandir(folder)):
            if WRITING in entry.name and now - entry.stat().st_mtime > _IN_USE_SECONDS:
                os.unlink(entry.path)


def _temporary() -> Path | None:
    """A folder of this user's own in the temporary folder. (`tempfile.gettempdir` may answer the working directory.)"""
    if not hasattr(os, "geteuid"):
        return None
    base = absolute(os.environ.get("TMPDIR")) or Path("/tmp")
    return base / f"edgellm-jit-{os.geteuid()}"
