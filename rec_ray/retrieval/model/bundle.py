"""A trained model with everything that was fitted for it, as a handful of files in memory.

A `TwoTowerBundle` is written to bytes and rebuilt from them, and every part is checked against the others. The weights
are safetensors and the rest is JSON, so that no file is ever unpickled. The caller stores the files: a serving backend
that reads them from anywhere can call `from_files` and embed. Between the processes of a program a bundle is pickled as
arrays, which may be in shared memory.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import safetensors.torch
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from torch import nn
from torch.overrides import TorchFunctionMode

from rec_ray.errors import BundleError, list_names
from rec_ray.retrieval.features.preprocessing import Preprocessor
from rec_ray.retrieval.json_values import replace_non_finite
from rec_ray.retrieval.model.towers import TwoTower, build_two_tower
from rec_ray.retrieval.search.float32 import as_tensor
from rec_ray.schema import BUNDLE_METADATA

FORMAT_VERSION = 1
ARCHITECTURE = "two_tower"

WEIGHTS = "weights.safetensors"
MODEL = "model.json"
PREPROCESSOR = "preprocessor.json"
METADATA = BUNDLE_METADATA
FILES = (WEIGHTS, MODEL, PREPROCESSOR, METADATA)
EVALUATED = "evaluated.safetensors"
"""Optional file: weights from before the refit."""


@dataclass(frozen=True, eq=False)
class TwoTowerBundle:
    """Towers, preprocessor, architecture arguments and metadata of a trained model.

    model: on the CPU and in evaluation mode if it comes from `from_files`.
    arguments: arguments of `build_two_tower`.
    metadata: metrics, range of the data, package versions, `created_at`; JSON values.
    evaluated: the towers before the refit with the held-out events, or None without a refit. The metrics belong to
    them, and a warm start from them has not seen the held-out events.
    """

    model: TwoTower
    arguments: Mapping[str, Any]
    preprocessor: Preprocessor
    metadata: Mapping[str, Any]
    evaluated: TwoTower | None = None

    @property
    def similarity(self) -> str:
        """Similarity of user and item vectors, `cosine` or `dot`; the vector index of a store must use the same."""
        return self.model.similarity

    @property
    def embedding_size(self) -> int:
        """Dimensions of user and item vectors."""
        return self.model.item_tower.ids.embedding_dim

    def without_evaluated(self) -> TwoTowerBundle:
        """Return the bundle without the weights from before its refit, for callers that only embed."""
        return self if self.evaluated is None else replace(self, evaluated=None)

    def to_files(self) -> dict[str, bytes]:
        """Return the files of the bundle, `FILES` and optionally `EVALUATED`; the same bundle gives the same bytes.

        A metric that is not finite is stored as null, because JSON has no such numbers.

        Raises:
            BundleError: a weight is not finite, a part is not JSON, or preprocessor and towers do not fit.
        """
        _check_fit(self.model, self.arguments, self.preprocessor)
        weights = {WEIGHTS: _weights_of(self.model)}
        if self.evaluated is not None:
            weights[EVALUATED] = _weights_of(self.evaluated)
        model = {
            "format_version": FORMAT_VERSION,
            "architecture": ARCHITECTURE,
            "arguments": dict(self.arguments),
        }
        metadata = {**replace_non_finite(self.metadata), "format_version": FORMAT_VERSION}
        return {
            **{name: safetensors.torch.save(tensors) for name, tensors in weights.items()},
            MODEL: _to_json(model, MODEL),
            PREPROCESSOR: _to_json(self.preprocessor.to_dict(), PREPROCESSOR),
            METADATA: _to_json(metadata, METADATA),
        }

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle weights as arrays; if those are in shared memory, processes read one copy in place.

        The unpickled bundle is in evaluation mode, and its weights may be read-only.

        Raises:
            BundleError: a weight is not finite.
        """
        models = [None if one is None else _arrays_of(one) for one in (self.model, self.evaluated)]
        return _rebuild, (*models, dict(self.arguments), self.preprocessor, dict(self.metadata))

    @classmethod
    def from_files(cls, files: Mapping[str, bytes]) -> TwoTowerBundle:
        """Rebuild a bundle; the state of torch's random generator stays the same.

        Raises:
            BundleError: a file is missing, unknown, damaged or of another format version, or the weights do not fit the
            architecture; the message names the file.
        """
        missing = [name for name in FILES if name not in files]
        if missing:
            raise BundleError(f"the model lacks the files {list_names(missing)}; it has {list_names(sorted(files))}")
        unknown = sorted(set(files) - {*FILES, EVALUATED})
        if unknown:
            raise BundleError(
                f"the model has files that are unknown in format version {FORMAT_VERSION}: {list_names(unknown)}"
            )
        description = _from_json(files[MODEL], MODEL)
        metadata = _from_json(files[METADATA], METADATA)
        for name, value in ((MODEL, description), (METADATA, metadata)):
            if value.get("format_version") != FORMAT_VERSION:
                raise BundleError(
                    f"{name} is of format version {value.get('format_version')!r}, this program reads "
                    f"{FORMAT_VERSION}; use the rec_ray that wrote the model, or train again"
                )
        if description.get("architecture") != ARCHITECTURE or not isinstance(description.get("arguments"), dict):
            raise BundleError(
                f"{MODEL} describes the architecture {description.get('architecture')!r}; expected {ARCHITECTURE!r} "
                "with its arguments"
            )
        arguments: dict[str, Any] = description["arguments"]
        model = _build(arguments)
        _load_weights(model, files[WEIGHTS], WEIGHTS)
        evaluated = None
        if EVALUATED in files:
            evaluated = _build(arguments).eval()
            _load_weights(evaluated, files[EVALUATED], EVALUATED)
        preprocessor = _load_preprocessor(files[PREPROCESSOR])
        _check_fit(model, arguments, preprocessor)
        return cls(model.eval(), arguments, preprocessor, metadata, evaluated)


