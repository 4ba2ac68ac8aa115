"""Errors of two types at once: the type that the original raises, and the one that this package uses for mistakes."""


class UnsupportedOptionError(NotImplementedError, ValueError):
    """The original refuses the option's value with a NotImplementedError."""


class RefusedValueError(AssertionError, ValueError):
    """The original refuses the value with an assertion."""


class RefusedRuntimeError(RuntimeError, ValueError):
    """The original refuses the value with a RuntimeError, its own or that of a torch operation."""


class RefusedDtypeError(NotImplementedError, TypeError):
    """torch refuses the dtype in the original, with a RuntimeError, or with the NotImplementedError that is one."""


class RefusedTypeError(AttributeError, TypeError):
    """The value is not a tensor. The original fails when it reads an attribute that the value lacks."""


class RefusedZeroDivisionError(ZeroDivisionError, ValueError):
    """With this value, the original divides by zero."""
