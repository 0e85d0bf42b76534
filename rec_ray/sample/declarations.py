"""Declares the features of a new project from the types and values of its tables, with a reason for each column.

Input: a written table of the project. Output: feature declarations and notes for `rec_ray.yaml`, which the user can
correct; a run reads only that file and infers nothing.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import duckdb
import pyarrow as pa

from rec_ray.data.event_notes import NEGATIVE_WORDS, sounds_negative
from rec_ray.sample.event_values import propose_values
from rec_ray.sample.own_tables import LEFT_OUT, PLACEHOLDER, TYPE, VALUE, Decision
from rec_ray.sample.survey import fetch_one, query_table, quoted
from rec_ray.sample.tables import WrittenTable
from rec_ray.schema import EVENT_TIMESTAMP, ITEM_ID, USER_ID, FeatureDeclaration

SEPARATOR = "|"
SEPARATED_SHARE = 0.1
"""Minimum share of values with a separator from which a string column has several values per row."""
FEW = 0.2
"""A string column with a smaller share of distinct values is categorical, with or without spaces."""
UNIQUE = 0.9
VALUES = 100_000
"""Number of most frequent distinct event values that are examined."""
SMALL = 20
"""Minimum number of values from which a column can be called unique."""
SENTENCE = 60
"""Mean length from which a string column with spaces is text even if it contains separators."""
PATH_NAMES = ("categor", "path", "taxonom", "breadcrumb", "hierarch", "department")
ITEM_NAMES = ("product_name", "item_name", "name", "title")
CODE = re.compile(r"(^|_)(id|code|ean|gtin|isbn|upc|barcode|zip|zipcode|postcode|plz|sku|phone)$")
"""Name endings of whole numbers that are codes instead of quantities."""
LINK = r"^((https?:)?//|www\.|/)\S*$|^\S+\.(png|jpe?g|gif|webp|svg)$"
_IGNORED = {USER_ID, ITEM_ID, EVENT_TIMESTAMP, PLACEHOLDER}


@dataclass(frozen=True)
class Declared:
    """Features of a table by name, and the decision on each of its columns, also as lines."""

    features: dict[str, FeatureDeclaration] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    decisions: list[Decision] = field(default_factory=list)


def declare_features(table: WrittenTable) -> Declared:
    """Declare the columns of a users or items table as features, or leave them out."""
    declared = Declared(notes=list(table.notes))
    with query_table(table.path) as connection:
        for column in table.schema:
            if column.name in _IGNORED:
                continue
            kind, why = _decide(connection, column)
            if kind is not None:
                declared.features[column.name] = kind
            decision = Decision(table.name, column.name, LEFT_OUT if kind is None else kind.kind, why)
            declared.decisions.append(decision)
            declared.notes.append(str(decision))
    return declared


def _decide(connection: duckdb.DuckDBPyConnection, column: pa.Field) -> tuple[FeatureDeclaration | None, str]:
    name, kind = quoted(column.name), column.type
    rows, present, constant = fetch_one(connection, f"SELECT count(*), count({name}), min({name}) = max({name}) FROM t")
    if not present:
        return None, "every value is null"
    if constant and present == rows:
        return None, "constant"
    if pa.types.is_boolean(kind):
        return FeatureDeclaration("categorical"), "true or false"
    if pa.types.is_timestamp(kind):
        return FeatureDeclaration("timestamp"), "a timestamp"
    if pa.types.is_integer(kind) and CODE.search(column.name.lower()):
        distinct = fetch_one(connection, f"SELECT count(DISTINCT {name}) FROM t")[0]
        if distinct > UNIQUE * present and present >= SMALL:
            return None, "a number that is an id, distinct in nearly every row"
        return FeatureDeclaration("categorical"), "a number whose name is that of an id"
    if pa.types.is_integer(kind) or pa.types.is_floating(kind):
        return FeatureDeclaration("numeric"), "a number"
    if pa.types.is_list(kind):
        return _decide_list(connection, name, kind)
    return _decide_string(connection, column.name, present)


def _decide_list(
    connection: duckdb.DuckDBPyConnection, name: str, kind: pa.DataType
) -> tuple[FeatureDeclaration | None, str]:
    if not pa.types.is_floating(kind.value_type):
        return FeatureDeclaration("categories"), "a list"
    short, long = fetch_one(connection, f"SELECT min(len({name})), max(len({name})) FROM t")
    if short != long or not long:
        return None, f"lists of {short} to {long} numbers; a vector has one length"
    return FeatureDeclaration("vector", length=int(long)), f"lists of {long} numbers each"


def _decide_string(
    connection: duckdb.DuckDBPyConnection, column: str, present: int
) -> tuple[FeatureDeclaration | None, str]:
    name = quoted(column)
    distinct, links, spaced, separated, length = fetch_one(
        connection,
        f"SELECT count(DISTINCT {name}), avg(regexp_matches(lower({name}), '{LINK}')::INT), "
        f"avg(contains({name}, ' ')::INT), avg(contains({name}, '{SEPARATOR}')::INT), avg(length({name})) FROM t",
    )
    if links > 0.5:
        return None, "links"
    sentences = spaced > 0.5 and length >= SENTENCE
    if separated >= SEPARATED_SHARE and not sentences:
        return _decide_separated(connection, column, separated)
    if distinct <= FEW * present:
        return FeatureDeclaration("categorical"), f"{distinct:,} values in {present:,} rows"
    if spaced > 0.5:
        return FeatureDeclaration("text"), "words with spaces between them"
    if distinct > UNIQUE * present and present >= SMALL:
        return None, "a distinct value in nearly every row, like an id"
    return FeatureDeclaration("categorical"), f"{distinct:,} values in {present:,} rows"


def _decide_separated(
    connection: duckdb.DuckDBPyConnection, column: str, separated: float
) -> tuple[FeatureDeclaration | None, str]:
    """Distinguish paths from sets: a path begins with one of few words, a set with any of its values."""
    name = quoted(column)
    first, parts, total = fetch_one(
        connection,
        f"SELECT count(DISTINCT p[1]), count(DISTINCT e), count(e) FROM "
        f"(SELECT p, unnest(p) AS e FROM (SELECT string_split({name}, '{SEPARATOR}') AS p FROM t))",
    )
    why = f"{separated:.0%} of the values contain {SEPARATOR!r}"
    if parts > UNIQUE * total and total >= SMALL:
        return None, f"{why}, and nearly every part is distinct"
    if any(hint in column.lower() for hint in PATH_NAMES):
        return FeatureDeclaration("category_path", separator=SEPARATOR), f"{why}, and the name suggests a path"
    if first <= 0.5 * parts:
        return FeatureDeclaration("category_path", separator=SEPARATOR), f"{why}, with few distinct first parts"
    return FeatureDeclaration("categories", separator=SEPARATOR), f"{why}, not ordered from general to special"


def declare_interactions(
    table: WrittenTable, type_column: str | None = TYPE, value_column: str | None = VALUE, *, use_value: bool = False
) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the settings of `features.interaction` and notes by their keys; missing columns are ignored.

    use_value: True if the user named the value column, which is then used in any case.
    """
    settings: dict[str, Any] = {"type_field": None, "value_field": None, "negative_types": []}
    notes: dict[str, str] = {}
    kinds = {column.name: column.type for column in table.schema}
    if type_column is not None and pa.types.is_string(kinds.get(type_column, pa.null())):
        counts = _most_frequent(table, type_column, 1000)
        settings["type_field"] = type_column
        shown = ", ".join(f"{name} {count:,}" for name, count in counts[:20])
        notes["type_field"] = f"Events of each type: {shown}" + (" and more." if len(counts) > 20 else ".")
        settings["negative_types"] = [name for name, _ in counts if sounds_negative(name)]
        negative = ", ".join(settings["negative_types"])
        which = f"Negative types by their names: {negative}" if negative else "No type has a name that sounds negative"
        notes["negative_types"] = f"{which} ({', '.join(NEGATIVE_WORDS)})."
    kind = kinds.get(value_column or "", pa.null())
    if value_column is not None and (pa.types.is_floating(kind) or pa.types.is_integer(kind)):
        proposal = propose_values(value_column, dict(_most_frequent(table, value_column, VALUES)))
        if proposal.use or use_value:
            settings["value_field"] = value_column
            settings["min_positive_value"] = proposal.min_positive_value
        notes["value_field"] = f"{proposal.reason}." + (" It is used anyway." if use_value > proposal.use else "")
    if table.notes:
        notes["type_field"] = "\n".join([*table.notes, *([notes["type_field"]] if "type_field" in notes else [])])
    return settings, notes


def _most_frequent(table: WrittenTable, column: str, limit: int) -> list[tuple[Any, int]]:
    """Return the values of a column with their counts, the most frequent first, without null and NaN."""
    name = quoted(column)
    with query_table(table.path) as connection:
        rows = connection.execute(
            f"SELECT {name}, count(*) AS n FROM t WHERE {name} IS NOT NULL AND {name}::VARCHAR <> 'nan' "
            f"GROUP BY {name} ORDER BY n DESC, {name} LIMIT {limit}"
        ).fetchall()
    return [(value, int(count)) for value, count in rows]


def name_of_items(table: WrittenTable) -> str | None:
    """Return the display name field of items, if a column has a common name for it."""
    strings = [column.name for column in table.schema if pa.types.is_string(column.type)]
    return next((name for name in ITEM_NAMES if name in strings), None)
