"""Makes a project folder: settings, data and an applied Feast repository.

In go a folder and, optionally, a folder with the user's own tables; out comes a summary of what lies where. Without
own tables the data is the sample shop. It opens no Ray and no object store, and a run never comes back here.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rec_ray.config.loading import SETTINGS_FILE
from rec_ray.config.template import render_settings
from rec_ray.errors import ConfigError, listed
from rec_ray.sample import shop
from rec_ray.sample.declarations import declare_features, declare_interactions, name_of_items
from rec_ray.sample.feature_repo import apply_feature_repo, write_feature_repo
from rec_ray.sample.survey import count_distinct, earliest_time, query_table, share_of_newcomers, share_of_repeats
from rec_ray.sample.tables import OwnTables, WrittenTable, read_own_tables, write_batches, write_ids, write_own_table
from rec_ray.schema import ITEM_ID, USER_ID, FeatureDeclaration

REPO = "feature_repo"
SHOP_EPOCHS = 6
NEWCOMERS = 0.9
"""When so large a share of the users in the last 10 % of the events is new, a split by time leaves nothing to test."""
REPEATS = 0.1
"""When so large a share of the users ends with an item that they had before, such items are recommended too."""


@dataclass(frozen=True)
class ProjectSummary:
    """What `init_project` made.

    source: where the data is from, in words. users, items: different ids. interactions: rows.
    features: names of the declared features. notes: what was decided and why.
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


@dataclass(frozen=True)
class _Made:
    tables: dict[str, WrittenTable]
    values: dict[str, Any]
    notes: dict[str, str]


def init_project(folder: str | Path, source: str | Path | None = None, *, seed: int = 0) -> ProjectSummary:
    """Write a project into a folder, which is made when missing.

    Args:
        folder: gets `rec_ray.yaml` and `feature_repo/`.
        source: folder with the user's own Parquet tables (see `tables.read_own_tables`); without it a generated shop.
        seed: of the generated shop.

    Raises:
        ConfigError: the folder holds a project already or cannot be written, or `source` is no such folder.
        DataError: the tables cannot be used.
        FeatureStoreError: Feast refuses the definitions.
    """
    folder = Path(folder).resolve()
    settings, repo = folder / SETTINGS_FILE, folder / REPO
    there = [path.name for path in (settings, repo) if path.exists()]
    if there:
        raise ConfigError(
            f"{folder} already holds {listed(there)}; name another folder, or remove them to make the project anew"
        )
    own = None if source is None else read_own_tables(source)
    try:
        (repo / "data").mkdir(parents=True)
        if own is None:
            made = _make_shop(repo / "data", seed)
        else:
            made = _make_own(repo / "data", own)
        write_feature_repo(repo, folder.name, {name: table.schema for name, table in made.tables.items()})
        apply_feature_repo(repo)
        settings.write_text(render_settings(made.values, made.notes), encoding="utf-8")
    except OSError as error:
        shutil.rmtree(repo, ignore_errors=True)
        raise ConfigError(f"cannot write the project in {folder}: {error.strerror or error}") from error
    except BaseException:
        # Half a project would refuse the next try.
        shutil.rmtree(repo, ignore_errors=True)
        settings.unlink(missing_ok=True)
        raise
    features = {name: tuple(made.values["features"][name]) for name in ("user", "item")}
    return ProjectSummary(
        folder=folder,
        settings=settings,
        repo=repo,
        source=f"a generated shop, seed {seed}" if source is None else str(Path(source).resolve()),
        users=count_distinct(made.tables["users"].path, USER_ID),
        items=count_distinct(made.tables["items"].path, ITEM_ID),
        interactions=made.tables["interactions"].rows,
        features=features,
        notes=tuple(line for note in made.notes.values() for line in note.splitlines()),
    )


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
    note = f"The generated shop, seed {seed}; rec_ray/sample/shop.py says what is in it."
    train = {"epochs": SHOP_EPOCHS, "refit_check": False}
    values = {"features": features, "model": {"history": "mean"}, "train": train}
    notes = {
        "features.user": note,
        "model.history": "Not the default, transformer: tastes in the shop have no order, and this is quicker.",
        "train.epochs": "Fewer than the default of 8, for the same reason.",
        "train.refit_check": "Not the default, true: one training less, so that the shop is quick.",
    }
    return _Made(written, values, notes)


def _make_own(data: Path, own: OwnTables) -> _Made:
    interactions = write_own_table(own.interactions, data / "interactions.parquet")
    earliest = earliest_time(interactions.path)
    written = {"interactions": interactions}
    for name, table in (("users", own.users), ("items", own.items)):
        path = data / f"{name}.parquet"
        if table is None:
            written[name] = write_ids(name, interactions, path, earliest)
        else:
            written[name] = write_own_table(table, path, earliest)
    users, items = declare_features(written["users"]), declare_features(written["items"])
    interaction, notes = declare_interactions(interactions)
    features = {
        "user": _plain(users.features),
        "item": _plain(items.features),
        "item_name": name_of_items(written["items"]),
        "interaction": interaction,
    }
    values: dict[str, Any] = {"features": features}
    decided = {f"features.interaction.{key}": note for key, note in notes.items()}
    for key, table, declared in (("features.user", own.users, users), ("features.item", own.items, items)):
        decided[key] = "\n".join(["Decided from the columns when the project was made:", *declared.notes])
        if table is not None:
            time = f"the column {table.time_column}" if table.time_column else "the earliest event, as it has no time"
            decided[key] += f"\nevent_timestamp: {time}"
    share = share_of_newcomers(interactions.path)
    if share >= NEWCOMERS:
        values["evaluation"] = {"split": "leave_one_out"}
        decided["evaluation.split"] = (
            f"{share:.0%} of the users in the last 10 % of the events have no earlier event, so that a split by time "
            "would\nleave almost nobody to test with a history: the last event of each user is held out instead."
        )
    repeats = share_of_repeats(interactions.path)
    if repeats >= REPEATS and len(_event_types(interactions)) <= 1:
        values["candidates"] = {"exclude_seen": False}
        decided["candidates.exclude_seen"] = (
            f"{repeats:.0%} of the users end with an item that they had before, and all events are of one type: items "
            "already\nseen are recommended and evaluated too."
        )
    return _Made(written, values, decided)


def _event_types(table: WrittenTable) -> list[str]:
    if "interaction_type" not in table.schema.names:
        return []
    with query_table(table.path) as connection:
        rows = connection.execute("SELECT DISTINCT interaction_type FROM t LIMIT 2").fetchall()
    return [str(name) for (name,) in rows]


def _plain(features: Mapping[str, FeatureDeclaration]) -> dict[str, dict[str, Any]]:
    return {
        name: {key: value for key, value in asdict(declaration).items() if value is not None}
        for name, declaration in features.items()
    }