def as_evaluated(bundle: TwoTowerBundle) -> TwoTowerBundle:
    """Return a stored bundle with the weights from before its refit, if there was one; those have not seen its test
    events.
    """
    return bundle if bundle.evaluated is None else replace(bundle, model=bundle.evaluated, evaluated=None)


class _SkipInit(TorchFunctionMode):
    """Skips the initialisation of new weights: on the meta device, torch 2.13 imports its compiler to draw them."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == nn.init.__name__:
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return func(*args, **kwargs)


def _build(arguments: dict[str, Any]) -> TwoTower:
    try:
        # Weights without memory or random numbers; the stored weights replace them.
        with torch.device("meta"), _SkipInit():
            return build_two_tower(**arguments)
    except (TypeError, ValueError, KeyError, RuntimeError) as error:
        raise BundleError(f"{MODEL} holds arguments that are invalid for the towers: {error}") from error


def _arrays_of(model: TwoTower) -> dict[str, NDArray[Any]]:
    return {name: tensor.numpy() for name, tensor in _weights_of(model).items()}


def _rebuild(
    weights: Mapping[str, NDArray[Any]],
    evaluated: Mapping[str, NDArray[Any]] | None,
    arguments: dict[str, Any],
    preprocessor: Preprocessor,
    metadata: dict[str, Any],
) -> TwoTowerBundle:
    def model(arrays: Mapping[str, NDArray[Any]]) -> TwoTower:
        built = _build(arguments)
        built.load_state_dict({name: as_tensor(array) for name, array in arrays.items()}, assign=True)
        return built.eval()

    checked = None if evaluated is None else model(evaluated)
    return TwoTowerBundle(model(weights), arguments, preprocessor, metadata, checked)


def _load_preprocessor(data: bytes) -> Preprocessor:
    state = _from_json(data, PREPROCESSOR)
    try:
        return Preprocessor.from_dict(state)
    except (BundleError, TypeError, ValueError, KeyError, AttributeError) as error:
        raise BundleError(f"{PREPROCESSOR} cannot be used: {error}") from error


def _check_fit(model: TwoTower, arguments: Mapping[str, Any], preprocessor: Preprocessor) -> None:
    """Raise BundleError if towers and preprocessor have different sizes, and so come from different trainings."""
    event_types = arguments.get("event_types", 1)
    pairs = {
        "rows of the item id table": (model.item_tower.ids.num_embeddings, preprocessor.vocabulary_size),
        "item features": (model.item_tower.features.shape, preprocessor.items.shape),
        "user features": (model.user_tower.features.shape, preprocessor.users.shape),
        "event types": (event_types, len(preprocessor.event_types) + 1 if event_types > 1 else event_types),
    }
    for part, (built, fitted) in pairs.items():
        if built != fitted:
            raise BundleError(
                f"the towers and the preprocessor do not fit: {part}: the towers have {built}, "
                f"the preprocessor gives {fitted}"
            )


def _weights_of(model: TwoTower) -> dict[str, torch.Tensor]:
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in sorted(model.state_dict().items())}
    _check_finite(weights)
    return weights


def _load_weights(model: TwoTower, data: bytes, file: str) -> None:
    try:
        weights = safetensors.torch.load(data)
    except (SafetensorError, ValueError, KeyError) as error:
        raise BundleError(f"{file} is not a safetensors file: {error}") from error
    expected = model.state_dict()
    missing, unknown = sorted(set(expected) - set(weights)), sorted(set(weights) - set(expected))
    if missing or unknown:
        raise BundleError(
            f"{file} does not fit the architecture in {MODEL}: "
            f"missing weights {list_names(missing)}, unknown weights {list_names(unknown)}"
        )
    for name, tensor in expected.items():
        found = weights[name]
        if found.shape != tensor.shape or found.dtype != tensor.dtype:
            raise BundleError(
                f"{file} does not fit the architecture in {MODEL}: {name!r} has shape {list(found.shape)} of "
                f"{found.dtype}, expected {list(tensor.shape)} of {tensor.dtype}"
            )
    _check_finite(weights)
    model.load_state_dict(weights, assign=True)


def _check_finite(weights: Mapping[str, torch.Tensor]) -> None:
    # Fast path: a finite sum has finite terms.
    suspects = {name: tensor for name, tensor in weights.items() if not math.isfinite(tensor.sum())}
    broken = [name for name, tensor in suspects.items() if not bool(torch.isfinite(tensor).all())]
    if broken:
        raise BundleError(
            f"the weights {list_names(broken)} hold NaN or infinite numbers; train with a lower learning rate"
        )


def _to_json(value: Mapping[str, Any], name: str) -> bytes:
    try:
        # The order of keys is kept, because declared features are encoded in this order.
        # Vocabularies can be long, and JSON without line breaks is written faster.
        indent = None if name == PREPROCESSOR else 2
        return (json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False) + "\n").encode()
    except (TypeError, ValueError) as error:
        raise BundleError(f"{name} cannot be written as JSON: {error}") from error


def _from_json(data: bytes, name: str) -> dict[str, Any]:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{name} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise BundleError(f"{name} holds a {type(value).__name__}; expected an object")
    return value
