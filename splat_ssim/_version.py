"""The version of this source, which pyproject.toml reads."""

__version__ = "0.2.0"
