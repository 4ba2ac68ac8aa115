"""Symbols to bytes and back by constriction's range coder, under models that learn from what was coded before.

A model is a table of counts, which encoder and decoder keep alike: symbols come in blocks, and after each block its
symbols are counted. All of a model is integer arithmetic. The range coder is handed whole numbers as probabilities.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

#: Probabilities are multiples of one over this.
_TOTAL = 1 << 20
#: How many symbols a context must have seen before it counts for as much as all contexts together.
_TRUST = 12
#: Sizes of the first blocks and of all later ones.
_FIRST, _LAST = 32, 2048


def library() -> Any:
    """Imports the package constriction.

    Raises:
        ImportError: constriction is not installed.
    """
    try:
        import constriction
    except ModuleNotFoundError as missing:
        raise ImportError(
            "files of Gaussians (.gsv) require the package constriction, got none: install splat_ssim with its extra "
            "'codec'"
        ) from missing
    return constriction


class Coder(Protocol):
    """One side of the range coder: what is coded is returned, by the encoder too."""

    def code(self, symbols: np.ndarray | None, frequencies: np.ndarray) -> np.ndarray:
        """Codes symbols (n,) below A by frequencies (n, A) of 1 or more."""

    def uniform(self, symbols: np.ndarray | None, sizes: np.ndarray) -> np.ndarray:
        """Codes symbols (n,), each below its size of 1 or more, all alike probable."""


class Encoder:
    """Codes symbols into bytes."""

    def __init__(self) -> None:
        self._library = library()
        self._coder = self._library.stream.queue.RangeEncoder()

    def code(self, symbols: np.ndarray | None, frequencies: np.ndarray) -> np.ndarray:
        """See `Coder`."""
        assert symbols is not None
        if len(symbols) and frequencies.shape[1] > 1:
            model = self._library.stream.model.Categorical(perfect=False)
            self._coder.encode(symbols.astype(np.int32), model, frequencies.astype(np.float32))
        return symbols

    def uniform(self, symbols: np.ndarray | None, sizes: np.ndarray) -> np.ndarray:
        """See `Coder`."""
        assert symbols is not None
        several = sizes > 1
        if several.any():
            model = self._library.stream.model.Uniform()
            self._coder.encode(symbols[several].astype(np.int32), model, sizes[several].astype(np.int32))
        return symbols

    def finish(self) -> bytes:
        """All that was coded."""
        data: bytes = self._coder.get_compressed().astype("<u4").tobytes()
        return data


class Decoder:
    """Decodes the result of an `Encoder`. Its methods raise a ValueError for bytes that no encoder writes."""

    def __init__(self, content: bytes) -> None:
        self._library = library()
        words = np.frombuffer(content, "<u4").astype(np.uint32)
        self._coder = self._library.stream.queue.RangeDecoder(words)

    def code(self, symbols: np.ndarray | None, frequencies: np.ndarray) -> np.ndarray:
        """See `Coder`."""
        if not len(frequencies) or frequencies.shape[1] == 1:
            return np.zeros(len(frequencies), np.int64)
        return self._decoded(self._library.stream.model.Categorical(perfect=False), frequencies.astype(np.float32))

    def _decoded(self, model: Any, parameters: np.ndarray) -> np.ndarray:
        try:
            symbols: np.ndarray = self._coder.decode(model, parameters).astype(np.int64)
            return symbols
        except AssertionError as error:
            raise ValueError(f"bytes that code Gaussians, got others: {error}") from error

    def uniform(self, symbols: np.ndarray | None, sizes: np.ndarray) -> np.ndarray:
        """See `Coder`."""
        found, several = np.zeros(len(sizes), np.int64), sizes > 1
        if (sizes < 1).any():
            raise ValueError("bytes that code Gaussians, got others: a number that none can be")
        if several.any():
            found[several] = self._decoded(self._library.stream.model.Uniform(), sizes[several].astype(np.int32))
        return found


class Adaptive:
    """Counts of the symbols below `size` in each of some contexts.

    A context's probabilities are its own counts plus `_TRUST` symbols shared out as the counts of all contexts are,
    which in turn are blurred a little, so that neighbouring numbers learn from each other.
    """

    def __init__(self, contexts: int, size: int, *, ordered: bool = True) -> None:
        self.counts = np.zeros((contexts, size), np.int64)
        self.ordered = ordered

    def frequencies(self) -> np.ndarray:
        """(contexts, size) int64, of 1 or more."""
        size = self.counts.shape[1]
        pooled = 64 * self.counts.sum(0) + 8
        if self.ordered and size > 2:
            spread = pooled * 6
            spread[1:] += pooled[:-1]
            spread[:-1] += pooled[1:]
            pooled = spread
        shared = _shares(pooled[None], 1 << 16)[0]
        return _shares(self.counts * (1 << 16) + _TRUST * shared, _TOTAL)

    def code(self, coder: Coder, symbols: np.ndarray | None, contexts: np.ndarray) -> np.ndarray:
        """Codes symbols (n,) in their contexts (n,); the decoder gives None for them. Returns them, int64."""
        found = np.zeros(len(contexts), np.int64)
        at, block = 0, _FIRST
        while at < len(contexts):
            part = slice(at, at + block)
            given = None if symbols is None else symbols[part]
            found[part] = coder.code(given, self.frequencies()[contexts[part]])
            np.add.at(self.counts, (contexts[part], found[part]), 1)
            at, block = at + block, min(2 * block, _LAST)
        return found


def _shares(weights: np.ndarray, total: int) -> np.ndarray:
    """(K, A) whole numbers of 0 or more, none of a row all 0, as about as many parts of `total`, each 1 or more."""
    sums = weights.sum(1, keepdims=True)
    # Weights times total must stay within 63 bits.
    shift = np.maximum(0, np.frexp(sums.astype(np.float64))[1].astype(np.int64) - 41)
    shares: np.ndarray = 1 + (weights >> shift) * total // np.maximum(sums >> shift, 1)
    return shares
