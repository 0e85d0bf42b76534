"""Kubernetes manifests for given settings, for machines without kustomize or without a copy of cluster/ to edit.

In: settings and options that are no settings (name, namespace, image, schedule, queue). Out: YAML text, the manifests
of `cluster/` combined as its overlays combine them. The values stay in `cluster/`; this module uses only their
structure, and connects to no cluster.
"""

from __future__ import annotations

import hashlib
import json
import re
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from rec_ray.cli.pod_sizes import PodSizes, cpus_of, fit_workers
from rec_ray.config import SECRETS, SQLITE_ADDRESS, Settings
from rec_ray.errors import ConfigError, list_names

KINDS = ("rayjob", "raycluster", "cronjob", "raycronjob")
GPU_IMAGE = "-cu130"
"""Suffix of the tag of an image with PyTorch for GPUs."""
NAME_LIMITS = {"rayjob": 47, "raycluster": 53, "cronjob": 34, "raycronjob": 36}
"""Characters of a name: KubeRay's limits for its kinds; a CronJob's RayJob is named `<name>-<minutes>-run`."""
_NAME = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
_SECRET_KEY = re.compile(r"password|secret|token|access_?key", re.IGNORECASE)
_PASSWORD_IN_URL = re.compile(r"://[^/@:]*:[^$/@][^/@]*@")

Manifest = dict[str, Any]


@dataclass(frozen=True)
class RenderOptions:
    """Options that are no settings.

    name: name of the objects, and of a RayJob's run; None: a new one for a RayJob, else `rec-ray`.
    image: None takes that of the manifests. grow_to: maximum number of workers; None: a fixed number, as many as train.
    queue: a LocalQueue of Kueue. schedule: a cron expression, UTC.
    sizes: sizes of the worker pods; None takes those of the manifests.
    """

    name: str | None = None
    namespace: str = "rec-ray"
    image: str | None = None
    grow_to: int | None = None
    queue: str | None = None
    schedule: str | None = None
    sizes: PodSizes | None = None


def render_manifests(kind: str, settings: Settings, wishes: RenderOptions) -> str:
    """Return the manifests of one way to run, ready for `kubectl apply -f -`.

    Raises:
        ConfigError: the kind is unknown, the options exclude each other, or the settings name files of this machine.
    """
    if kind not in KINDS:
        raise ConfigError(f"cannot render {kind!r}; known are {list_names(KINDS)}")
    if wishes.queue and (kind not in ("rayjob", "cronjob") or _grows(settings, wishes)):
        raise ConfigError("--queue is for a rayjob or a cronjob of fixed size: Kueue refuses a cluster that grows")
    if wishes.schedule and kind not in ("cronjob", "raycronjob"):
        raise ConfigError(f"--schedule is for a cronjob or a raycronjob, not for a {kind}")
    name = wishes.name or "rec-ray"
    if len(name) > NAME_LIMITS[kind] or not _NAME.fullmatch(name):
        raise ConfigError(
            f"--name {name} is no name of a {kind}: at most {NAME_LIMITS[kind]} lower-case letters, digits and dashes, "
            "with a letter first"
        )
    cluster, extra = _cluster(settings, wishes)
    config = _config_map(_growing(settings, wishes), cluster)
    objects = [*_templates("base/serviceaccount.yaml"), *extra, *_templates("base/networkpolicy.yaml"), config]
    objects += [cluster] if kind == "raycluster" else _job(kind, cluster, wishes)
    for found in objects:
        found["metadata"]["namespace"] = wishes.namespace
        for subject in found.get("subjects", []):
            subject["namespace"] = wishes.namespace
    return yaml.dump_all(objects, Dumper=_Dumper, sort_keys=False, width=1000)


def _grows(settings: Settings, wishes: RenderOptions) -> bool:
    """Return True if the number of pods follows the work."""
    return wishes.grow_to is not None or settings.train.least_workers < settings.train.most_workers


