"""Environment variables of the system that rec_ray replaces, read as settings.

Input: the variables and the values of the settings file. Output: settings that the file omits; the file and
`REC_RAY__...` variables have precedence. The variables count only if one that is specific to that system is set,
because names such as DATABASE_URL and REGION are common elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rec_ray.config import SQLITE_ADDRESS
from rec_ray.errors import ConfigError

MARKS = ("MINIO_HOST", "FEAST_PROJECT_NAME", "FEAST_REGISTRY_URL")
"""Variables that only the replaced system has; if one is set, its other variables are read too."""
NOT_NEEDED = ("DATASET_URL",)
"""Variables that are ignored, because the Feast repository names the data sources."""
BUCKET = "s3://user-encoder/rec_ray"
"""Prefix in the bucket of the replaced system, separate from its own objects."""
NEGATIVE_TYPES = ["negative_view"]
"""Event types of the replaced system that express no interest; more than half of its example events have this type."""

Values = dict[tuple[str, ...], Any]


def earlier_values(environ: Mapping[str, str], file: Mapping[str, Any]) -> Values:
    """Return (section, ..., key) -> value for the settings that the file omits.

    Raises:
        ConfigError: the address of the database or of MinIO is invalid; the message omits it, as it may be secret.
    """
    given = {name: value.strip() for name, value in environ.items() if value.strip()}
    if not any(name in given for name in MARKS):
        return {}
    found = _storage(given) if _of(file, "storage", "url", "s3://").startswith("s3://") else {}
    if not SQLITE_ADDRESS.match(_of(file, "database", "url", "")):
        found |= _database(given)
    found["features", "interaction", "negative_types"] = list(NEGATIVE_TYPES)
    # Its pipeline materialised the features of products, and no other job does.
    found["publish", "materialize"] = "auto"
    if ("storage", "url") in found:
        found["publish", "legacy_user_encoder"] = True
    return {keys: value for keys, value in found.items() if _value(file, *keys) in (None, "")}


def ignored_variables(environ: Mapping[str, str]) -> list[str]:
    """Return the variables of the replaced system that are set but have no use here."""
    return [name for name in NOT_NEEDED if environ.get(name, "").strip() and any(mark in environ for mark in MARKS)]


def _of(file: Mapping[str, Any], section: str, key: str, default: str) -> str:
    value = _value(file, section, key)
    return default if value is None else str(value)


def _value(file: Mapping[str, Any], *keys: str) -> Any:
    """Return a value of the settings file, or None if the file omits it."""
    place: Any = file
    for key in keys:
        place = place.get(key) if isinstance(place, Mapping) else None
    return place


def _storage(given: Mapping[str, str]) -> Values:
    """Return the settings of MinIO; the defaults are port 9000 and no TLS."""
    if "MINIO_HOST" not in given:
        return {}
    secure = given.get("MINIO_SECURE", "false").lower() in ("true", "1", "yes", "on")
    scheme, _, host = given["MINIO_HOST"].rpartition("://")
    host, _, port_of_host = host.rstrip("/").partition(":")
    port = _port(given, "MINIO_PORT", port_of_host or "9000")
    found: Values = {
        ("storage", "url"): BUCKET,
        ("storage", "endpoint"): f"{scheme or ('https' if secure else 'http')}://{host}:{port}",
    }
    for name, key in (("MINIO_ACCESS_KEY", "access_key"), ("MINIO_SECRET_KEY", "secret_key"), ("REGION", "region")):
        if name in given:
            found["storage", key] = given[name]
    return found


def _port(given: Mapping[str, str], name: str, default: str) -> str:
    """Return a port; Kubernetes sets MINIO_PORT=tcp://10.0.0.7:9000 if a service has the name minio."""
    port = given.get(name, default)
    port = port.rpartition(":")[2] if port.startswith("tcp://") else port
    if not port.isdecimal():
        raise ConfigError(f"{name} is wrong; expected a number")
    return port


def _database(given: Mapping[str, str]) -> Values:
    """Return the address and the password of the database, which also contains the side tables."""
    from sqlalchemy.engine import URL, make_url
    from sqlalchemy.exc import ArgumentError

    text = given.get("DATABASE_URL") or given.get("uri")
    try:
        if text:
            url = make_url(text)
        elif "DB_HOST" in given:
            url = URL.create(
                "postgresql",
                username=given.get("DB_USER"),
                host=given["DB_HOST"],
                port=int(_port(given, "DB_PORT", "5432")),
                database=given.get("DB_NAME"),
            )
        else:
            return {}
    except (ArgumentError, ValueError):
        which = "DATABASE_URL" if given.get("DATABASE_URL") else "uri"
        raise ConfigError(f"{which} is wrong; a database is postgresql://USER:PASSWORD@HOST:5432/NAME") from None
    # psycopg 3 is the driver installed with rec_ray; the replaced system may use another one.
    driver = "postgresql+psycopg" if url.get_backend_name() in ("postgresql", "postgres") else url.drivername
    password = url.password or given.get("DB_PASSWORD")
    bare = URL.create(driver, url.username, None, url.host, url.port, url.database, url.query)
    address = bare.render_as_string(hide_password=False)
    found: Values = {("database", "url"): address, ("side_tables", "url"): address}
    if password:
        found |= {("database", "password"): str(password), ("side_tables", "password"): str(password)}
    return found
