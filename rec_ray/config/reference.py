"""Reference of the settings, from the sections themselves: description, allowed values, default, variable.

Input: the name of a setting, or nothing. Output: its entry, or the text of docs/configuration.md:

    python -m rec_ray.config.reference > docs/configuration.md
"""

from __future__ import annotations

import difflib
import types
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import SecretStr
from pydantic.fields import FieldInfo

from rec_ray.config import ENV_PREFIX, SECRETS, Section, Settings
from rec_ray.errors import ConfigError
from rec_ray.schema import FeatureDeclaration, Kind


@dataclass(frozen=True)
class Entry:
    """One setting. name: section.key. allowed: the values that it takes, in words. default: as YAML."""

    name: str
    description: str
    allowed: str
    default: str
    variable: str


def find_entry(name: str) -> Entry:
    """Return the entry of a setting.

    Raises:
        ConfigError: there is no such setting; the message names similar ones.
    """
    entries = {entry.name: entry for entry in list_entries()}
    if name in entries:
        return entries[name]
    of_key = [known for known in entries if known.rpartition(".")[2] == name.rpartition(".")[2]]
    near = of_key or difflib.get_close_matches(name, list(entries), n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else "all are listed in docs/configuration.md"
    raise ConfigError(f"there is no setting {name!r}; {hint}")


def list_entries(section: type[Section] = Settings, prefix: str = "") -> Iterator[Entry]:
    """Return the entries of all settings of a section and of the sections in it, in their order."""
    for key, field in section.model_fields.items():
        name = f"{prefix}{key}"
        if is_section(field.annotation):
            yield from list_entries(field.annotation, f"{name}.")  # type: ignore[arg-type]
            continue
        secret = tuple(name.split(".")) in SECRETS
        variable = f"{ENV_PREFIX}{name.replace('.', '__')}".upper() + (" or ..._FILE" if secret else "")
        default = "none" if secret else to_yaml(_plain(field.get_default(call_default_factory=True)))
        yield Entry(name, str(field.description), allowed_values(field), default, variable)


def is_section(annotation: Any) -> bool:
    """Return whether a setting is a section with settings of its own."""
    return isinstance(annotation, type) and issubclass(annotation, Section)


def _plain(value: Any) -> Any:
    if isinstance(value, Section):
        return value.model_dump(mode="json")
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    return value


def to_yaml(value: Any) -> str:
    """Return a value as YAML on one line."""
    text: str = yaml.safe_dump(value, default_flow_style=True, width=10_000, allow_unicode=True)
    return text.strip().removesuffix("...").strip()


def allowed_values(field: FieldInfo) -> str:
    """Return the values that a setting takes, in words, such as `a whole number above 0, or null`."""
    return _in_words(field.annotation, field.metadata)


def _in_words(kind: Any, bounds: Iterable[Any] = ()) -> str:
    origin = get_origin(kind)
    if origin is Annotated:
        inner, *further = get_args(kind)
        nested = [limit for each in further for limit in (each.metadata if isinstance(each, FieldInfo) else [each])]
        return _in_words(inner, [*bounds, *nested])
    if origin in (Union, types.UnionType):
        return ", or ".join(_in_words(each, bounds if each is not type(None) else ()) for each in get_args(kind))
    if origin is Literal:
        *first, last = map(str, get_args(kind))
        return f"{', '.join(first)} or {last}" if first else last
    if origin is tuple:
        return f"[{', '.join(_in_words(each) for each in get_args(kind))}]"
    if origin is list:
        return f"a list of {_in_words(get_args(kind)[0]).removeprefix('a ').replace('text', 'texts', 1)}"
    if origin is dict:
        return f"a mapping, each name to {_in_words(get_args(kind)[1])}"
    if kind is type(None):
        return "null"
    if kind is SecretStr:
        return "a text from the environment or a file"
    if kind is bool:
        return "true or false"
    if kind in (int, float):
        return " ".join(["a whole number" if kind is int else "a number", *_limits(bounds)])
    if kind is FeatureDeclaration:
        return f"{{kind: {_in_words(Kind)}}}"
    return f"{{{', '.join(kind.model_fields)}}}" if is_section(kind) else "a text"


def _limits(bounds: Iterable[Any]) -> list[str]:
    words = {"gt": "above", "ge": "from", "lt": "below", "le": "up to"}
    found = {word: getattr(each, word) for each in bounds for word in words if getattr(each, word, None) is not None}
    said = [f"{words[word]} {value:g}" for word, value in sorted(found.items())]
    return [" and ".join(said)] if said else []


def render_reference() -> str:
    """Return the text of docs/configuration.md."""
    lines = [
        "# Configuration",
        "",
        "All settings of `rec_ray.yaml`, section by section. `make configuration` makes this page from the settings",
        "classes; `rec-ray config explain SECTION.KEY` prints one entry, with its value in a project. A variable",
        "`REC_RAY__SECTION__KEY` overrides the file, and `--set section.key=value` overrides both.",
    ]
    for section, field in Settings.model_fields.items():
        kind = field.annotation
        assert is_section(kind) and kind is not None
        lines += ["", f"## {section}", "", f"{kind.__doc__}", ""]
        lines += ["| setting | values | default | meaning |", "|---|---|---|---|"]
        for entry in list_entries(kind, f"{section}."):  # type: ignore[arg-type]
            cells = (f"`{entry.name}`", entry.allowed, f"`{entry.default}`", entry.description)
            lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(render_reference(), end="")
