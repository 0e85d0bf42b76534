"""The replaced system's repository, registry server, database and backend, unchanged, and a run with its variables."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from old_backend import NewUser, OldBackend
from old_shop import BUCKET, TOPICS, OldShop, RegistryServer, deploy, draw_tables
from servers import PostgreSQL, SeaweedFS

from rec_ray.cli.reader_checks import check_online_features, check_user_encoder_objects
from rec_ray.config import Settings
from rec_ray.config.loading import load_settings
from rec_ray.pipeline import run_candidates, run_pipeline
from rec_ray.preflight import check_definitions
from rec_ray.retrieval.encoders.text import TextEncoder
from rec_ray.runs.context import open_feature_store
from rec_ray.runs.stores import open_object_store, open_version_database
from rec_ray.runs.summary import RunReport
from rec_ray.sample.feast_project import init_from_feast

pytestmark = [pytest.mark.usefixtures("processes"), pytest.mark.usefixtures("local_ray")]
PAGE = Path(__file__).parents[2] / "docs" / "upgrading.md"


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory, postgresql: PostgreSQL, seaweedfs: SeaweedFS) -> Iterator[OldShop]:
    """The deployed system before the first run; its variables are those of the process."""
    postgresql.make_database("old_shop")
    folder = tmp_path_factory.mktemp("old") / "feature_repo"
    with pytest.MonkeyPatch.context() as changed, RegistryServer(postgresql, "old_shop") as registry:
        shop = deploy(folder, draw_tables(), registry, seaweedfs)
        for name, value in shop.environment.items():
            changed.setenv(name, value)
        shop.apply()
        yield shop


@dataclass(frozen=True)
class Published:
    """A finished run. before: what the doctor said about online features and the user encoder before it."""

    project: Path
    report: RunReport
    before: tuple[str, str]

    @property
    def settings(self) -> Settings:
        return load_settings(self.project / "rec_ray.yaml")


@pytest.fixture(scope="module")
def published(shop: OldShop, tmp_path_factory: pytest.TempPathFactory, text_model: str) -> Published:
    """A run with the settings of docs/upgrading.md, smaller, and a text model that is here."""
    project = tmp_path_factory.mktemp("project")
    first = PAGE.read_text(encoding="utf-8").split("```yaml\n")[1].split("```")[0]
    assert "/app/feature_repo" in first
    settings = (
        first.replace("/app/feature_repo", str(shop.repo))
        + f"""
