"""The manifests of cluster/ for several tests: rendered by `kubectl kustomize`, and validated strictly."""

import functools
import gzip
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import yaml

ROOT = Path(__file__).parents[1]
CLUSTER = ROOT / "cluster"
BASE = CLUSTER / "base"
OVERLAYS = sorted(folder.name for folder in (CLUSTER / "overlays").iterdir())
KUBERNETES = ("1.31", "1.32", "1.33", "1.34")
KUBERAY = ("1.6.2", "1.7.0")
"""Versions whose schemas every manifest must satisfy."""

# `validate` reads the definitions of a version, a file of megabytes, anew for every object.
kubernetes_validate.utils.schema_contents = functools.cache(kubernetes_validate.utils.schema_contents)

_NAMED = {
    "type": "object",
    "required": ["apiVersion", "kind", "metadata", "spec"],
    "properties": {name: {} for name in ("apiVersion", "kind", "metadata", "spec")},
    "additionalProperties": False,
}
FOREIGN = {"monitoring.coreos.com/v1": _NAMED, "route.openshift.io/v1": _NAMED}
"""Kinds of other operators, of which only the frame is validated."""


@functools.cache
def rendered(overlay: str) -> str:
    """Return what `kubectl kustomize` makes of an overlay."""
    path = f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin"
    kubectl = shutil.which("kubectl", path=path)
    assert kubectl, "`make install` puts kubectl into .venv/bin"
    done = subprocess.run(
        [kubectl, "kustomize", str(CLUSTER / "overlays" / overlay)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def objects(overlay: str) -> list[dict[str, Any]]:
    return [found for found in yaml.load_all(rendered(overlay), Loader=yaml.CSafeLoader) if found]


def the(overlay: str, kind: str, name: str = "rec-ray") -> dict[str, Any]:
    (found,) = [each for each in objects(overlay) if each["kind"] == kind and each["metadata"]["name"] == name]
    return found


@functools.cache
def schema_of(kind: str, kuberay: str) -> dict[str, Any]:
    """Return the schema of a kind at a tag of KubeRay, with unknown fields refused."""

    def strict(schema: Any) -> Any:
        if isinstance(schema, list):
            return [strict(each) for each in schema]
        if not isinstance(schema, dict):
            return schema
        found = {key: strict(value) for key, value in schema.items()}
        closed = "properties" in schema and not schema.get("x-kubernetes-preserve-unknown-fields")
        if closed and "additionalProperties" not in schema and isinstance(schema["properties"], dict):
            found["additionalProperties"] = False
        return found

    text = gzip.decompress((ROOT / "tests" / "cluster" / "kuberay" / kuberay / f"{kind}.json.gz").read_bytes())
    schema: dict[str, Any] = strict(json.loads(text))
    return schema


def validate(manifest: dict[str, Any]) -> None:
    """Raise a ValidationError when a version of Kubernetes or KubeRay would refuse it or drop a field of it."""
    if manifest["apiVersion"] in FOREIGN:
        jsonschema.Draft7Validator(FOREIGN[manifest["apiVersion"]]).validate(manifest)
        return
    checked = [manifest]
    if manifest["apiVersion"].startswith("ray.io/"):
        assert manifest["apiVersion"] == "ray.io/v1"
        for kuberay in KUBERAY:
            validator_of(manifest["kind"], kuberay).validate(manifest)
        metadata = {"name": "pod"}
        checked = [{"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": pod} for pod in pods_of(manifest)]
    for each in checked:
        for kubernetes in KUBERNETES:
            kubernetes_validate.validate(each, kubernetes, strict=True)


@functools.cache
def validator_of(kind: str, kuberay: str) -> jsonschema.Draft7Validator:
    return jsonschema.Draft7Validator(schema_of(kind, kuberay))


def pods_of(manifest: Any) -> Iterator[dict[str, Any]]:
    """Yield every pod specification in a manifest."""
    if isinstance(manifest, dict):
        if isinstance(manifest.get("containers"), list):
            yield manifest
        for value in manifest.values():
            yield from pods_of(value)
    elif isinstance(manifest, list):
        for value in manifest:
            yield from pods_of(value)
