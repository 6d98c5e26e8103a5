"""The on-disk cache: where finished work is kept, and how a directory becomes finished.

Everything expensive (a fetched model, an export, a quantized model) is a directory named by the
content it was made from. A directory appears under its final name only when it is complete, so
an interrupted step leaves nothing that a later run could take for a result. Beside it lie the sizes
of its files: one that lost some of them later, on a disk that was full or went away, is made again.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from .errors import StorageError

MANIFEST_FILE = "degrade.json"
"""What this package says of a model, beside its files."""

_CHUNK = 1 << 22
_LARGE = 1 << 26
_SETTLED_NS = 3_000_000_000
_LOCK = threading.Lock()
_HASHING: dict[tuple[int, ...], threading.Lock] = {}
_DIGESTS: dict[tuple[int, ...], str] = {}
# A disk, a quota, or a limit on the size of one file (``ulimit -f``).
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_FORBIDDEN = (errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR)


def cache_root() -> Path:
    """Directory under which finished work is kept."""
    # ``MLFLOW_DEGRADE_CACHE`` wins, then ``XDG_CACHE_HOME``, then ``~/.cache``.
    explicit = os.environ.get("MLFLOW_DEGRADE_CACHE")
    if explicit:
        return Path(explicit).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "mlflow-degrade"


def digest_json(value: Any) -> str:
    """SHA-256 of the canonical JSON text of `value`, as ``"sha256:<hex>"``."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