search: {{text_encoder: "transformers:{text_model}"}}
model: {{history: mean}}
train: {{epochs: 8, refit: "off"}}
candidates: {{k: 20}}
evaluation: {{gate: "off"}}
"""
    )
    (project / "rec_ray.yaml").write_text(settings, encoding="utf-8")
    loaded = load_settings(project / "rec_ray.yaml")
    store = open_feature_store(loaded)
    before = (
        check_online_features(store, loaded.model_copy(update={"publish": type(loaded.publish)()})),
        check_online_features(store, loaded),
    )
    return Published(project, run_pipeline(loaded), before)


@pytest.fixture(scope="module")
def encode(text_model: str) -> Any:
    return TextEncoder(text_model).encode


@pytest.fixture
def backend(published: Published, shop: OldShop, seaweedfs: SeaweedFS, encode: Any) -> OldBackend:
    return OldBackend(str(shop.repo), shop.environment["DATABASE_URL"], seaweedfs.filesystem(), encode)


def test_the_run_counts_what_it_published(published: Published, shop: OldShop) -> None:
    counts = published.report.counts
    assert counts["rows pushed to item_embed_push_source"] == len(shop.items) == 40
    assert counts["rows pushed to user_items_push_source"] == len(shop.users) == 120
    assert counts["rows pushed to item_textual_features_embed"] == 40
    assert (counts["ids looked up online in item_features"], counts["ids with a row in item_features"]) == (40, 40)
    assert published.settings.storage.url == f"s3://{BUCKET}/rec_ray"
    events = shop.tables["recommendation_interactions"]
    liked = int((events["interaction_type"] != "negative_view").sum())
    assert counts["positives to learn from"] <= liked < len(events) / 2


def test_the_doctor_names_the_view_without_rows_before_the_first_run(published: Published) -> None:
    unset, auto = published.before
    assert "item_features: 0 of 40 ids have a row online" in unset and "publish.materialize: [item_features]" in unset
    assert auto.endswith("the next publication writes them (publish.materialize)")


def test_every_user_has_a_list_of_products_with_name_and_price(backend: OldBackend, shop: OldShop) -> None:
    lists = {user: backend.known_user(user) for user in shop.users}
    assert all(lists.values()) and len(lists) == 120
    recommended = sorted({item for items in lists.values() for item in items})
    names = shop.tables["recommendation_items"].set_index("item_id")["product_name"]
    found = {row["item_id"]: row["product_name"] for row in backend.products(recommended)}
    assert found == names[recommended].to_dict()
    assert len(found) == 40


def test_vector_searches_find_the_nearest(backend: OldBackend, shop: OldShop, encode: Any) -> None:
    descriptions = shop.tables["recommendation_items"].set_index("item_id")["about_product"]
    vectors = encode(descriptions.tolist())
    for place in (0, 17, 39):
        nearest = descriptions.index[np.argsort(-(vectors @ vectors[place]), kind="stable")[:3]]
        assert set(backend.search(descriptions.iloc[place], 3)) == set(nearest)
    features = ["user_embedding:embedding", "item_embedding:embedding"]
    rows = {"user_id": shop.users[:1] * 40, "item_id": shop.items}
    answer = backend.store.get_online_features(features=features, entity_rows=rows, full_feature_names=True).to_dict()
    user = np.array(answer["user_embedding__embedding"][0])
    items = np.array(answer["item_embedding__embedding"])
    assert np.linalg.norm(items, axis=1) == pytest.approx(1, abs=1e-4)
    best = [shop.items[place] for place in np.argsort(-(items @ user))[:10]]
    assert backend.nearest("item_embedding", user.tolist(), 10) == best


def test_a_new_user_gets_items_of_what_they_prefer(backend: OldBackend, shop: OldShop) -> None:
    """The encoder is loaded with the deployed backend's architecture and its own way to encode a person."""
    category = shop.tables["recommendation_items"].set_index("item_id")["category"]
    for topic in TOPICS:
        items = backend.new_user(NewUser(f"{topic}|Gifts"), 5)
        assert (category[items] == f"Shop|{topic}").sum() >= 3, topic


def test_init_finds_the_names_and_needs_no_change(shop: OldShop, tmp_path: Path) -> None:
    made = init_from_feast(tmp_path / "found", shop.repo)
    settings = load_settings(made.settings)
    assert (settings.feast.user_key, settings.feast.item_key) == ("user_id", "item_id")
    assert settings.features.user["preferences"].kind == "categories"
    assert settings.features.item["category"].kind == "category_path"
    assert settings.features.interaction.negative_types == ["negative_view"]
    assert settings.publish.materialize == "auto" and settings.publish.legacy_user_encoder
    check_definitions(open_feature_store(settings), settings)


def test_changed_and_new_products_are_online_after_the_next_publication(
    published: Published, shop: OldShop, seaweedfs: SeaweedFS, encode: Any
) -> None:
    """A price that changed without a newer time would be missed by an incremental materialisation alone."""
    table = shop.tables["recommendation_items"]
    changed = table.copy()
    changed.loc[3, "actual_price"] = 12345.5
    new = table.iloc[[0]].assign(item_id="B_NEW", product_name="Brand new", arrival_date=pd.Timestamp("2026-01-02"))
    file = shop.repo / "data" / "recommendation_items.parquet"
    pd.concat([changed, new]).to_parquet(file, index=False)
    try:
        run_candidates(published.settings, publish=True)
    finally:
        table.to_parquet(file, index=False)
    backend = OldBackend(str(shop.repo), shop.environment["DATABASE_URL"], seaweedfs.filesystem(), encode)
    first, second = backend.products([table["item_id"][3], "B_NEW"])
    assert first["actual_price"] == 12345.5 and second["product_name"] == "Brand new"


def test_the_doctor_names_what_the_backend_will_miss(published: Published) -> None:
    settings = published.settings
    storage, live = open_object_store(settings), open_version_database(settings).live()
    assert "s3://user-encoder: fitted to new users" in check_user_encoder_objects(storage, settings, live)
    without = settings.model_copy(
        update={"publish": settings.publish.model_copy(update={"legacy_user_encoder": False})}
    )
    assert "publish.legacy_user_encoder is off" in check_user_encoder_objects(storage, without, live)
    assert "has no user-encoder-999.pth" in check_user_encoder_objects(storage, settings, "999")
