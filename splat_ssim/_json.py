"""JSON that people write."""

from __future__ import annotations

import json
from typing import Any


def parsed(text: str) -> Any:
    """The content of a JSON text, as `json.loads` gives it. A repeated key is refused, of which that keeps the last.

    Raises:
        ValueError: The text is not JSON, or an object has a key twice.

    Example:
        >>> from splat_ssim._json import parsed
        >>> parsed('{"angles": [0, 90]}')
        {'angles': [0, 90]}
    """
    return json.loads(text, object_pairs_hook=_unrepeated)


def _unrepeated(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key {key!r} must be there once, got it twice")
        found[key] = value
    return found
