"""Warm start: the weights of an earlier model, rearranged for newer vocabularies.

Input: a bundle, and the arguments and preprocessor of a new model. Output: a state of the new towers, in which every
known item, value and number keeps its weights, and new ones begin with the row of the unknown one.
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
"""Arguments of the towers that may differ, because they depend on the data."""

KNOWN_ROWS = "known_rows"
ITEM_IDS = "item_tower.ids.weight"
ITEM_TABLES = (ITEM_IDS, "item_tower.history_ids.weight")


def carry_over(old: TwoTowerBundle, arguments: Mapping[str, Any], preprocessor: Preprocessor) -> bytes:
    """Return a state for `build_two_tower(**arguments)` as safetensors, with `KNOWN_ROWS` beside it.

    If the bundle has the towers from before the refit, those are used, because they have not seen events that a later
    run may hold out.

    Raises:
        BundleError: the towers have another architecture.
    """
    for name in sorted({*old.arguments, *arguments} - {*OF_VOCABULARIES}):
        if old.arguments.get(name) != arguments.get(name):
            raise BundleError(
                f"train.warm_start: the live version was built with {name}={old.arguments.get(name)!r}, the settings "
                f"have {arguments.get(name)!r}; use the same, or set train.warm_start: off for one run"
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
    """Load the weights of `carry_over` into the towers and return a mask of the known item-id rows, [rows] bool."""
    state = safetensors.torch.load(data)
    known = state.pop(KNOWN_ROWS)
    model.load_state_dict(state)
    return known


def share_unknown_row(weights: dict[str, Tensor], rows: Tensor) -> None:
    """Copy the row of the unknown item to untrained item-id rows, in place. rows: [m] int64."""
    for name in ITEM_TABLES:
        if name in weights:
            weights[name][rows] = weights[name][0].clone()


def _rows(table: Tensor, then: Sequence[str], now: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Move rows from 1 on to another vocabulary by name; new names get row 0. Return the table and a known mask."""
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
    """Return whether both use the same kind of scale for a feature; else its weights cannot be reused."""
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
