"""The progress bar of everything that takes long; the environment variable TQDM_DISABLE hides it."""

from __future__ import annotations

import os
from typing import Any

from explr.errors import needs

with needs("experiments"):
    from tqdm.auto import tqdm


def progress(*args: Any, **options: Any) -> Any:
    """Return a bar that leaves nothing behind (tqdm's own notebook bar takes no notice of TQDM_DISABLE)."""
    return tqdm(*args, leave=False, disable=bool(os.environ.get("TQDM_DISABLE")), **options)
