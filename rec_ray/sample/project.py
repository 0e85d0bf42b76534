"""Creates a project folder: settings, data and an applied Feast repository.

Input: a folder and, optionally, a folder with the user's own tables; the default is the sample shop. Output: the
project and a summary of it.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rec_ray.config.loading import SETTINGS_FILE
from rec_ray.config.template import render_settings
from rec_ray.errors import ConfigError, list_names
from rec_ray.sample import shop
from rec_ray.sample.declarations import declare_features, declare_interactions, name_of_items
from rec_ray.sample.feature_repo import apply_feature_repo, write_feature_repo
from rec_ray.sample.own_tables import Decision, OwnTables, read_own_tables
from rec_ray.sample.roles import ColumnNames, Prompt
from rec_ray.sample.row_dates import check_event_times, describe_ids, write_dated
from rec_ray.sample.survey import (
    count_distinct,
    earliest_time,
    query_table,
    quoted,
    share_of_newcomers,
    share_of_repeats,
)
from rec_ray.sample.tables import WrittenTable, write_batches, write_ids, write_own_table
from rec_ray.schema import ITEM_ID, USER_ID, FeatureDeclaration

REPO = "feature_repo"
SHOP_EPOCHS = 6
NEWCOMERS = 0.9
"""Minimum share of new users in the last 10 % of the events for holding out one event of each user instead."""
REPEATS = 0.1
"""Minimum share of users whose last item is one that they had before, for recommending seen items too."""


@dataclass(frozen=True)
class ProjectSummary:
    """Result of `init_project`.

    source: description of the data source. users, items: distinct ids. interactions: rows.
    features: names of the declared features. decisions: the role of each column of the user's files.
    notes: further decisions and warnings, one sentence each.
    """

    folder: Path
    settings: Path
    repo: Path
    source: str
    users: int
    items: int
    interactions: int
    features: dict[str, tuple[str, ...]]
    notes: tuple[str, ...]
    decisions: tuple[Decision, ...] = ()


@dataclass(frozen=True)
class _Made:
    """Tables, settings, comments by the key of a setting, and notes to print."""

    tables: dict[str, WrittenTable]
    values: dict[str, Any]
    comments: dict[str, str]
    notes: tuple[str, ...]
    decisions: tuple[Decision, ...] = ()


def init_project(
    folder: str | Path,
    source: str | Path | None = None,
    *,
    seed: int = 0,
    names: ColumnNames | None = None,
    prompt: Prompt | None = None,
) -> ProjectSummary:
    """Write a project into a folder, which is created if missing.

    Args:
        folder: receives `rec_ray.yaml` and `feature_repo/`.
        source: folder or address with the user's own tables (see `read_own_tables`); without it a generated shop.
        seed: of the generated shop.
        names: columns of the user's tables. prompt: called for a column that only the user can name; with None it
            becomes a fault.

    Raises:
        ConfigError: the folder already contains a project or is not writable, or `source` does not exist.
        DataError: the tables cannot be used.
        UnavailableError: the address of `source` does not respond.
        FeatureStoreError: Feast rejects the definitions.
    """
    folder = Path(folder).resolve()
    settings, repo = folder / SETTINGS_FILE, folder / REPO
    there = [path.name for path in (settings, repo) if path.exists()]
    if there:
        raise ConfigError(
            f"{folder} already contains {list_names(there)}; name another folder, or remove them to start again"
        )
    with tempfile.TemporaryDirectory(prefix="rec_ray_init_") as scratch:
        own = None if source is None else read_own_tables(source, Path(scratch), names, prompt)
        made = _write_project(folder, own, names, seed)
    features = {name: tuple(made.values["features"][name]) for name in ("user", "item")}
    return ProjectSummary(
        folder=folder,
        settings=settings,
        repo=repo,
        source=f"a generated shop, seed {seed}" if source is None else _shown(source),
        users=count_distinct(made.tables["users"].path, USER_ID),
        items=count_distinct(made.tables["items"].path, ITEM_ID),
        interactions=made.tables["interactions"].rows,
        features=features,
        notes=made.notes,
        decisions=made.decisions,
    )


def _shown(source: str | Path) -> str:
    return str(source) if "://" in str(source) else str(Path(source).resolve())


def _write_project(folder: Path, own: OwnTables | None, names: ColumnNames | None, seed: int) -> _Made:
    settings, repo = folder / SETTINGS_FILE, folder / REPO
    try:
        (repo / "data").mkdir(parents=True)
        made = _make_shop(repo / "data", seed) if own is None else _make_own(repo / "data", own, names or ColumnNames())
        write_feature_repo(repo, folder.name, {name: table.schema for name, table in made.tables.items()})
        apply_feature_repo(repo)
        comments = {key: _printable(comment) for key, comment in made.comments.items()}
        settings.write_text(render_settings(made.values, comments), encoding="utf-8")
        return made
    except OSError as error:
        shutil.rmtree(repo, ignore_errors=True)
        raise ConfigError(f"cannot write the project in {folder}: {error.strerror or error}") from error
    except BaseException:
        # Remove the incomplete project, because it would block the next attempt.
        shutil.rmtree(repo, ignore_errors=True)
        settings.unlink(missing_ok=True)
        raise


def _printable(text: str) -> str:
    """Return a text without characters that are invalid in a YAML comment; notes quote values of users' files."""
    return "".join(char if char.isprintable() or char == "\n" else "?" for char in text)


