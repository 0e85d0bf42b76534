"""Lines about wrong settings: the setting, the expected and the found value, and the place that set it.

Input: the errors of pydantic and the places of overridden settings. Output: one line per fault, without values that may
be secret.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, get_args

from rec_ray.config import SECRETS, Section, Settings
from rec_ray.errors import list_names

Sources = Mapping[tuple[str, ...], str]
"""Keys of an overridden setting -> the variable or option that set it."""

EXPECTED = {
    "greater_than": "a number above {gt:g}",
    "greater_than_equal": "at least {ge:g}",
    "less_than": "a number below {lt:g}",
    "less_than_equal": "at most {le:g}",
    "finite_number": "a finite number",
    "literal_error": "{expected}",
    "too_short": "at least {min_length} entry",
    "too_long": "at most {max_length} entries",
    "string_pattern_mismatch": "a text of the form {pattern}",
    "missing": "a value, which is missing",
    **dict.fromkeys(("bool_type", "bool_parsing"), "true or false"),
    **dict.fromkeys(("int_type", "int_parsing", "int_from_float"), "a whole number"),
    **dict.fromkeys(("float_type", "float_parsing"), "a number"),
    "string_type": "a text; quote it if YAML reads it as a number or a boolean",
    **dict.fromkeys(("list_type", "tuple_type", "set_type"), "a list, such as [a, b]"),
    **dict.fromkeys(("dict_type", "model_type", "dataclass_type", "model_attributes_type"), "a section with settings"),
}
"""Type of a pydantic error -> the expected value; other types keep the message of pydantic."""


def describe_fault(fault: Any, file: str, sources: Sources) -> str:
    """Return the line of one validation error. file: settings file, which set everything that `sources` does not."""
    where = ".".join(str(part) for part in fault["loc"])
    source = _find_source(fault["loc"], file, sources)
    if fault["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        return f"{where}: no such setting{suggest_setting(fault['loc'])} ({source})"
    if fault["type"] in EXPECTED:
        message = f"expected {EXPECTED[fault['type']].format(**fault.get('ctx', {}))}"
    else:
        message = str(fault["msg"]).removeprefix("Value error, ")
    if not where:
        return message
    # A section or an address may contain a misplaced secret.
    hidden = {*SECRETS, ("database", "url"), ("side_tables", "url"), ("storage", "endpoint")}
    if len(fault["loc"]) >= 2 and fault["loc"][:2] not in hidden and not isinstance(fault["input"], dict | list):
        message += f"; got {fault['input']!r}"
    return f"{where}: {message} ({source})"


def _find_source(loc: tuple[str | int, ...], file: str, sources: Sources) -> str:
    """Return the place that set a setting: an override of it or its section, else of a key below it, else the file."""
    keys = tuple(str(part) for part in loc)
    above = [name for name in sources if keys[: len(name)] == name]
    below = [name for name in sources if name[: len(keys)] == keys]
    found = max(above, key=len) if above else below[0] if below else None
    return sources[found] if found else f"in {file}"


def suggest_setting(loc: tuple[str | int, ...]) -> str:
    """Return the setting most similar to a misspelt one, with all its keys, or the known ones."""
    place: Any = Settings
    for key in loc[:-1]:
        is_section = isinstance(place, type) and issubclass(place, Section)
        # Otherwise the annotation is a dictionary or list of sections.
        place = place.model_fields[str(key)].annotation if is_section else get_args(place)[-1]
    names = list(place.model_fields) if issubclass(place, Section) else [field.name for field in fields(place)]
    near = difflib.get_close_matches(str(loc[-1]), names, n=1)
    if not near:
        return f"; known are {list_names(names, limit=20)}"
    return f"; did you mean {'.'.join(map(str, (*loc[:-1], near[0])))}?"
