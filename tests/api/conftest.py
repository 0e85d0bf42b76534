"""A model that `fit` trained on the tiny tables, and the store to which it was saved; both for all tests of the API."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

NOW = datetime(2024, 4, 11, tzinfo=UTC)
SMALL = {"model": {"embedding_size": 16, "history": "mean"}, "train": {"epochs": 2}, "candidates": {"k": 20}}


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    """Threads of torch that wait for each other spin, which is slow beside other work."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@dataclass(frozen=True)
class Fitted:
    """tables: what the model was fitted on; users `quiet` without events and `nobody` without features too."""

    model: Any
    tables: dict[str, pa.Table]
    store: Path


@pytest.fixture(scope="session")
def fitted(processes: None, tmp_path_factory: pytest.TempPathFactory, tiny_tables: dict[str, pa.Table]) -> Fitted:
    from rec_ray import fit

    tables = {
        name: table.drop_columns("event_timestamp") for name, table in tiny_tables.items() if name != "interactions"
    }
    more = {"user_id": ["quiet", "nobody"], "taste": ["group 2", None], "age": [30, None]}
    tables["users"] = pa.concat_tables([tables["users"], pa.table(more, schema=tables["users"].schema)])
    tables["interactions"] = tiny_tables["interactions"]
    model = fit(tables["interactions"], tables["users"], tables["items"], now=NOW, **SMALL)
    store = tmp_path_factory.mktemp("fitted") / "store"
    model.save(str(store))
    return Fitted(model, tables, store)
