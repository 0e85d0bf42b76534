"""Report of a version: collects its facts into `report.json` and renders them to `report.html`, below the version.

Input are a bundle, an evaluation, the figures of the run and a function that reads item fields. The facts are stored so
that the page can be rendered again without the run.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
import torch

from rec_ray.contracts import Evaluation, TrainingData
from rec_ray.errors import DataError
from rec_ray.logs import LOGGER
from rec_ray.reports.item_map import map_vectors
from rec_ray.reports.page.facts import ItemMap, ReportFacts, facts_of_bundle
from rec_ray.retrieval.features.catalogue import Catalogue
from rec_ray.retrieval.features.preprocessing import FeaturePreprocessor
from rec_ray.retrieval.model.bundle import TwoTowerBundle
from rec_ray.retrieval.profiles.checks import Check
from rec_ray.schema import FeatureDeclaration
from rec_ray.storage.model_store import model_folder
from rec_ray.storage.object_store import Storage

FACTS, PAGE = "report.json", "report.html"
MAPPED_ITEMS = 800
"""Maximum number of items on the map, sampled by a hash of their ids; the page shows both numbers."""
PATH_SEPARATOR = "|"

ReadFields = Callable[[Sequence[str], Sequence[str]], Mapping[str, Mapping[str, Any]]]
"""(item ids, field names) -> field -> item id -> value."""


@dataclass(frozen=True)
class RunFigures:
    """Figures of the run for the report: verdict and reasons of the gate, counts, seconds per step, checks."""

    gate: str
    gate_reasons: tuple[str, ...]
    counts: Mapping[str, int]
    seconds: Mapping[str, float]
    checks: tuple[Check, ...] = ()


def write_report(
    bundle: TwoTowerBundle,
    version: str,
    evaluation: Evaluation,
    data: TrainingData,
    storage: Storage,
    read_fields: ReadFields,
    *,
    item_name: str | None,
    run: RunFigures,
) -> str:
    """Write the report of a version below its folder and return its address; a failure is logged, not raised.

    The arguments are those of `collect_facts`.
    """
    try:
        facts = collect_facts(bundle, version, evaluation, data, storage, read_fields, item_name=item_name, run=run)
        return store_report(facts, storage, model_folder(version))
    except Exception as error:
        # The text of an exception from a Ray task contains a traceback; its last line is the message.
        reason = f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[-1]}"
        LOGGER.warning("the report of version %s is not written: %s", version, reason)
        return f"not written: {reason}"


def collect_facts(
    bundle: TwoTowerBundle,
    version: str,
    evaluation: Evaluation,
    data: TrainingData,
    storage: Storage,
    read_fields: ReadFields,
    *,
    item_name: str | None,
    run: RunFigures,
) -> ReportFacts:
    """Collect the facts of a version that was just trained.

    item_name: item field with a readable name, if there is one.
    """
    item_map: ItemMap = ray.get(_map_items.remote(bundle.without_evaluated(), data.catalogue_now, storage))
    item_ids = dict.fromkeys(item_map.item_ids)
    for example in evaluation.examples:
        item_ids |= dict.fromkeys((*example.history, *example.recommended, *example.taken))
    category = category_field(bundle.preprocessor.items)
    fields = list(dict.fromkeys(name for name in (item_name, category) if name))
    values = read_fields(list(item_ids), fields) if fields and item_ids else {}
    declared = bundle.preprocessor.items.declarations.get(category or "")
    return ReportFacts(
        **facts_of_bundle(bundle, version) | {"evaluation": evaluation},
        gate=run.gate,
        gate_reasons=list(run.gate_reasons),
        notes=list(data.notes),
        item_map=item_map,
        names=_texts(values.get(item_name or "", {})),
        categories=categories_of_items(values.get(category or "", {}), declared) if declared else {},
        seconds={name: round(took, 1) for name, took in run.seconds.items()},
        counts=dict(run.counts),
        checks=run.checks,
    )


def store_report(facts: ReportFacts, storage: Storage, folder: str) -> str:
    """Write facts and page below the folder of a version; return the address of the page."""
    data = facts.to_json()
    storage.write_bytes(f"{folder}/{FACTS}", data)
    # Render the stored form, so that rendering it again gives the same page.
    return store_page(ReportFacts.from_json(data), storage, folder)[0]


def store_page(facts: ReportFacts, storage: Storage, folder: str) -> tuple[str, str]:
    """Render the facts and write the page below the folder of a version; return its address and its text."""
    # Lazy: importing matplotlib takes a second, and most commands and tasks draw nothing.
    from rec_ray.reports.page.page import render_report

    page = render_report(facts)
    storage.write_bytes(f"{folder}/{PAGE}", page.encode())
    return storage.uri(f"{folder}/{PAGE}"), page


def read_report(bundle: TwoTowerBundle, version: str, storage: Storage, folder: str) -> ReportFacts:
    """Read the stored facts of a version; without any, derive them from the metadata of its bundle.

    Raises:
        DataError: the facts have another format or belong to another version.
    """
    key = f"{folder}/{FACTS}"
    if not storage.exists(key):
        return ReportFacts(**facts_of_bundle(bundle, version))
    facts = ReportFacts.from_json(storage.read_bytes(key))
    if facts.version != version:
        raise DataError(f"{storage.uri(key)} belongs to version {facts.version!r}; was the folder copied or renamed?")
    return facts


def category_field(items: FeaturePreprocessor) -> str | None:
    """Return the item feature that colours the map: a path before a category, with more than one value."""
    for kind in ("category_path", "categorical", "categories"):
        for name, declaration in items.declarations.items():
            if declaration.kind == kind and len(items.vocabularies[name]) > 1:
                return name
    return None


@ray.remote(num_cpus=1)
def _map_items(bundle: TwoTowerBundle, catalogue: str, storage: Storage) -> ItemMap:
    """Return the map of a sample of the catalogue."""
    torch.set_num_threads(1)
    table = pq.read_table(catalogue, filesystem=storage.filesystem)
    total = table.num_rows
    hashes = np.array([zlib.crc32(item_id.encode()) for item_id in table["item_id"].to_pylist()])
    chosen = np.sort(np.argsort(hashes, kind="stable")[:MAPPED_ITEMS])
    table = table.take(pa.array(chosen))
    numbered = pa.array(np.arange(1, len(chosen) + 1), pa.int32())
    table = table.set_column(table.schema.get_field_index("item_index"), "item_index", numbered)
    items = Catalogue.from_table(table, bundle.preprocessor.items.shape)
    with torch.inference_mode():
        vectors = items.embed(bundle.model, torch.arange(1, len(chosen) + 1)).numpy()
    places = map_vectors(vectors)
    return ItemMap(
        item_ids=items.item_ids.to_pylist(),
        x=places[:, 0].round(4).tolist(),
        y=places[:, 1].round(4).tolist(),
        total=total,
        said="near points are similar items for the model; large distances carry no meaning (t-SNE)",
    )


def _texts(values: Mapping[str, Any]) -> dict[str, str]:
    return {item_id: str(value) for item_id, value in values.items() if value is not None}


def categories_of_items(values: Mapping[str, Any], declaration: FeatureDeclaration) -> dict[str, str]:
    """Return the category of each item: the first part of a path, or the first of several values."""
    separator = declaration.separator
    if declaration.kind == "category_path" and separator is None:
        separator = PATH_SEPARATOR
    categories = {}
    for item_id, value in values.items():
        first = (value[0] if len(value) else None) if isinstance(value, list | tuple | np.ndarray) else value
        text = "" if first is None else str(first)
        if separator and declaration.kind != "categorical":
            text = text.split(separator)[0]
        if text.strip():
            categories[item_id] = text.strip()
    return categories
