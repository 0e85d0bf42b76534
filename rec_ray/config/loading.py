"""Loading of the settings from a file, the environment and the command line.

`load_settings` reads the settings file of a project, overrides it with the environment (`REC_RAY__SECTION__KEY`) and
then with the command line (`section.key=value`), and resolves relative paths against the folder of the file. The
sections of `config` declare the settings.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from rec_ray.config import ENV_PREFIX, SECRETS, SQLITE_ADDRESS, Section, Settings
from rec_ray.config.faults import describe_fault
from rec_ray.config.features import AUTO
from rec_ray.config.legacy_environment import earlier_values, ignored_variables
from rec_ray.errors import ConfigError, list_names
from rec_ray.logs import LOGGER

SETTINGS_FILE = "rec_ray.yaml"


def load_settings(path: str | Path, overrides: Sequence[str] = (), environ: Mapping[str, str] = os.environ) -> Settings:
    """Load the settings from a file; environment variables override it, and `overrides` override those.

    Args:
        path: settings file; relative paths in it are relative to its folder.
        overrides: `section.key=value`, with the value in YAML.
        environ: source of `REC_RAY__SECTION__KEY`, of `REC_RAY__SECTION__KEY_FILE` for secrets, of RAY_ADDRESS and, for
            settings that the file omits, of the variables of the replaced system (`legacy_environment`). Names of
            features and event types in a variable match those of the file in any case; new ones are taken in lower
            case.

    Raises:
        ConfigError: the file is missing or not YAML, or keys or values are wrong; the message lists all faults.
    """
    file = Path(path)
    values = _read_yaml(file)
    if values.get("features") == AUTO:
        values["features"] = {"auto": True}  # a section, which variables and --set may change
    for section, key in SECRETS:
        if isinstance(values.get(section), dict) and values[section].get(key) is not None:
            name = f"{ENV_PREFIX}{section}__{key}".upper()
            raise ConfigError(f"{file} contains the secret {section}.{key}; set {name} or {name}_FILE instead")
    earlier = earlier_values(environ, values)
    sources: dict[tuple[str, ...], str] = {}
    for names, setting in earlier.items():
        sources[_put(values, list(names), setting, origin="environment")] = "from variables of the replaced system"
    if earlier:
        LOGGER.info("settings from variables of the replaced system: %s", ", ".join(map(".".join, sorted(earlier))))
    for name in ignored_variables(environ):
        LOGGER.info("%s is ignored: the Feast repository names the sources of the data", name)
    for variable, keys, value in _from_environment(environ):
        sources[_put(values, keys, value, origin="environment")] = f"from the variable {variable}"
    for override in overrides:
        name, equals, text = override.partition("=")
        keys = name.split(".")
        if not equals or len(keys) < 2:
            # The value stays out of the message: it may be a secret that lacks its section.
            raise ConfigError(
                f"--set takes section.key=value; got {name + '=...' if equals else name!r}{_sections_with(name)}"
            )
        if (keys[0], keys[-1]) in SECRETS:
            raise ConfigError(f"{name} is a secret: set it in the environment, not on the command line")
        sources[_put(values, keys, _parse(text, f"--set {name}"), origin="--set")] = "from --set"
    try:
        settings = Settings.model_validate(values)
    except ValidationError as error:
        found = error.errors(include_url=False, include_input=True)
        faults = "\n".join(f"  {describe_fault(fault, str(file), sources)}" for fault in found)
        raise ConfigError(f"{len(found)} wrong setting(s)\n{faults}") from None
    # Links stay unresolved: a mounted ConfigMap links its files into a folder that changes with each update.
    settings = _resolve_paths(settings, file.absolute().parent)
    address = environ.get("RAY_ADDRESS", "").strip()
    if settings.ray.address is None and address and not address.startswith(("http://", "https://")):
        settings = settings.model_copy(update={"ray": settings.ray.model_copy(update={"address": address})})
    return settings


def _read_yaml(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise ConfigError(
            f"no settings file at {file}; make a project with `rec-ray init DIR` or pass the file with --config"
        )
    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8"))
    except yaml.MarkedYAMLError as error:
        # The line itself stays out of the message: it may contain a secret.
        line = f" in line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ConfigError(f"{file} is not YAML: {error.problem}{line}") from None
    except RecursionError:
        raise ConfigError(f"{file} cannot be read as YAML: it is nested too deeply") from None
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise ConfigError(f"{file} cannot be read as YAML: {error}") from None
    if not isinstance(values, dict | None):
        found = type(values).__name__
        raise ConfigError(f"{file} contains a {found}; expected the sections {list_names(Settings.model_fields)}")
    return values or {}


def _sections_with(name: str) -> str:
    """Return a suggestion for a key without its section: the settings of that name."""
    known = [
        f"{section}.{name}" for section, field in Settings.model_fields.items() if name in _keys_of(field.annotation)
    ]
    return f"; did you mean {' or '.join(known)}?" if known else ""


def _keys_of(section: Any) -> Mapping[str, Any]:
    keys: Mapping[str, Any] = section.model_fields
    return keys


def _from_environment(environ: Mapping[str, str]) -> list[tuple[str, list[str], Any]]:
    """Return the variable, the keys and the value of each setting in the environment."""
    found: list[tuple[str, list[str], Any]] = []
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
                # The value stays out of the message: it may be the secret itself instead of a file name.
                reason = getattr(error, "strerror", None) or "it is not text"
                raise ConfigError(f"the file in {name} cannot be read: {reason}") from None
        elif (keys[0], keys[-1]) not in SECRETS:
            value = _parse(value, name)
        elif not value:
            continue
        found.append((name, keys, value))
    return found


def _parse(text: str, name: str) -> Any:
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError):
        raise ConfigError(f"the value of {name} is not YAML; quote text with special characters") from None


def _put(values: dict[str, Any], keys: list[str], value: Any, *, origin: str) -> tuple[str, ...]:
    """Set a value and return its keys as the file writes them."""
    place: Any = values
    written: list[str] = []
    for depth, key in enumerate(keys):
        if not isinstance(place, dict):
            raise ConfigError(f"{origin}: {'.'.join(keys)} is below {keys[depth - 1]!r}, which is not a section")
        if origin == "environment":
            key = next((name for name in place if str(name).lower() == key), key)
        written.append(str(key))
        if depth == len(keys) - 1:
            place[key] = value
        elif place.get(key) is None:
            place[key] = {}
        place = place[key]
    return tuple(written)


def _resolve_paths(settings: Settings, folder: Path) -> Settings:
    """Resolve the relative paths of the settings against the folder of their file."""

    def path(text: str) -> str:
        return text if "://" in text else str((folder / text).resolve())

    def address(url: str) -> str:
        sqlite = SQLITE_ADDRESS.match(url)
        return sqlite[0] + path(url.removeprefix(sqlite[0])) if sqlite else url

    def changed(section: Section, **paths: str | None) -> Section:
        # Update only changed values: an updated value counts as set, and settings are shown without unset ones.
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
