"""`features: auto`: a run decides the features itself, once, and what is declared stays."""

import numpy as np
import pytest
from feast_shops import films

from rec_ray.config import Settings
from rec_ray.config.decided_features import with_stored_features
from rec_ray.config.loading import load_settings
from rec_ray.errors import ConfigError
from rec_ray.feature_store.repository import open_store
from rec_ray.preflight import complete_settings, find_faults
from rec_ray.sample.feast_project import init_from_feast

VIEWS = {
    "user_key": "userid",
    "item_key": "movie_id",
    "user_views": ["viewer_features"],
    "item_views": ["film_features"],
    "events_view": "ratings",
}


@pytest.fixture(scope="module")
def place(tmp_path_factory, make_repo):
    folder = tmp_path_factory.mktemp("auto")
    make_repo(folder / "repo", films(folder, np.random.default_rng(0)).objects)
    return folder


def test_a_run_decides_as_init_does(place, caplog):
    caplog.set_level("INFO")
    store = open_store(place / "repo")
    settings = Settings.model_validate({"feast": VIEWS, "features": "auto"})
    decided = complete_settings(store, settings)
    of_init = load_settings(init_from_feast(place / "shop", place / "repo").settings).features
    assert decided.features.model_copy(update={"auto": False}) == of_init
    assert set(decided.features.item) == {"title", "genres"} and decided.features.item_name == "title"
    assert "features: auto: viewer_features.age: numeric (a number)" in caplog.text
    assert find_faults(store, decided) == []


def test_declared_features_and_meanings_stay(place):
    store = open_store(place / "repo")
    declared = {"auto": True, "user": {"age": {"kind": "categorical"}}, "interaction": {"value_field": None}}
    decided = complete_settings(store, Settings.model_validate({"feast": VIEWS, "features": declared})).features
    assert {name: each.kind for name, each in decided.user.items()} == {"age": "categorical"}
    assert set(decided.item) == {"title", "genres"}
    assert (decided.interaction.type_field, decided.interaction.value_field) == (None, None)


def test_the_decisions_are_kept_for_the_attempts_of_a_run(place):
    store, kept = open_store(place / "repo"), []
    settings = Settings.model_validate({"feast": VIEWS, "features": {"auto": True}})

    def once(decide):
        kept[:] = kept or [decide()]
        return kept[0]

    first = complete_settings(store, settings, once)
    kept[0].values["item"].pop("genres")
    assert set(complete_settings(store, settings, once).features.item) == {"title"} < set(first.features.item)
    assert complete_settings(store, first.model_copy(update={"features": Settings().features})).features.user == {}


def test_a_stored_model_brings_the_features_that_were_decided_for_it(place):
    settings = Settings.model_validate({"feast": VIEWS, "features": "auto"})
    decided = complete_settings(open_store(place / "repo"), settings)
    metadata = {"settings": decided.model_dump(mode="json")}
    assert with_stored_features(settings, metadata).features == decided.features
    assert with_stored_features(Settings(), metadata) == Settings()
    # Users who are excluded after the training stay excluded.
    excluding = {"auto": True, "interaction": {"exclude_users": ["7"]}}
    later = with_stored_features(Settings.model_validate({"feast": VIEWS, "features": excluding}), metadata).features
    assert later.interaction.exclude_users == ["7"] and later.item == decided.features.item


def test_faults_of_the_views_are_told_before_anything_is_decided(place):
    wrong = Settings.model_validate(
        {"feast": {**VIEWS, "user_views": ["viewers"], "user_key": "uid"}, "features": "auto"}
    )
    with pytest.raises(ConfigError, match="2 faults, found before anything was started"):
        complete_settings(open_store(place / "repo"), wrong)


def test_the_short_form_takes_further_settings(tmp_path):
    (tmp_path / "rec_ray.yaml").write_text("features: auto\n")
    features = load_settings(tmp_path / "rec_ray.yaml", ["features.text_buckets=64"], {}).features
    assert (features.auto, features.text_buckets) == (True, 64)