def digest_file(path: Path) -> str:
    """SHA-256 of a file's bytes, as ``"sha256:<hex>"``; large ones are read once."""
    # For as long as they are not touched. A model is hashed before it is evaluated, judged and
    # registered; a client that lost patience asks a server again, and gets its answer from the
    # first time. Each write sets the time of the change to now, which nobody can set back but who
    # owns the machine.
    stat = path.stat()
    # Clocks of file systems are coarse: what was written just now may be written again unseen.
    settled = time.time_ns() - max(stat.st_ctime_ns, stat.st_mtime_ns) > _SETTLED_NS
    if stat.st_size < _LARGE or not settled:
        return _digest_bytes(path)
    key = (stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
    with _LOCK:
        lock = _HASHING.setdefault(key, threading.Lock())
    with lock:  # two that ask at once do not both read it
        if key not in _DIGESTS:
            found = _digest_bytes(path)
            changed = path.stat()
            if (changed.st_mtime_ns, changed.st_ctime_ns) != key[3:]:
                return found  # written meanwhile
            _DIGESTS[key] = found
        return _DIGESTS[key]


def _digest_bytes(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
    return "sha256:" + digest.hexdigest()


def digest_directory(path: Path, ignore: tuple[str, ...] = ()) -> str:
    """SHA-256 over the relative names and contents of all files below `path`."""
    files = sorted(p for p in path.rglob("*") if p.is_file() and p.name not in ignore)
    return digest_json([[p.relative_to(path).as_posix(), digest_file(p)] for p in files])


def digest_model(path: Path) -> str:
    """Digest of a model's files as they are, in a directory or one file; its manifest left out."""
    return digest_file(path) if path.is_file() else digest_directory(path, (MANIFEST_FILE,))


def require_space(where: Path, needed: int, what: str) -> None:
    """Raise `StorageError` unless `needed` bytes are free below `where`."""
    probe = where
    while not probe.exists():
        probe = probe.parent
    free = shutil.disk_usage(probe).free
    if free < needed:
        raise StorageError(
            f"{what} needs about {needed / 1e9:.1f} GB below {where}, {free / 1e9:.1f} GB are "
            "free: make room, or point MLFLOW_DEGRADE_CACHE to another disk."
        )


@contextmanager
def storing(where: Path) -> Iterator[None]:
    """Explain why nothing can be written to the cache: the disk is full, or may not be written."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise StorageError(
                f"no space left while writing {where}: make room, or point MLFLOW_DEGRADE_CACHE "
                "to another disk. Nothing half-written is kept."
            ) from error
        inside = str(error.filename or "").startswith(str(cache_root()))
        if error.errno in _FORBIDDEN and inside:
            raise StorageError(
                f"{where} cannot be written ({error.strerror}): allow it, or point "
                "MLFLOW_DEGRADE_CACHE to a directory of your own."
            ) from error
        raise


@contextmanager
def _unfinished(final: Path) -> Iterator[Path]:
    """Yield a scratch directory that becomes `final` when the block ends without an error."""
    name = f"{os.getpid()}.{uuid.uuid4().hex[:8]}"
    unlocked, scratch = final.with_name(f".new.{name}"), final.with_name(f".{final.name}.{name}")
    lock = None
    try:
        with storing(final):
            final.parent.mkdir(parents=True, exist_ok=True)
            _sweep(final)
            unlocked.mkdir()
            lock = _lock(unlocked)
            unlocked.rename(scratch)  # whoever sweeps sees it when it is locked
            yield scratch
            sizes = _sizes(scratch)
            try:
                os.replace(scratch, final)
            except OSError as error:
                # Another process finished the same content first: its copy is as good as ours.
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
            else:
                _note_sizes(final, sizes)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def _sizes(directory: Path) -> dict[str, int]:
    """Size of each file below a directory."""
    return {
        path.relative_to(directory).as_posix(): path.lstat().st_size
        for path in directory.rglob("*")
        if path.is_file()
    }


def _sizes_file(final: Path) -> Path:
    # Not inside: what is there is the content, and digested.
    return final.with_name(f"{final.name}.sizes")


def _note_sizes(final: Path, sizes: Mapping[str, int]) -> None:
    scratch = final.with_name(f".new.{uuid.uuid4().hex}.sizes")
    try:
        scratch.write_text(json.dumps(sizes), encoding="utf-8")
        os.replace(scratch, _sizes_file(final))
    except OSError:  # the entry is whole without them
        _sizes_file(final).unlink(missing_ok=True)
    finally:
        scratch.unlink(missing_ok=True)


def _is_whole(directory: Path, sizes: Path) -> bool:
    """Whether each file has the size that it was made with, as far as that is known."""
    try:
        known: dict[str, int] = json.loads(sizes.read_text(encoding="utf-8"))
        return all((directory / name).lstat().st_size == size for name, size in known.items())
    except FileNotFoundError as error:
        return bool(error.filename == str(sizes))  # made by an earlier version
    except (OSError, ValueError, AttributeError):
        return False


def _discard(final: Path) -> None:
    """Take an entry away that lost files, unless another process has just made it again."""
    aside = final.with_name(f".{final.name}.lost.{uuid.uuid4().hex[:8]}")
    with storing(final):
        try:
            final.rename(aside)
        except FileNotFoundError:
            return
    if _is_whole(aside, _sizes_file(final)):
        with suppress(OSError):
            aside.rename(final)
    shutil.rmtree(aside, ignore_errors=True)


def _lock(directory: Path) -> int | None:
    """Lock a directory for as long as this process lives, or None when another one has it."""
    try:
        import fcntl
    except ImportError:  # Windows: what a killed process left is not swept there
        return None
    handle = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        return None
    return handle


def _sweep(final: Path) -> None:
    """Remove what processes that were killed left of an entry: it may be many gigabytes."""
    for left in final.parent.glob(f".{final.name}.*"):
        try:
            lock = _lock(left)
        except OSError:  # its owner has just finished
            continue
        if lock is not None:
            shutil.rmtree(left, ignore_errors=True)
            os.close(lock)


def cached_directory(kind: str, key: Any, make: Callable[[Path], None]) -> Path:
    """Return the finished directory for `key`, making it first if it does not exist."""
    final = cache_root() / kind / digest_json(key).removeprefix("sha256:")[:24]
    if final.is_dir() and not _is_whole(final, _sizes_file(final)):
        _discard(final)
    if not final.is_dir():
        with _unfinished(final) as scratch:
            make(scratch)
    return final
