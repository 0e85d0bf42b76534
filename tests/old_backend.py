"""Backend of the replaced system, as far as it reads what a run publishes: the same calls of Feast, SQL and S3.

The code is our own; calls, names, arguments and the architecture of the encoder are those of the deployed backend. It
must work without any change, so nothing here imports the program.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import sqlalchemy as sa
import torch
from torch import Tensor, nn


class OldTower(nn.Module):
    """Architecture of the deployed encoder, with its parameter names: text, numbers and categories to 64 dimensions."""

    def __init__(self, numbers: int, categories: int) -> None:
        super().__init__()
        size = 64
        number_size, category_size = (6 if numbers else 0), (12 if categories else 0)
        if categories:
            self.categorical_embed = nn.Embedding(categories, category_size)
        if numbers:
            self.numeric_norm, self.numeric_embed = nn.BatchNorm1d(numbers), nn.Linear(numbers, number_size)
        self.project_text = nn.Linear(384, size - number_size - category_size)
        self.fn1, self.fn2 = nn.Linear(size, 2 * size), nn.Linear(2 * size, size)
        self.norm, self.norm1 = nn.RMSNorm(size), nn.RMSNorm(size)
        self.numbers, self.categories = numbers, categories

    def forward(self, numbers: Tensor, categories: Tensor, texts: Tensor) -> Tensor:
        """numbers: [n, a]; categories: [n, 1]; texts: [n, columns, 384] -> [n, 64]."""
        parts = [self.project_text(texts).mean(dim=1)]
        if self.numbers:
            parts.append(self.numeric_embed(self.numeric_norm(numbers)))
        if self.categories:
            parts.append(self.categorical_embed(categories).squeeze(1))
        state = self.norm(torch.cat(parts, dim=-1))
        return state + torch.relu(self.fn2(torch.relu(self.fn1(self.norm1(state)))))


@dataclass(frozen=True)
class NewUser:
    """A person who has just signed up, with the texts that the backend encodes."""

    preferences: str
    email: str = "somebody@shop.example"
    gender: str = "female"
    signup_date: str = "2026-02-03"


class OldBackend:
    """Opens the store and loads the encoder of the live version, as the deployed one does before any request."""

    def __init__(self, repo: str, database: str, objects: Any, encode: Callable[[Sequence[str]], Any]) -> None:
        """objects: file system of the S3 server. encode: n texts -> [n, 384]."""
        from feast import FeatureStore

        self.store, self.objects, self.encode = FeatureStore(repo), objects, encode
        address = sa.make_url(database).set(drivername="postgresql+psycopg")
        engine = sa.create_engine(address, poolclass=sa.NullPool)
        with engine.connect() as connection:
            query = sa.text("SELECT version FROM model_version ORDER BY updated_at DESC LIMIT 1")
            self.version = connection.execute(query).scalar_one()
        sizes = json.loads(self._read(f"user-encoder-config-{self.version}.json"))
        self.encoder = OldTower(sizes["users_num_numerical"], sizes["users_num_categorical"])
        weights = torch.load(io.BytesIO(self._read(f"user-encoder-{self.version}.pth")))
        self.encoder.load_state_dict(weights)
        self.encoder.eval()

    def known_user(self, user_id: str) -> list[str]:
        """Return the ids of the list of a user."""
        answer = self.store.get_online_features(
            features=self.store.get_feature_service("user_top_k_items"), entity_rows=[{"user_id": user_id}]
        )
        return list(answer.to_df().iloc[0]["top_k_item_ids"])

    def products(self, item_ids: Sequence[str]) -> list[dict[str, Any]]:
        """Return products; one without name, category or price fails, as the deployed model of a product does."""
        answer = self.store.get_online_features(
            features=self.store.get_feature_service("item_service"),
            entity_rows=[{"item_id": item_id} for item_id in item_ids],
        ).to_df()
        rows = answer.to_dict("records")
        for row in rows:
            if not isinstance(row["product_name"], str) or not isinstance(row["category"], str):
                raise TypeError(f"product {row['item_id']} has no name or category")
            if not float(row["actual_price"]) > 0:
                raise TypeError(f"product {row['item_id']} has no price")
        return rows

    def new_user(self, user: NewUser, k: int = 10) -> list[str]:
        """Return the items next to the vector of a new user."""
        texts = self.encode([user.email, user.gender, user.signup_date, user.preferences])
        with torch.no_grad():
            inputs = torch.zeros(1, 1), torch.zeros(1, 1, dtype=torch.long), torch.tensor(np.asarray(texts))[None]
            vector = self.encoder(*inputs)[0]
        return self.nearest("item_embedding", vector.tolist(), k)

    def search(self, text: str, k: int = 5) -> list[str]:
        """Return the items whose description is next to a text, with their features from the offline store."""
        found = self._documents("item_textual_features_embed", [float(each) for each in self.encode([text])[0]], k)
        found["event_timestamp"] = pd.to_datetime("now", utc=True)
        service = self.store.get_feature_service("item_service")
        values = self.store.get_historical_features(entity_df=found, features=service).to_df()
        if values["product_name"].isna().any():
            raise TypeError("a product that was found has no name")
        return list(values["item_id"])

    def nearest(self, view: str, vector: list[float], k: int) -> list[str]:
        """Return the items of a view whose vectors are next to a vector."""
        return list(self._documents(view, vector, k)["item_id"])

    def _documents(self, view: str, vector: list[float], k: int) -> pd.DataFrame:
        answer = self.store.retrieve_online_documents(query=vector, top_k=k, features=[f"{view}:item_id"])
        found: pd.DataFrame = answer.to_df()
        return found

    def _read(self, name: str) -> bytes:
        with self.objects.open_input_stream(f"user-encoder/{name}") as stream:
            return bytes(stream.read())
