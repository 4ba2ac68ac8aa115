"""Errors that are what the original raises and what a caller's mistake is here."""


class UnsupportedOptionError(NotImplementedError, ValueError):
    """An option whose value the original refuses by NotImplementedError."""


class RefusedValueError(AssertionError, ValueError):
    """A value that the original refuses by an assertion."""
