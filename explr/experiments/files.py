"""Writing files whole or not at all, and one process at a time."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from explr.errors import needs

with needs("experiments"):
    import filelock

Lock = filelock.BaseFileLock


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path`` to write to; it takes the place of ``path`` when the block ends without error.

    >>> import tempfile
    >>> target = Path(tempfile.mkdtemp()) / "record.txt"
    >>> with atomic_write(target) as temporary:
    ...     _ = temporary.write_text("whole")
    >>> target.read_text()
    'whole'
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # with a suffix in any case: torch.save takes what lies after the last dot away, and a name has to be left
    temporary = path.with_name(f".{path.stem}-{os.getpid()}{path.suffix or '.tmp'}")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def try_lock(path: Path) -> Lock | None:
    """Return a lock that this process now holds, or None if another one holds it; the system frees a dead process's locks."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(path, thread_local=False)  # a generator may be resumed in another thread
    try:
        lock.acquire(blocking=False)
    except filelock.Timeout:
        return None
    return lock


def release(lock: Lock) -> None:
    """Give back what :func:`try_lock` gave, and leave no file behind."""
    Path(lock.lock_file).unlink(missing_ok=True)  # while it is held: whoever opens the name next makes a new file
    lock.release()
