"""The pipeline for Kubeflow Pipelines: a component for each step, which submits a Ray job and follows it.

    pip install 'rec_ray[kubeflow]'
    python cluster/kubeflow/train_workflow.py train_workflow.yaml

In: the address of a standing cluster, the settings file that its pods mount, and settings to override. Out: the version
and the metrics. The pipeline runs in the namespace of the RayCluster, for three reasons: the token's Secret, the short
address, and the NetworkPolicy, which admits jobs from that namespace. The secrets of the stores stay in the pods of the
RayCluster. When a run ends, is cancelled or fails, the exit task stops the Ray jobs that it left running.
"""

# No `from __future__ import annotations`: kfp reads the types of the arguments. Components contain their imports,
# because kfp sends only their text.

import sys
from pathlib import Path
from typing import NamedTuple

import yaml
from kfp import compiler, dsl, kubernetes

BASE = Path(__file__).parents[1] / "base"
CLUSTER = yaml.safe_load((BASE / "raycluster.yaml").read_text(encoding="utf-8"))
IMAGE = CLUSTER["spec"]["headGroupSpec"]["template"]["spec"]["containers"][0]["image"]
ADDRESS = f"http://{CLUSTER['metadata']['name']}-head-svc:8265"
CONFIG = "/etc/rec_ray/rec_ray.yaml"
JOBS = "/app/jobs"


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def train(
    ray_address: str, config: str, settings: list, run_id: str, jobs: str, metrics: dsl.Output[dsl.Metrics]
) -> str:
    """Train, evaluate and store a model; return its version."""
    import sys

    sys.path.insert(0, jobs)
    from submit import ask

    overrides = [word for setting in settings for word in ("--set", setting)]
    report = ask(ray_address, ["rec-ray", "train", "--config", config, "--json", *overrides], f"{run_id}-train")
    for name, value in report["evaluation"]["metrics"]["model"].items():
        metrics.log_metric(name, value)
    return report["version"]


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def candidates(
    version: str,
    ray_address: str,
    config: str,
    settings: list,
    run_id: str,
    jobs: str,
    counts: dsl.Output[dsl.Metrics],
) -> str:
    """Compute and store the recommendations of a version; return it."""
    import sys

    sys.path.insert(0, jobs)
    from submit import ask

    overrides = [word for setting in settings for word in ("--set", setting)]
    command = ["rec-ray", "candidates", version, "--config", config, "--json", *overrides]
    report = ask(ray_address, command, f"{run_id}-candidates")
    for name, value in report["counts"].items():
        counts.log_metric(name, value)
    return report["version"]


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def publish(
    version: str,
    ray_address: str,
    config: str,
    settings: list,
    run_id: str,
    jobs: str,
    counts: dsl.Output[dsl.Metrics],
) -> str:
    """Push the recommendations of a version to Feast and make it the live one; return it."""
    import sys

    sys.path.insert(0, jobs)
    from submit import ask

    overrides = [word for setting in settings for word in ("--set", setting)]
    command = ["rec-ray", "publish", version, "--config", config, "--json", *overrides]
    report = ask(ray_address, command, f"{run_id}-publish")
    for name, value in report["counts"].items():
        counts.log_metric(name, value)
    return report["version"]


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def stop(ray_address: str, run_id: str, jobs: str) -> None:
    """Stop the Ray jobs of the run that still go on; after a run that ended by itself there are none."""
    import sys

    sys.path.insert(0, jobs)
    from submit import stop_run

    stop_run(ray_address, run_id)


class Outputs(NamedTuple):
    """The version that is live now, and the metrics of its model."""

    version: str
    metrics: dsl.Metrics


def prepare(task: dsl.PipelineTask) -> None:
    """Give a task the token of Ray, its resources and one retry."""
    kubernetes.use_secret_as_env(task, CLUSTER["metadata"]["name"], {"auth_token": "RAY_AUTH_TOKEN"})
    task.set_env_variable("RAY_AUTH_MODE", "token")
    task.set_caching_options(False)  # a step changes what lies outside of Kubeflow
    task.set_retry(1)
    task.set_cpu_request("100m").set_memory_request("512Mi").set_memory_limit("512Mi")


@dsl.pipeline(name="rec-ray-steps", description="The steps of rec-ray, one after the other.")
def steps(ray_address: str, config: str, settings: list, jobs: str, run_id: str) -> Outputs:
    """Train, recommend, publish; a task that is retried is the same run and continues it."""
    where = {"ray_address": ray_address, "config": config, "settings": settings, "jobs": jobs, "run_id": run_id}
    trained = train(**where)
    recommended = candidates(version=trained.outputs["Output"], **where)
    published = publish(version=recommended.outputs["Output"], **where)
    for task in (trained, recommended, published):
        prepare(task)
    return Outputs(version=published.outputs["Output"], metrics=trained.outputs["metrics"])


@dsl.pipeline(name="rec-ray", description="Two-tower recommendations from Feast to Feast, on a Ray cluster.")
def train_workflow(
    ray_address: str = ADDRESS,
    config: str = CONFIG,
    settings: list = [],  # noqa: B006  kfp takes no None for a list
    jobs: str = JOBS,
) -> None:
    """Run the steps; stop their Ray jobs at the end, whatever the end was."""
    run_id = f"kfp-{dsl.PIPELINE_JOB_ID_PLACEHOLDER}"
    stopping = stop(ray_address=ray_address, run_id=run_id, jobs=jobs)
    prepare(stopping)
    with dsl.ExitHandler(stopping, name="the-run"):
        ran = steps(ray_address=ray_address, config=config, settings=settings, jobs=jobs, run_id=run_id)
        ran.set_caching_options(False)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(f"usage: {sys.argv[0]} FILE.yaml")
    compiler.Compiler().compile(train_workflow, sys.argv[1])
