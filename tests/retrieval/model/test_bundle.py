"""A bundle comes back as it was, and a changed file is refused by name; real towers and a real preprocessor."""

import dataclasses
import io
import json
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
import safetensors.torch
import torch

from rec_ray.errors import BundleError
from rec_ray.retrieval.features.preprocessing import Preprocessor, collect_statistics, fit_features
from rec_ray.retrieval.model.bundle import EVALUATED, FILES, TwoTowerBundle
from rec_ray.retrieval.model.towers import build_two_tower
from rec_ray.schema import FeatureDeclaration
from tests.retrieval.tensors import to_batch

ITEMS = pa.table({"price": [1.0, 2.0, 30.0], "colour": ["rot", "grün", "rot"], "brand": ["x", "y", "z"]})


def make_bundle(seed: int = 0, embedding_size: int = 8, similarity: str = "cosine") -> TwoTowerBundle:
    # The order of the features is not that of the alphabet: it decides which token is which and must survive.
    declared = {
        "price": FeatureDeclaration("numeric"),
        "colour": FeatureDeclaration("categorical"),
        "brand": FeatureDeclaration("categorical"),
    }
    items = fit_features(collect_statistics(ITEMS, declared), declared, text_buckets=0, max_vocabulary=10)
    users = fit_features(collect_statistics(ITEMS, {}), {}, text_buckets=0, max_vocabulary=10)
    preprocessor = Preprocessor(users, items, ("a", "b", "ç"), ("cart", "purchase"))
    arguments = {
        "vocabulary_size": preprocessor.vocabulary_size,
        "item_shape": dataclasses.asdict(items.shape),
        "user_shape": dataclasses.asdict(users.shape),
        "embedding_size": embedding_size,
        "similarity": similarity,
        "history_length": 4,
        "event_types": 3,
        "layers": 1,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build_two_tower(**arguments)
    metadata = {"metrics": {"model": {"recall@10": 0.5}}, "created_at": "2026-01-02T03:04:05+00:00"}
    return TwoTowerBundle(model, arguments, preprocessor, metadata)


def embed(bundle: TwoTowerBundle) -> torch.Tensor:
    features = to_batch(bundle.preprocessor.items.encode(ITEMS))
    index = torch.from_numpy(bundle.preprocessor.encode_item_ids(pa.array(["a", "ç", "new"]))).long()
    with torch.no_grad():
        return bundle.model.eval().embed_items(index, features)


@pytest.fixture(scope="module")
def bundle() -> TwoTowerBundle:
    return make_bundle()


@pytest.mark.parametrize("similarity", ["cosine", "dot"])
def test_a_bundle_comes_back_and_embeds_the_same(similarity: str) -> None:
    bundle = make_bundle(similarity=similarity)
    bundle.model.train()
    files = bundle.to_files()
    assert sorted(files) == sorted(FILES)
    assert bundle.model.training, "writing leaves the model as it is"
    found = TwoTowerBundle.from_files(files)
    assert torch.equal(embed(found), embed(bundle))
    assert found.preprocessor == bundle.preprocessor
    assert found.preprocessor.items.names == ["price", "colour", "brand"]
    assert found.arguments == bundle.arguments
    assert found.metadata == {**bundle.metadata, "format_version": 1}
    assert (found.similarity, found.embedding_size, found.model.training) == (similarity, 8, False)


def test_the_same_bundle_gives_the_same_bytes(bundle: TwoTowerBundle) -> None:
    files = bundle.to_files()
    assert make_bundle().to_files() == files
    assert TwoTowerBundle.from_files(files).to_files() == files
    assert make_bundle(seed=1).to_files()["weights.safetensors"] != files["weights.safetensors"]


def test_a_pickled_bundle_lies_in_the_memory_of_its_arrays(bundle: TwoTowerBundle) -> None:
    checked = dataclasses.replace(bundle, evaluated=make_bundle(seed=1).model)
    buffers: list[pickle.PickleBuffer] = []
    data = pickle.dumps(checked, protocol=5, buffer_callback=buffers.append)
    shared = [bytearray(buffer.raw()) for buffer in buffers]
    found = pickle.loads(data, buffers=shared)
    assert found.to_files() == checked.to_files()
    assert not found.model.training
    before = embed(found)
    for buffer in shared:
        buffer[:] = bytes(len(buffer))
    assert before.abs().sum() > 0
    assert not any(weights.abs().sum() for weights in found.model.state_dict().values()), "weights were copied"
    assert checked.without_evaluated().to_files() == bundle.to_files()


def test_a_pickled_bundle_may_lie_in_memory_that_nobody_writes(bundle: TwoTowerBundle) -> None:
    buffers: list[pickle.PickleBuffer] = []
    data = pickle.dumps(bundle, protocol=5, buffer_callback=buffers.append)
    found = pickle.loads(data, buffers=[bytes(buffer.raw()) for buffer in buffers])
    assert torch.equal(embed(found), embed(bundle))


def test_reading_a_bundle_does_not_move_the_random_numbers(bundle: TwoTowerBundle) -> None:
    files = bundle.to_files()
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    TwoTowerBundle.from_files(files)
    assert torch.equal(torch.rand(2), expected)


@pytest.mark.usefixtures("processes")
@pytest.mark.parametrize("history", ["none", "mean", "transformer"])
def test_reading_a_bundle_does_not_load_the_compiler(tmp_path: Path, history: str) -> None:
    arguments = {**make_bundle().arguments, "history": history, "time_gaps": True}
    files = dataclasses.replace(make_bundle(), model=build_two_tower(**arguments), arguments=arguments).to_files()
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    program = (
        "import pathlib, sys\n"
        "from rec_ray.retrieval.model.bundle import TwoTowerBundle\n"
        "TwoTowerBundle.from_files({path.name: path.read_bytes() for path in pathlib.Path(sys.argv[1]).iterdir()})\n"
        "assert 'torch._dynamo' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=True)


def test_a_metric_that_is_no_number_is_null(bundle: TwoTowerBundle) -> None:
    odd = dataclasses.replace(bundle, metadata={"metrics": {"a": float("nan"), "b": [float("inf"), 1.0]}})
    assert json.loads(odd.to_files()["metadata.json"])["metrics"] == {"a": None, "b": [None, 1.0]}


def test_what_cannot_be_stored_is_refused_when_writing(bundle: TwoTowerBundle) -> None:
    with pytest.raises(BundleError, match=r"metadata\.json cannot be written as JSON"):
        dataclasses.replace(bundle, metadata={"path": Path("x")}).to_files()
    diverged = make_bundle()
    with torch.no_grad():
        diverged.model.item_tower.ids.weight[1, 1] = float("nan")
    with pytest.raises(BundleError, match=r"'item_tower\.ids\.weight' hold NaN"):
        diverged.to_files()


def test_towers_and_preprocessor_of_two_trainings_are_refused(bundle: TwoTowerBundle) -> None:
    fewer = dataclasses.replace(bundle.preprocessor, item_ids=("a", "b"))
    with pytest.raises(BundleError, match="item id table: the towers have 4, the preprocessor gives 3"):
        dataclasses.replace(bundle, preprocessor=fewer).to_files()
    files = bundle.to_files()
    state = bundle.preprocessor.to_dict()
    for key, value, said in (
        ("item_ids", ["a"], "item id table"),
        ("items", state["users"], "item features"),
        ("users", state["items"], "user features"),
        ("event_types", ["cart"], "event types"),
    ):
        changed = {**files, "preprocessor.json": json.dumps({**state, key: value}).encode()}
        with pytest.raises(BundleError, match=f"do not fit: .*{said}"):
            TwoTowerBundle.from_files(changed)


def edited(name: str, change: Callable[[dict], object]) -> Callable[[dict[str, bytes]], None]:
    def edit(files: dict[str, bytes]) -> None:
        value = json.loads(files[name])
        change(value)
        files[name] = json.dumps(value).encode()

    return edit


def reweighted(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[dict[str, bytes]], None]:
    def edit(files: dict[str, bytes]) -> None:
        weights = safetensors.torch.load(files["weights.safetensors"])
        change(weights)
        files["weights.safetensors"] = safetensors.torch.save(weights)

    return edit


IDS = "item_tower.ids.weight"


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda files: files.pop("preprocessor.json"), r"lacks the files 'preprocessor\.json'"),
        (lambda files: files.update({"model.pkl": b"x"}), r"unknown in format version 1: 'model\.pkl'"),
        (lambda files: files.update({"model.json": b"{"}), r"model\.json is not valid JSON"),
        (lambda files: files.update({"model.json": b"\xff\xfe{"}), r"model\.json is not valid JSON"),
        (lambda files: files.update({"model.json": b"[" * 100_000}), r"model\.json is not valid JSON"),
        (lambda files: files.update({"metadata.json": b"[]"}), r"metadata\.json holds a list"),
        (edited("model.json", lambda v: v.update(format_version=2)), r"model\.json is of format version 2.*reads 1"),
        (edited("metadata.json", lambda v: v.pop("format_version")), r"metadata\.json is of format version None"),
        (edited("model.json", lambda v: v.update(architecture="tree")), "architecture 'tree'"),
        (edited("model.json", lambda v: v.pop("arguments")), "with its arguments"),
        (edited("model.json", lambda v: v["arguments"].update(wings=2)), r"model\.json holds arguments.*wings"),
        (edited("model.json", lambda v: v["arguments"].update(similarity="taxi")), r"model\.json .*taxi"),
        (edited("model.json", lambda v: v["arguments"].pop("item_shape")), r"model\.json holds arguments.*item_shape"),
        (edited("model.json", lambda v: v["arguments"].update(embedding_size=16)), r"does not fit.*\[.*8\].*\[.*16\]"),
        (edited("model.json", lambda v: v["arguments"].update(layers=2)), r"missing weights 'user_tower.history"),
        (edited("preprocessor.json", lambda v: v.pop("items")), r"preprocessor\.json cannot be used.*items"),
        (
            edited("preprocessor.json", lambda v: v["items"].update(declarations=[])),
            r"preprocessor\.json cannot be used",
        ),
        (reweighted(lambda w: w.pop(IDS)), f"missing weights '{IDS}'"),
        (reweighted(lambda w: w.update(more=torch.ones(1))), "unknown weights 'more'"),
        (reweighted(lambda w: w.update({IDS: w[IDS][:2].clone()})), rf"'{IDS}' has shape \[2, 8\].*\[4, 8\]"),
        (reweighted(lambda w: w.update({IDS: w[IDS].half()})), "torch.float16"),
        (reweighted(lambda w: w[IDS].fill_(float("inf"))), f"'{IDS}' hold NaN or infinite"),
        (
            lambda files: files.update({"weights.safetensors": files["weights.safetensors"][:-3]}),
            "not a safetensors file",
        ),
        (lambda files: files.update({"weights.safetensors": b""}), "not a safetensors file"),
    ],
)
def test_a_damaged_bundle_is_refused_by_name(
    bundle: TwoTowerBundle, damage: Callable[[dict[str, bytes]], object], said: str
) -> None:
    files = bundle.to_files()
    damage(files)
    with pytest.raises(BundleError, match=said):
        TwoTowerBundle.from_files(files)