def _cluster(settings: Settings, wishes: RenderOptions) -> tuple[Manifest, list[Manifest]]:
    """Return the RayCluster and the other objects that it needs."""
    train = settings.train
    (cluster,) = _templates("base/raycluster.yaml")
    cluster["metadata"]["name"] = wishes.name or cluster["metadata"]["name"]
    (workers,) = cluster["spec"]["workerGroupSpecs"]
    extra: list[Manifest] = []
    # One pod for each training worker.
    resources = workers["template"]["spec"]["containers"][0]["resources"]
    resources["requests"]["cpu"] = resources["limits"]["cpu"] = str(cpus_of(settings))
    if wishes.sizes:
        fit_workers(workers, wishes.sizes)
    if wishes.grow_to is not None and wishes.grow_to < train.most_workers:
        raise ConfigError(f"--grow-to {wishes.grow_to} is less than train.num_workers {train.most_workers}")
    if _grows(settings, wishes):
        _patch(cluster, "components/autoscaling/raycluster.yaml")
        extra = _templates("components/autoscaling/serviceaccount.yaml")
        _drop_variable(cluster, "REC_RAY__TRAIN__NUM_WORKERS")  # the ConfigMap has the range, see _growing
    workers["replicas"] = workers["minReplicas"] = train.least_workers
    workers["maxReplicas"] = wishes.grow_to or train.most_workers
    use_gpu = train.use_gpu or settings.candidates.use_gpu
    if use_gpu:
        _patch(cluster, "components/gpu/raycluster.yaml")
    if not train.use_gpu:
        _drop_variable(cluster, "REC_RAY__TRAIN__USE_GPU")
    for group in (cluster["spec"]["headGroupSpec"], workers):
        container = group["template"]["spec"]["containers"][0]
        container["image"] = wishes.image or container["image"] + (GPU_IMAGE if use_gpu else "")
    return cluster, extra


def _drop_variable(cluster: Manifest, name: str) -> None:
    """Remove an environment variable from the head."""
    head = cluster["spec"]["headGroupSpec"]["template"]["spec"]["containers"][0]
    head["env"] = [entry for entry in head["env"] if entry["name"] != name]


def _growing(settings: Settings, wishes: RenderOptions) -> Settings:
    """Return settings under which training uses the workers that `grow_to` allows."""
    train = settings.train
    if wishes.grow_to is None or wishes.grow_to == train.most_workers:
        return settings
    changed = train.model_copy(update={"num_workers": (train.least_workers, wishes.grow_to)})
    changed.__pydantic_fields_set__.add("num_workers")
    grown = settings.model_copy(update={"train": changed})
    grown.__pydantic_fields_set__.add("train")
    return grown


def _job(kind: str, cluster: Manifest, wishes: RenderOptions) -> list[Manifest]:
    """Return the RayJob with the cluster, or the objects that create one every night."""
    (job,) = _templates("components/rayjob/rayjob.yaml")
    image = cluster["spec"]["headGroupSpec"]["template"]["spec"]["containers"][0]["image"]
    job["spec"]["rayClusterSpec"] = cluster["spec"]
    job["spec"]["submitterPodTemplate"]["spec"]["containers"][0]["image"] = image
    if kind == "rayjob":
        if wishes.queue:
            _patch(job, "components/kueue/rayjob.yaml")
            job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] = wishes.queue
        job["metadata"]["name"] = wishes.name or f"rec-ray-{datetime.now(UTC):%Y%m%d-%H%M%S}"
        return [job]
    # Each nightly run has a name of its own, so it needs no --again.
    job["spec"]["entrypoint"] = job["spec"]["entrypoint"].replace(" --again", "")
    (template,) = _templates("components/raycronjob/raycronjob.yaml")
    name = template["metadata"]["name"] = wishes.name or template["metadata"]["name"]
    template["spec"] |= {"jobTemplate": job["spec"]} | ({"schedule": wishes.schedule} if wishes.schedule else {})
    if kind == "raycronjob":
        return [template]
    template["spec"]["suspend"] = True
    nightly, account, role, binding = _templates("components/cronjob/cronjob.yaml")
    nightly["metadata"]["name"] = name
    nightly["spec"]["schedule"] = wishes.schedule or nightly["spec"]["schedule"]
    pod = nightly["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    container = pod["containers"][0]
    container["image"] = image
    container["command"][container["command"].index("--template") + 1] = name
    container["command"] += ["--queue", wishes.queue] if wishes.queue else []
    # Named after the CronJob, so that two of them in a namespace keep their rights.
    scheduler = f"{name}-scheduler"
    for each in (account, role, binding):
        each["metadata"]["name"] = scheduler
    pod["serviceAccountName"] = binding["roleRef"]["name"] = binding["subjects"][0]["name"] = scheduler
    for rule in role["rules"]:
        if "resourceNames" in rule:
            rule["resourceNames"] = [name]
    return [template, nightly, account, role, binding]


def _config_map(settings: Settings, cluster: Manifest) -> Manifest:
    """Return the settings without secrets, feature_store.yaml and the certificates that they name.

    Every pod mounts them as one folder, so the settings name the other two relative to it. The name ends with a hash of
    the content: a ConfigMap of other settings stays for the runs that use it.
    """
    urls = {section: getattr(settings, section).url for section in ("storage", "database", "side_tables")}
    for what, url in ((f"{section}.url", url) for section, url in urls.items() if url):
        if "://" not in url or SQLITE_ADDRESS.match(url) or url.startswith("file:"):
            raise ConfigError(f"{what} {url} is on this machine; the pods of a cluster need one that all of them reach")
    values = settings.model_dump(mode="json", exclude_unset=True)
    for section, key in SECRETS:
        values.get(section, {}).pop(key, None)
    values.get("feast", {}).pop("repo", None)  # feature_repo, the default
    data = {"feature_store.yaml": _feature_store(Path(settings.feast.repo) / "feature_store.yaml")}
    values.get("storage", {}).pop("ca_bundle", None)
    if settings.storage.ca_bundle:
        data["ca_bundle.crt"] = Path(settings.storage.ca_bundle).read_text(encoding="utf-8")
        values["storage"]["ca_bundle"] = "ca_bundle.crt"
    values = {section: content for section, content in values.items() if content}
    data["rec_ray.yaml"] = yaml.safe_dump(values, sort_keys=False)
    name = f"rec-ray-{hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:10]}"
    for group in (cluster["spec"]["headGroupSpec"], *cluster["spec"]["workerGroupSpecs"]):
        volume = next(each for each in group["template"]["spec"]["volumes"] if each["name"] == "settings")["configMap"]
        volume["name"] = name
        if "ca_bundle.crt" in data:
            volume["items"].append({"key": "ca_bundle.crt", "path": "ca_bundle.crt"})
    metadata = {"name": name, "labels": {"app.kubernetes.io/name": "rec-ray"}}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data}


