"""Weights of an earlier model laid out for newer vocabularies, so that a training need not begin from nothing.

A bundle and the arguments and preprocessor of a new model come in; a state for the new towers goes out in which every
item, value and number keeps what was learned about it and new ones begin as the unknown one does: carried by features.
It does not know where the earlier bundle was kept or whether its figures were good.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from rec_ray.errors import BundleError
from rec_ray.retrieval.features.preprocessing import NUMBERS, FeaturePreprocessor, Preprocessor
from rec_ray.retrieval.model.bundle import TwoTowerBundle
from rec_ray.retrieval.model.towers import TwoTower, build_two_tower

OF_VOCABULARIES = ("vocabulary_size", "item_shape", "user_shape", "event_types")
"""Arguments of the towers that may differ, because they follow from the data."""

KNOWN_ROWS = "known_rows"
ITEM_IDS = "item_tower.ids.weight"
ITEM_TABLES = (ITEM_IDS, "item_tower.history_ids.weight")


def carry_over(old: TwoTowerBundle, arguments: Mapping[str, Any], preprocessor: Preprocessor) -> bytes:
    """Return a state for `build_two_tower(**arguments)` as safetensors, with `KNOWN_ROWS` beside it.

    The towers from before the refit are taken where the bundle has them: those have seen no event that a later run may
    hold out.

    Raises:
        BundleError: the towers are of another build.
    """
    for name in sorted({*old.arguments, *arguments} - {*OF_VOCABULARIES}):
        if old.arguments.get(name) != arguments.get(name):
            raise BundleError(
                f"train.warm_start: the live version was built with {name}={old.arguments.get(name)!r}, the settings "
                f"say {arguments.get(name)!r}; take the same, or set train.warm_start: off for one run"
            )
    with torch.random.fork_rng(devices=[]):
        fresh = build_two_tower(**arguments).state_dict()
    before = (old.evaluated or old.model).state_dict()
    carried = {}
    for name in ITEM_TABLES:
        if name in before:
            carried[name], known = _rows(before[name], old.preprocessor.item_ids, preprocessor.item_ids)
    for side, then, now in (
        ("item_tower", old.preprocessor.items, preprocessor.items),
        ("user_tower", old.preprocessor.users, preprocessor.users),
    ):
        carried |= _features(f"{side}.features", then, now, before, fresh)
    types = "user_tower.history.events.event_type.weight"
    if types in fresh and types in before:
        carried[types] = _rows(before[types], old.preprocessor.event_types, preprocessor.event_types)[0]
    for name, value in fresh.items():
        if name not in carried and name in before and before[name].shape == value.shape:
            carried[name] = before[name]
    state = {name: carried.get(name, value).contiguous() for name, value in fresh.items()}
    return safetensors.torch.save({**state, KNOWN_ROWS: known})


def load_start(data: bytes, model: TwoTower) -> Tensor:
    """Give the towers the weights of `carry_over` and return which rows of the item ids were known, [rows] bool."""
    state = safetensors.torch.load(data)
    known = state.pop(KNOWN_ROWS)
    model.load_state_dict(state)
    return known


def share_unknown_row(weights: dict[str, Tensor], rows: Tensor) -> None:
    """Give item id rows that nothing was learned about that of the unknown item, in place. rows: [m] int64."""
    for name in ITEM_TABLES:
        if name in weights:
            weights[name][rows] = weights[name][0].clone()


def _rows(table: Tensor, then: Sequence[str], now: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Rows 1 on by name from one vocabulary to another; new names have row 0. Returns the table and what was known."""
    place = {name: row for row, name in enumerate(then, start=1)}
    source = torch.tensor([0, *(place.get(name, 0) for name in now)])
    known = source > 0
    return table[source].clone(), known


def _features(
    prefix: str,
    then: FeaturePreprocessor,
    now: FeaturePreprocessor,
    before: Mapping[str, Tensor],
    fresh: Mapping[str, Tensor],
) -> dict[str, Tensor]:
    carried = {}
    tokens, dense = f"{prefix}.tokens.weight", f"{prefix}.dense.weight"
    if tokens in fresh and tokens in before:
        source = torch.zeros(len(fresh[tokens]), dtype=torch.long)
        for name, first in now.token_offsets.items():
            if name not in then.token_offsets or now.declarations[name].kind != then.declarations[name].kind:
                continue
            if now.declarations[name].kind == "text":
                if now.text_buckets == then.text_buckets:
                    source[first : first + now.text_buckets] = then.token_offsets[name] + torch.arange(now.text_buckets)
                continue
            place = {value: row for row, value in enumerate(then.vocabularies[name], start=then.token_offsets[name])}
            rows = [place.get(value, 0) for value in now.vocabularies[name]]
            source[first : first + len(rows)] = torch.tensor(rows, dtype=torch.long)
        carried[tokens] = before[tokens][source].clone()
    if dense in fresh and dense in before:
        weight = torch.zeros_like(fresh[dense])
        columns_then = _columns(then)
        for key, column in _columns(now).items():
            if key in columns_then and _read_alike(key[0], then, now):
                weight[:, column] = before[dense][:, columns_then[key]]
        carried[dense] = weight
    return carried


def _read_alike(name: str, then: FeaturePreprocessor, now: FeaturePreprocessor) -> bool:
    """Return whether both read a feature by the same kind of scale; else its weights mean something else."""
    return (name in then.bends, name in then.centres) == (name in now.bends, name in now.centres)


def _columns(features: FeaturePreprocessor) -> dict[tuple[str, int], int]:
    """Return the column of the i-th number of each feature among all numbers and vectors."""
    found: dict[tuple[str, int], int] = {}
    for name, declaration in features.declarations.items():
        if declaration.kind in NUMBERS:
            begin = len(found)
            found |= {(name, i): begin + i for i in range(2)}
    for name, declaration in features.declarations.items():
        if declaration.kind == "vector":
            begin = len(found)
            found |= {(name, i): begin + i for i in range(declaration.length or 0)}
    return found
