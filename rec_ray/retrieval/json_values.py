"""Values that JSON can hold: NaN and infinity become null, because JSON has no such numbers.

Input: nested mappings, lists and numbers. Output: the same values for `json.dumps` with `allow_nan=False`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any


def replace_non_finite(value: Any) -> Any:
    """Return nested mappings, lists and tuples with None in place of NaN and infinity; tuples become lists."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: replace_non_finite(entry) for key, entry in value.items()}
    return [replace_non_finite(entry) for entry in value] if isinstance(value, (list, tuple)) else value
