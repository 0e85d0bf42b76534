"""Column names of a project that are valid in Feast, YAML and rec_ray.

Input: the names in a user's file. Output: the name under which each column is written.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from rec_ray.schema import (
    AS_OF,
    EVENT_ORDER,
    EVENT_TIMESTAMP,
    EVENT_TYPE,
    EVENT_VALUE,
    FIRST_SEEN,
    ITEM_ID,
    RAW_ITEM,
    SIGN_UP,
    USER_ID,
)

RESERVED = {USER_ID, ITEM_ID, EVENT_TIMESTAMP, EVENT_ORDER, EVENT_TYPE, EVENT_VALUE, FIRST_SEEN, AS_OF, SIGN_UP}
"""Names of rec_ray's own columns (in lower case, because DuckDB ignores case)."""
OF_DUCKDB = {"file_row_number", "filename"}
"""Names of columns that DuckDB adds to a file."""
INDEX = re.compile(r"^(__index_level_\d+__|unnamed: ?\d+|level_0|)$", re.IGNORECASE)
"""Names of a pandas index in Parquet and in CSV."""


def is_index(name: str) -> bool:
    """Return True for the name of a data frame's index."""
    return INDEX.match(name.strip()) is not None


def written_names(table: str, names: Iterable[str], taken: Iterable[str]) -> dict[str, str]:
    """Return the name under which each column is written: letters, digits and underscores, unique, not reserved.

    table: users, items or interactions. taken: names that are in use already.
    """
    names = list(names)
    fine = {name for name in names if re.fullmatch(r"\w+", name) and not _is_reserved(name)}
    # Valid names stay; others are changed so that they differ from them.
    used = {name.lower() for name in (*taken, *fine)}
    written: dict[str, str] = {}
    for name in names:
        if name in fine:
            written[name] = name
            continue
        plain = re.sub(r"\W+", "_", name).strip("_") or "column"
        if _is_reserved(plain):
            plain = f"{table.removesuffix('s')}_{plain}"
        unique, number = plain, 2
        while unique.lower() in used:
            unique, number = f"{plain}_{number}", number + 1
        used.add(unique.lower())
        written[name] = unique
    return written


def _is_reserved(name: str) -> bool:
    return name.lower() in RESERVED | OF_DUCKDB or name.lower().startswith((RAW_ITEM, "rec_ray_"))
