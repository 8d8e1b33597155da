"""The one exception of the library."""

from collections.abc import Iterator
from contextlib import contextmanager


class ExplrError(ValueError):
    """A value that explr cannot work with; the message restates it and says what to do."""


@contextmanager
def needs(extra: str) -> Iterator[None]:
    """Where an import of a package fails, say which extra of explr brings it.

    >>> with needs("experiments"):
    ...     import no_package
    Traceback (most recent call last):
    explr.errors.ExplrError: no_package is not installed: pip install '.[experiments]' in a checkout of explr brings it.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise ExplrError(
            f"{error.name} is not installed: pip install '.[{extra}]' in a checkout of explr brings it."
        ) from error