def _feature_store(file: Path) -> str:
    """Return the text of feature_store.yaml if pods can use it and it contains no secret."""
    try:
        text = file.read_text(encoding="utf-8")
        content = yaml.safe_load(text)
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError(f"{file} cannot be read: {getattr(error, 'strerror', None) or 'it is no YAML'}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{file} holds no settings of Feast")
    registry = content.get("registry", {})
    registry = registry if isinstance(registry, dict) else {"path": registry}
    shared = "://" in str(registry.get("path")) or registry.get("registry_type") == "remote"
    online = content.get("online_store") or {}
    if not shared or (isinstance(online, dict) and online.get("type", "sqlite") == "sqlite"):
        raise ConfigError(
            f"{file} names a registry or an online store on this machine; the pods of a cluster need ones that all of "
            "them reach, such as a registry_type sql or remote and an online store of type postgres"
        )
    for key, value in _leaves(content):
        if (_SECRET_KEY.search(key) and "${" not in value) or _PASSWORD_IN_URL.search(value):
            raise ConfigError(
                f"{file} holds the secret {key}, and every user may read a ConfigMap: write ${{NAME}} there, which "
                "Feast takes from the environment, as cluster/base/feature_store.yaml does"
            )
    return text


def _leaves(content: Any, key: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(content, dict):
        for name, value in content.items():
            yield from _leaves(value, str(name))
    elif isinstance(content, list):
        for value in content:
            yield from _leaves(value, key)
    elif isinstance(content, str):
        yield key, content


def _templates(name: str) -> list[Any]:
    """Return the YAML documents of a file of cluster/, in this checkout or among the package's data files."""
    package = Path(__file__).parents[2]
    # An install below a prefix of its own has its data beside its lib/python3.x/site-packages.
    folders = (
        package,
        *(prefix / "share" / "rec_ray" for prefix in package.parents[2:3]),
        Path(sysconfig.get_path("data")) / "share" / "rec_ray",
    )
    file = next(path for folder in folders if (path := folder / "cluster" / name).is_file())
    # safe_load returns a part with two aliases as one object, and a change of it would change both places.
    return [_apart(found) for found in yaml.safe_load_all(file.read_text(encoding="utf-8")) if found]


def _apart(content: Any) -> Any:
    if isinstance(content, dict):
        return {key: _apart(value) for key, value in content.items()}
    return [_apart(value) for value in content] if isinstance(content, list) else content


def _patch(manifest: Manifest, name: str) -> None:
    """Apply a JSON patch (RFC 6902) of cluster/ in which only additions and replacements occur."""
    (changes,) = _templates(name)
    for change in changes:
        *keys, last = [key.replace("~1", "/") for key in change["path"].split("/")[1:]]
        place: Any = manifest
        for key in keys:
            place = place[int(key)] if isinstance(place, list) else place[key]
        if last == "-":
            place.append(change["value"])
        else:
            place[last] = change["value"]


class _Dumper(yaml.SafeDumper):
    """Writes texts of several lines as blocks, and repeated parts in full instead of as aliases."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


_Dumper.add_representer(
    str,
    lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None),
)
