"""From a settings file, the environment and the command line to one `Settings`.

`load_settings` reads the settings file of a project, lets the environment (`REC_RAY__SECTION__KEY`) and then the
command line (`section.key=value`) override it, and resolves relative paths against the file's folder. It is the only
module that reads the environment; what the settings mean, `config` says.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import ValidationError

from rec_ray.config import ENV_PREFIX, SECRETS, SQLITE_ADDRESS, Section, Settings
from rec_ray.config.legacy_environment import earlier_values, ignored_variables
from rec_ray.errors import ConfigError, listed
from rec_ray.logs import LOGGER

SETTINGS_FILE = "rec_ray.yaml"


def load_settings(path: str | Path, overrides: Sequence[str] = (), environ: Mapping[str, str] = os.environ) -> Settings:
    """Read a settings file; environment variables override it, and `overrides` override those.

    Args:
        path: the settings file; relative paths in it are relative to its folder.
        overrides: `section.key=value`, the value written as in YAML.
        environ: read for `REC_RAY__SECTION__KEY`, for secrets also `REC_RAY__SECTION__KEY_FILE`, for RAY_ADDRESS, and,
            for what the file leaves open, for the variables of the replaced system (`earlier_variables`).
            Features and event types in a variable's name are those of the file in any case, new ones in small letters.

    Raises:
        ConfigError: the file is missing or no YAML, or a key or a value is wrong; all faults are named at once.
    """
    file = Path(path)
    values = _read_yaml(file)
    for section, key in SECRETS:
        if isinstance(values.get(section), dict) and values[section].get(key) is not None:
            name = f"{ENV_PREFIX}{section}__{key}".upper()
            raise ConfigError(f"{file} holds {section}.{key}; set {name} or {name}_FILE instead, never in a file")
    earlier = earlier_values(environ, values)
    for (section, key), value in earlier.items():
        _put(values, [section, key], value, origin="environment")
    if earlier:
        LOGGER.info("taken from variables of the replaced system: %s", ", ".join(map(".".join, sorted(earlier))))
    for name in ignored_variables(environ):
        LOGGER.info("%s is not needed: data comes from the sources that the Feast repository names", name)
    for keys, value in _from_environment(environ):
        _put(values, keys, value, origin="environment")
    for override in overrides:
        name, equals, text = override.partition("=")
        keys = name.split(".")
        if not equals or len(keys) < 2:
            # Never the value: it may be a secret that lacks its section.
            raise ConfigError(f"--set takes section.key=value; got {name + '=...' if equals else name!r}")
        if (keys[0], keys[-1]) in SECRETS:
            raise ConfigError(f"{name} is a secret: set it in the environment, not on the command line")
        _put(values, keys, _parse(text, f"--set {name}"), origin="--set")
    try:
        settings = Settings.model_validate(values)
    except ValidationError as error:
        faults = "\n".join(f"  {_fault(fault)}" for fault in error.errors(include_url=False, include_input=True))
        raise ConfigError(f"{file}: {error.error_count()} wrong setting(s)\n{faults}") from None
    # Not the folder behind a link: a mounted ConfigMap links its files into a folder that changes with each update.
    settings = _absolute(settings, file.absolute().parent)
    address = environ.get("RAY_ADDRESS", "").strip()
    if settings.ray.address is None and address and not address.startswith(("http://", "https://")):
        settings = settings.model_copy(update={"ray": settings.ray.model_copy(update={"address": address})})
    return settings


def _read_yaml(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise ConfigError(
            f"no settings file at {file}; make a project with `rec-ray init DIR` or name one with --config"
        )
    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8"))
    except yaml.MarkedYAMLError as error:
        # Without the line itself, which may hold a secret.
        line = f" in line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ConfigError(f"{file} is not YAML: {error.problem}{line}") from None
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise ConfigError(f"{file} cannot be read as YAML: {error}") from None
    if not isinstance(values, dict | None):
        found = type(values).__name__
        raise ConfigError(f"{file} holds a {found}; expected the sections {listed(Settings.model_fields)}")
    return values or {}


def _from_environment(environ: Mapping[str, str]) -> list[tuple[list[str], Any]]:
    found: list[tuple[list[str], Any]] = []
    for name in sorted(environ):
        if not name.upper().startswith(ENV_PREFIX):
            continue
        keys = name[len(ENV_PREFIX) :].lower().split("__")
        value: Any = environ[name]
        if keys[-1].endswith("_file") and (keys[0], keys[-1].removesuffix("_file")) in SECRETS:
            keys = [*keys[:-1], keys[-1].removesuffix("_file")]
            try:
                value = Path(value).read_text(encoding="utf-8").strip()
            except (OSError, UnicodeDecodeError) as error:
                # Without the value: who mistakes the variable puts the secret itself there.
                reason = getattr(error, "strerror", None) or "it is no text"
                raise ConfigError(f"the file that {name} names cannot be read: {reason}") from None
        elif (keys[0], keys[-1]) not in SECRETS:
            value = _parse(value, name)
        elif not value:
            continue
        found.append((keys, value))
    return found


def _parse(text: str, name: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        raise ConfigError(f"the value of {name} is not YAML; put a text with special characters in quotes") from None


def _put(values: dict[str, Any], keys: list[str], value: Any, *, origin: str) -> None:
    place: Any = values
    for depth, key in enumerate(keys):
        if not isinstance(place, dict):
            raise ConfigError(f"{origin}: {'.'.join(keys)} goes below {keys[depth - 1]!r}, which is no section")
        if origin == "environment":
            key = next((name for name in place if str(name).lower() == key), key)
        if depth == len(keys) - 1:
            place[key] = value
        elif place.get(key) is None:
            place[key] = {}
        place = place[key]


def _fault(fault: Any) -> str:
    where = ".".join(str(part) for part in fault["loc"])
    if fault["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        return f"{where}: no such setting{_known(fault['loc'])}"
    message = str(fault["msg"]).removeprefix("Value error, ")
    if not where:
        return message
    # A whole section, or an address, may hold a secret where it should not be.
    hidden = {*SECRETS, ("database", "url"), ("side_tables", "url"), ("storage", "endpoint")}
    if len(fault["loc"]) < 2 or fault["loc"][:2] in hidden or isinstance(fault["input"], dict | list):
        return f"{where}: {message}"
    return f"{where}: {message}; got {fault['input']!r}"


def _known(loc: tuple[str | int, ...]) -> str:
    """Return the nearest known names beside a misspelt one."""
    place: Any = Settings
    for key in loc[:-1]:
        is_section = isinstance(place, type) and issubclass(place, Section)
        # Else it is a dictionary of them.
        place = place.model_fields[str(key)].annotation if is_section else get_args(place)[-1]
    names = list(place.model_fields) if issubclass(place, Section) else [field.name for field in fields(place)]
    near = difflib.get_close_matches(str(loc[-1]), names, n=1)
    return f"; did you mean {near[0]!r}?" if near else f"; known are {listed(names, limit=20)}"


def _absolute(settings: Settings, folder: Path) -> Settings:
    """Resolve the relative paths of the settings against the folder of their file."""

    def path(text: str) -> str:
        return text if "://" in text else str((folder / text).resolve())

    def address(url: str) -> str:
        sqlite = SQLITE_ADDRESS.match(url)
        return sqlite[0] + path(url.removeprefix(sqlite[0])) if sqlite else url

    def changed(section: Section, **paths: str | None) -> Section:
        # Only what differs: what a copy was told counts as set, and the rest is left out where settings are shown.
        return section.model_copy(update={name: at for name, at in paths.items() if at != getattr(section, name)})

    def model(encoder: str) -> str:
        kind, _, name = encoder.partition(":")
        return f"{kind}:{path(name)}" if name.startswith(("./", "../")) else encoder

    storage, side_tables, search = settings.storage, settings.side_tables, settings.search
    return settings.model_copy(
        update={
            "features": changed(settings.features, text_encoder=model(settings.features.text_encoder)),
            "search": changed(
                search,
                text_encoder=search.text_encoder and model(search.text_encoder),
                image_encoder=search.image_encoder and model(search.image_encoder),
            ),
            "feast": changed(settings.feast, repo=path(settings.feast.repo)),
            "storage": changed(storage, url=path(storage.url), ca_bundle=storage.ca_bundle and path(storage.ca_bundle)),
            "database": changed(settings.database, url=address(settings.database.url)),
            "side_tables": changed(side_tables, url=side_tables.url and address(side_tables.url)),
        }
    )