def _make_shop(data: Path, seed: int) -> _Made:
    tables = shop.generate_shop(seed)
    written = {
        name: write_batches(name, [table], data / f"{name}.parquet")
        for name, table in (("users", tables.users), ("items", tables.items), ("interactions", tables.interactions))
    }
    features = {
        "user": _plain(shop.USER_FEATURES),
        "item": _plain(shop.ITEM_FEATURES),
        "item_name": "name",
        "interaction": {
            "type_field": "interaction_type",
            "weights": {"view": 1.0, "cart": 2.0, "purchase": 3.0},
            "negative_types": ["negative_view"],
        },
    }
    note = f"The generated shop, seed {seed}; rec_ray/sample/shop.py describes it."
    train = {"epochs": SHOP_EPOCHS, "refit_check": False}
    values = {"features": features, "model": {"history": "mean"}, "train": train}
    notes = {
        "features.user": note,
        "model.history": "mean, because the order of events in the shop carries no information, and mean is faster.",
        "train.epochs": "Fewer than the default of 8, for the same reason.",
        "train.refit_check": "false, because it saves one training; the default is true.",
    }
    return _Made(written, values, notes, tuple(notes.values()))


def _make_own(data: Path, own: OwnTables, names: ColumnNames) -> _Made:
    interactions = write_own_table(own.interactions, data / "interactions.parquet")
    earliest = earliest_time(interactions.path)
    notes = check_event_times(own.interactions, interactions, named=names.time is not None)
    written = {"interactions": interactions}
    history: dict[str, str] = {}
    dates: dict[str, str] = {}
    for name, table in (("users", own.users), ("items", own.items)):
        path = data / f"{name}.parquet"
        if table is None:
            written[name] = write_ids(name, interactions, path, earliest)
            continue
        dated = write_dated(table, path, interactions, earliest)
        written[name] = dated.table
        history |= dated.settings
        dates[name] = dated.why
        notes += [f"{name}: {dated.why}", *describe_ids(interactions, dated.table)]
    users, items = declare_features(written["users"]), declare_features(written["items"])
    interaction, said = declare_interactions(
        interactions, own.interactions.type, own.interactions.value, use_value=names.value is not None
    )
    features = {
        "user": _plain(users.features),
        "item": _plain(items.features),
        "item_name": name_of_items(written["items"]),
        "interaction": interaction,
        **history,
    }
    values: dict[str, Any] = {"features": features}
    decided = {f"features.interaction.{key}": note for key, note in said.items()}
    for key, name, declared in (("features.user", "users", users), ("features.item", "items", items)):
        decided[key] = "\n".join(["Decided from the columns when the project was created:", *declared.notes])
        if name in dates:
            decided[key] += f"\nevent_timestamp: {dates[name]}"
    share = share_of_newcomers(interactions.path)
    if share >= NEWCOMERS:
        values["evaluation"] = {"split": "leave_one_out"}
        decided["evaluation.split"] = (
            f"{share:.0%} of the users in the last 10 % of the events have no earlier event, so that a split by time "
            "would\ntest few users with a history: the last event of each user is held out instead."
        )
    repeats = share_of_repeats(interactions.path)
    if repeats >= REPEATS and len(_event_types(interactions, interaction["type_field"])) <= 1:
        values["candidates"] = {"exclude_seen": False}
        decided["candidates.exclude_seen"] = (
            f"The last item of {repeats:.0%} of the users is one that they had before, and all events are of one type: "
            "items already\nseen are recommended and evaluated too."
        )
    split = [decided[key] for key in ("evaluation.split", "candidates.exclude_seen") if key in decided]
    # The decisions on columns are shown as a table.
    notes += [line for note in said.values() for line in note.splitlines() if line not in interactions.notes]
    notes += [" ".join(note.split()) for note in split]
    decisions = [
        *interactions.decisions,
        *(*written["users"].decisions, *users.decisions),
        *(*written["items"].decisions, *items.decisions),
    ]
    return _Made(written, values, decided, tuple(notes), tuple(decisions))


def _event_types(table: WrittenTable, type_field: str | None) -> list[str]:
    if type_field is None:
        return []
    with query_table(table.path) as connection:
        rows = connection.execute(f"SELECT DISTINCT {quoted(type_field)} FROM t LIMIT 2").fetchall()
    return [str(name) for (name,) in rows]


def _plain(features: Mapping[str, FeatureDeclaration]) -> dict[str, dict[str, Any]]:
    return {
        name: {key: value for key, value in asdict(declaration).items() if value is not None}
        for name, declaration in features.items()
    }