class Bomb:
    """Makes a file when it is unpickled."""

    def __init__(self, file: str) -> None:
        self.file = file

    def __reduce__(self) -> tuple:
        return open, (self.file, "w")


@pytest.mark.parametrize("name", FILES)
def test_a_planted_pickle_is_never_loaded(bundle: TwoTowerBundle, tmp_path: Path, name: str) -> None:
    exploded = tmp_path / "exploded"
    checkpoint = io.BytesIO()
    torch.save({"weights": Bomb(str(exploded))}, checkpoint)
    for planted in (pickle.dumps(Bomb(str(exploded))), checkpoint.getvalue()):
        with pytest.raises(BundleError, match=name):
            TwoTowerBundle.from_files({**bundle.to_files(), name: planted})
        assert not exploded.exists()
    pickle.loads(pickle.dumps(Bomb(str(exploded))))
    assert exploded.exists(), "the bomb itself works"


def test_the_towers_before_a_refit_travel_along(bundle: TwoTowerBundle) -> None:
    both = dataclasses.replace(bundle, evaluated=make_bundle(seed=1).model)
    files = both.to_files()
    assert sorted(files) == sorted((*FILES, EVALUATED))
    found = TwoTowerBundle.from_files(files)
    assert found.evaluated is not None and not found.evaluated.training
    assert torch.equal(found.evaluated.item_tower.ids.weight, make_bundle(seed=1).model.item_tower.ids.weight)
    assert torch.equal(embed(found), embed(bundle))
    files[EVALUATED] = files[EVALUATED][:-5]
    with pytest.raises(BundleError, match=EVALUATED):
        TwoTowerBundle.from_files(files)
