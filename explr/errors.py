"""The one exception of the library."""


class ExplrError(ValueError):
    """A value that explr cannot work with; the message restates it and says what to do."""
