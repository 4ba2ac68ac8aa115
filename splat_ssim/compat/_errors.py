"""Errors that are what the original raises and what a caller's mistake is here."""


class UnsupportedOptionError(NotImplementedError, ValueError):
    """An option whose value the original refuses by NotImplementedError."""


class RefusedValueError(AssertionError, ValueError):
    """A value that the original refuses by an assertion."""


class RefusedRuntimeError(RuntimeError, ValueError):
    """A value that the original refuses by a RuntimeError, of its own or of a torch operation in it."""


class RefusedTypeError(AttributeError, TypeError):
    """What is no tensor: the original fails by reading an attribute that it lacks."""


class RefusedZeroDivisionError(ZeroDivisionError, ValueError):
    """A value by which the original divides by zero."""
