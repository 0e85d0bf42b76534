"""The commands for a Kubernetes cluster: `rec-ray render` and `rec-ray metrics`.

Each command calls one function and prints the returned text.
"""

from __future__ import annotations

from typing import Annotated

import typer

from rec_ray.cli.options import Config, Project, Set, redirect_stdout, settings_of

kubernetes_app = typer.Typer()


@kubernetes_app.command()
def render(
    kind: Annotated[str, typer.Argument(help="rayjob, raycluster, cronjob or raycronjob.")],
    project: Project = None,
    config: Config = None,
    overrides: Set = None,
    name: Annotated[str | None, typer.Option(help="Name of the object; a RayJob uses it as run id.")] = None,
    namespace: Annotated[str, typer.Option(help="Namespace of all objects.")] = "rec-ray",
    image: Annotated[str | None, typer.Option(help="Container image.")] = None,
    grow_to: Annotated[int | None, typer.Option(help="Maximum number of workers; lets the cluster grow.")] = None,
    queue: Annotated[str | None, typer.Option(help="Kueue LocalQueue that admits the RayJob.")] = None,
    schedule: Annotated[str | None, typer.Option(help="Cron schedule of a cronjob, such as '0 3 * * *'.")] = None,
    fit: Annotated[
        bool, typer.Option("--fit", help="Size the worker pods for the data, see `rec-ray plan --kubernetes`.")
    ] = False,
) -> None:
    """Print Kubernetes manifests for the settings: a run, a cluster that stays, or a run every night."""
    from rec_ray.cli.kubernetes_manifests import RenderOptions, render_manifests
    from rec_ray.cli.pod_sizes import plan_sizes

    settings = settings_of(project, config, overrides)
    sizes = redirect_stdout(plan_sizes, settings) if fit else None
    wishes = RenderOptions(name, namespace, image, grow_to, queue, schedule, sizes)
    print(render_manifests(kind, settings, wishes), end="")


@kubernetes_app.command()
def metrics(
    project: Project = None,
    config: Config = None,
    overrides: Set = None,
    listen: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Serve GET /metrics at this address until stopped.")
    ] = None,
) -> None:
    """Print metrics of the versions and of the newest run for Prometheus, or serve them."""
    settings = settings_of(project, config, overrides)
    from rec_ray.cli.version_metrics import MetricsServer, collect_metrics

    if listen is None:
        print(collect_metrics(settings), end="")
        return
    with MetricsServer(settings, listen) as server:
        server.serve_forever()
