"""Creates a project for an existing Feast repository: reads it, decides once, and writes short settings.

Input: a folder, the repository and command-line options. Output: a settings file, and a summary with each decision and
its reason. The repository is only read.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import yaml

from rec_ray.config import FeastSettings, PublishSettings, Settings
from rec_ray.config.loading import SETTINGS_FILE
from rec_ray.data.feature_sample import examine_features
from rec_ray.errors import ConfigError, DataError
from rec_ray.feature_store.api import FeatureStore
from rec_ray.feature_store.feast_views import SIMILAR_SOURCE
from rec_ray.feature_store.push_targets import is_published
from rec_ray.feature_store.registry import read_registry
from rec_ray.feature_store.repository import open_store
from rec_ray.sample.feast_features import decide_roles
from rec_ray.sample.feast_layout import Choice, LayoutOptions, find_layout
from rec_ray.sample.feast_samples import count_ids, count_rows
from rec_ray.sample.project import NEWCOMERS, REPEATS
from rec_ray.sample.roles import Prompt
from rec_ray.sample.survey import share_of_newcomers, share_of_repeats
from rec_ray.schema import ITEM_ID, USER_ID

SIMILAR_ITEMS = 20


@dataclass(frozen=True)
class FeastProject:
    """Result of `init_from_feast`. users, items, events: numbers in the sample from which the decisions were made."""

    folder: Path
    settings: Path
    repo: Path
    users: int
    items: int
    events: int
    choices: tuple[Choice, ...]
    warnings: tuple[str, ...]


def init_from_feast(
    folder: str | Path, repo: str | Path, options: LayoutOptions | None = None, ask: Prompt | None = None
) -> FeastProject:
    """Write the settings file of a project that reads an existing Feast repository.

    Args:
        folder: receives `rec_ray.yaml`; it may be the one that contains the repository.
        repo: folder with feature_store.yaml, or that file.
        options: decisions made by the user.
        ask: prompts for an ambiguous decision; None takes the likely one.

    Raises:
        ConfigError: the settings file exists already, or the repository is unreadable or has no events or items.
        EmptyDataError: the events have no usable row.
        FeatureStoreError: the registry or a source does not respond.
    """
    folder, options = Path(folder).resolve(), options or LayoutOptions()
    file = folder / SETTINGS_FILE
    if file.exists():
        raise ConfigError(f"{file} exists already; name another folder, or remove the file to decide again")
    store = open_store(repo)
    registry = read_registry(store)
    layout = find_layout(
        registry,
        options,
        lambda view: count_rows(store, view),
        lambda view, column: count_ids(store, view, column),
        ask,
    )
    feast = FeastSettings.model_validate(dict(layout.settings))
    choices = list(layout.choices)
    with tempfile.TemporaryDirectory(prefix="rec_ray_") as temporary:
        scratch = Path(temporary)
        features, events, decided = decide_roles(store, registry, feast, options, scratch)
        choices += decided
        values: dict[str, Any] = {"feast": {"repo": _place(Path(repo), folder), **layout.settings}}
        if not is_published(store, PublishSettings()):
            # The views of `rec-ray feast-views` include one for similar items.
            values["publish"] = {"similar_push_source": SIMILAR_SOURCE}
            values["candidates"] = {"similar_items": SIMILAR_ITEMS}
        values["features"] = features
        for section, decided_values in _protocol(scratch / "events.parquet", features["interaction"], choices).items():
            values[section] = {**values.get(section, {}), **decided_values}
    warnings = _suspicious(store, Settings.model_validate(values))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file.write_text(_render(values, choices), encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{file} cannot be written: {error.strerror}") from error
    return FeastProject(
        folder,
        file,
        Path(store.repo_path),
        pc.count_distinct(events[USER_ID]).as_py(),
        pc.count_distinct(events[ITEM_ID]).as_py(),
        events.num_rows,
        tuple(choices),
        tuple(warnings),
    )


def _suspicious(store: FeatureStore, settings: Settings) -> list[str]:
    """Return warnings about ids of events without a match and features unknown in training or today."""
    try:
        return examine_features(store, settings.feast, settings.features, settings.evaluation)
    except DataError as error:
        return [str(error)]


def _protocol(path: Path, interaction: Mapping[str, Any], choices: list[Choice]) -> dict[str, Any]:
    """Return settings of evaluation and candidates for events that do not suit the defaults."""
    values: dict[str, Any] = {}
    newcomers, repeats = share_of_newcomers(path), share_of_repeats(path)
    if newcomers >= NEWCOMERS:
        values["evaluation"] = {"split": "leave_one_out"}
        why = f"{newcomers:.0%} of the users in the last 10 % of the events are new, so a split by time tests few users"
        choices.append(Choice("held out", "last event of each user", why, "evaluation.split"))
    if repeats >= REPEATS and interaction["type_field"] is None:
        values["candidates"] = {"exclude_seen": False}
        why = f"the last item of {repeats:.0%} of the users is one that they had before"
        choices.append(Choice("items already seen", "recommended too", why, "candidates.exclude_seen"))
    return values


def _place(repo: Path, folder: Path) -> str:
    """Return the repository path for the settings file: relative if both are in the same folder tree."""
    repo = repo.resolve()
    relative = os.path.relpath(repo, folder)
    return str(repo) if Path(relative).parts[:2] == (os.pardir, os.pardir) else relative


def _render(values: Mapping[str, Any], choices: list[Choice]) -> str:
    lines = [
        "# Settings of this rec_ray project, decided by `rec-ray init --feast`; all others have their defaults.",
        "# Any setting can also be given as REC_RAY__SECTION__KEY or --set section.key=value.",
        "#",
        *(f"# {choice.what}: {choice.decision} ({choice.why})" for choice in choices),
    ]
    lines = [" ".join(line.split()) for line in lines]
    text = yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True, width=110)
    return "\n".join(lines) + "\n\n" + text
