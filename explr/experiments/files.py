"""Writing files whole or not at all, knowing a damaged one, and one process at a time."""

from __future__ import annotations

import hashlib
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, BinaryIO

from explr.errors import ExplrError, needs

if sys.platform != "win32":
    import fcntl

with needs("experiments"):
    import filelock

Lock = filelock.BaseFileLock
_PART = ".explr-part"  # a name of our own, for all that has it and no living writer is deleted
_DIGEST, _HEX = b"sha256:", 64


@contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """Yield a file beside ``path`` to write to; it takes the place of ``path`` when the block ends without error.

    A process that is killed on the way leaves its part of a file; the next one that writes in that folder deletes it.

    Raises:
        ExplrError: if the file cannot be written, because the disk is full say. What was at ``path`` is as it was.

    >>> import tempfile
    >>> target = Path(tempfile.mkdtemp()) / "record.txt"
    >>> with atomic_write(target) as file:
    ...     _ = file.write(b"whole")
    >>> target.read_text()
    'whole'
    """
    part = path.with_name(f".{path.name}-{os.getpid()}{_PART}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        delete_parts(path.parent)
        try:
            with _begin(part) as file:
                yield file
                file.flush()
                os.fsync(file.fileno())  # some disks say only now that they are full
                _give_up_on_windows(file)
                part.replace(path)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        raise ExplrError(
            f"{path} cannot be written ({error}): what was there is as it was. Make room, or see to it that the folder can be "
            "written to, and start again: a run goes on from its checkpoint."
        ) from error


def delete_parts(folder: Path) -> None:
    """Delete what killed processes have left of files in ``folder``; what a living one is writing stays."""
    for part in folder.glob(f".*{_PART}"):
        with suppress(OSError), part.open("rb") as file:  # it is being written, or another process deletes it
            _hold(file, wait=False)
            _give_up_on_windows(file)
            part.unlink()


def _begin(part: Path) -> BinaryIO:
    while True:
        file = part.open("wb")
        with suppress(OSError):  # where files cannot be locked, no part is ever deleted
            _hold(file, wait=True)
        if os.fstat(file.fileno()).st_nlink:
            return file
        file.close()  # another process has taken it for a dead one's before it was locked


def _hold(file: IO[bytes], *, wait: bool) -> None:
    """Lock a file for as long as it is open; the system frees a dead process's locks."""
    if sys.platform != "win32":
        fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)


def _give_up_on_windows(file: IO[bytes]) -> None:
    """Close a file where one that is open can be neither renamed nor deleted, which does the work of the lock."""
    if sys.platform == "win32":
        file.close()


def sealed(content: bytes) -> bytes:
    """Return ``content`` and its digest behind it, where torch.load does not look."""
    return content + _seal(content)


def _seal(content: bytes) -> bytes:
    return _DIGEST + hashlib.sha256(content).hexdigest().encode()


def unsealed(content: bytes) -> bytes:
    """Return what :func:`sealed` was given; a torch file that was never sealed comes back as it is.

    Raises:
        ValueError: if a byte of it has changed.

    >>> unsealed(sealed(b"some bytes"))
    b'some bytes'
    """
    if content[-22:-18] == b"PK\5\6":  # the end of a torch file, which is a zip file: written before there were digests
        return content
    end = len(content) - len(_DIGEST) - _HEX
    body = content[:end]
    if end < 0 or content[end:] != _seal(body):
        raise ValueError("its bytes do not give the digest it ends with")
    return body


def try_lock(path: Path) -> Lock | None:
    """Return a lock that this process now holds, or None if another one holds it; the system frees a dead process's locks.

    Raises:
        ExplrError: if there can be no file.
    """
    lock = filelock.FileLock(path, thread_local=False)  # a generator may be resumed in another thread
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(blocking=False)
    except filelock.Timeout:
        return None
    except OSError as error:
        raise ExplrError(
            f"{path} cannot be made ({error}): name another folder, or see to it that it can be written to."
        ) from error
    return lock


@contextmanager
def one_at_a_time(path: Path) -> Iterator[None]:
    """Wait until no other process is in such a block for ``path``, a file that is there only as long as one is."""
    while (lock := try_lock(path)) is None:
        time.sleep(0.1)
    try:
        yield
    finally:
        release(lock)


def release(lock: Lock) -> None:
    """Give back what :func:`try_lock` gave, and leave no file behind."""
    Path(lock.lock_file).unlink(missing_ok=True)  # while it is held: whoever opens the name next makes a new file
    lock.release()
