"""TIFF files through tifffile, which logs what a file lacks and reads on: such files are refused here."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

#: What tifffile logs of pages and data that are not there. Its other warnings also come with whole files.
_LACKING = re.compile(
    r"page offset|offset to (first )?page|corrupted tag list of page|circular reference|no pages|"
    # Of tags only the standard ones: private tags of whole files lead to nowhere too.
    r"TiffTag [23]\d\d @\d+> invalid value offset|out of range|missing (files|\d)|missing data offset|zeroed|"
    r"failed to read (\d|')|incompletely written"
)


class _Listener(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        # Each begins with the object that logs it, such as <tifffile.TiffPages @8>.
        self.said.append(re.sub(r"^<[^>]*> ", "", record.getMessage()))


@contextmanager
def open_tiff(path: Path) -> Iterator[tuple[Any, list[str]]]:
    """Opens a file; gives it and the list of what tifffile logs until the file is closed.

    Raises:
        ValueError: Pages or data are missing, as far as tifffile logs it.
    """
    import tifffile

    listener, logger = _Listener(), logging.getLogger("tifffile")
    logger.addHandler(listener)
    try:
        with tifffile.TiffFile(path) as file:
            yield file, listener.said
    except Exception as error:
        _refuse(path, listener.said, error)
        raise
    finally:
        logger.removeHandler(listener)
    _refuse(path, listener.said)


def _refuse(path: Path, said: list[str], cause: Exception | None = None) -> None:
    lacking = next((text for text in said if _LACKING.search(text)), None)
    if lacking is not None:
        raise ValueError(f"{path} must be a complete TIFF, got {lacking.partition('. Missing')[0]}") from cause


def pixels(file: Any, series: Any, path: Path) -> np.ndarray:
    """The pixels of a series.

    Raises:
        ValueError: A page that differs from the first, or a compression that needs imagecodecs.
    """
    import tifffile

    for page in series:
        # tifffile reads the pages after the first as if they were like it.
        if isinstance(page, tifffile.TiffFrame) and not page.is_virtual and page.parent is file:
            own = page.aspage()
            if (own.shape, own.dtype) != (page.shape, page.dtype):
                raise ValueError(
                    f"{path} must have pages of one shape and dtype, got {own.shape} {own.dtype} on page {page.index} "
                    f"and {page.shape} {page.dtype} on the first"
                )
    try:
        data: np.ndarray = series.asarray()
        return data
    except (ValueError, ImportError) as error:
        if "imagecodecs" not in str(error):
            raise
        how = re.search(r"COMPRESSION\.(\w+)", str(error))
        raise ValueError(
            f"{path} must be a TIFF that can be decompressed here, got {how[1] if how else 'a compression'}, which "
            f"needs pip install imagecodecs"
        ) from error
