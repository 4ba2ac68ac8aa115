"""A codec of volumes: Gaussians fitted, rounded and entropy coded into one file, `.gsv`."""

from __future__ import annotations

from .compress import Compressed, compress_volume
from .container import Packed, load_packed

__all__ = ["Compressed", "Packed", "compress_volume", "load_packed"]
