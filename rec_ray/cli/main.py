"""The command line: options into settings, one function of `pipeline` called, its report printed.

`main` takes the arguments and gives back the exit code; figures go to standard output, as tables or as one JSON object
with `--json`, and log lines to standard error. No command has logic of its own.
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import sys
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import typer
from rich.console import Console

from rec_ray import __version__
from rec_ray.cli.checks import checks_app
from rec_ray.cli.options import AsJson, Config, Project, RunId, Set, aside, settings_of
from rec_ray.cli.versions import versions_app
from rec_ray.errors import EXIT_CODES, ConfigError, RecRayError, foreseen_cause
from rec_ray.logs import LOGGER, configure_logging, without_secrets
from rec_ray.step_events import StepEvent, StepFinished, subscribe, unsubscribe

INTERRUPTED, TERMINATED = 130, 143
STOPPED = {INTERRUPTED: "interrupted", TERMINATED: "terminated"}


class VectorIndex(StrEnum):
    """Kinds of index that pgvector has."""

    HNSW = "hnsw"
    IVFFLAT = "ivfflat"


app = typer.Typer(
    name="rec-ray",
    help="Two-tower recommendations from a Feast feature store, on Ray.",
    epilog="Exit codes: " + "; ".join(f"{code} {meaning}" for code, meaning in EXIT_CODES.items()) + ".",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)

Version = Annotated[str | None, typer.Argument(help="Version of the model.", show_default="the newest stored")]


def _print_report(report: Any, as_json: bool) -> None:
    if as_json:
        said = dataclasses.asdict(report)
        # What is only drawn, with the histories of a few users, stands in the report of the version.
        for name in ("examples", "distributions") if said["evaluation"] else ():
            del said["evaluation"][name]
        print(json.dumps(said, default=str))
        return
    from rec_ray.reports.terminal import print_evaluation, print_rows

    console = Console()
    if report.finished_before:
        console.print(f"Run {report.run_id} has ended well before: nothing was done. It reported:", highlight=False)
    if report.evaluation is not None:
        print_evaluation(console, report.evaluation)
    print_rows(console, f"Version {report.version}", report.counts)
    print_rows(console, "Seconds of each step", report.seconds | {"total": sum(report.seconds.values())})
    print_rows(console, "Where things are", report.where)


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(help="Folder of the new project.")],
    source: Annotated[
        Path | None,
        typer.Option("--from", help="Folder with interactions.parquet and, if there, users.parquet and items.parquet."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the generated shop.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Make a project: settings, a Feast repository and data, generated or your own."""
    from rec_ray.sample.project import init_project

    summary = init_project(folder, source, seed=seed)
    if as_json:
        print(json.dumps(dataclasses.asdict(summary), default=str))
        return
    from rec_ray.reports.terminal import print_rows

    console = Console()
    rows = {"users": summary.users, "items": summary.items, "interactions": summary.interactions}
    print_rows(console, f"Project from {summary.source}", rows)
    for note in summary.notes:
        console.print(f"- {note}", markup=False, highlight=False)
    console.print(f"Settings to look at: {summary.settings}\nNext: rec-ray run -C {folder}", markup=False)


@app.command()
def run(
    project: Project = None, config: Config = None, overrides: Set = None, run_id: RunId = None, as_json: AsJson = False
) -> None:
    """Do the whole line: train, evaluate, store, compute candidates, publish to Feast."""
    settings = settings_of(project, config, overrides)
    from rec_ray.pipeline import run_pipeline

    _print_report(aside(run_pipeline, settings, run_id=run_id), as_json)


@app.command()
def train(
    project: Project = None, config: Config = None, overrides: Set = None, run_id: RunId = None, as_json: AsJson = False
) -> None:
    """Train, evaluate and store a model under a new version; publish nothing."""
    settings = settings_of(project, config, overrides)
    from rec_ray.pipeline import run_training

    _print_report(aside(run_training, settings, run_id=run_id), as_json)


@app.command()
def evaluate(
    version: Annotated[str, typer.Argument(help="Version of the model.")],
    project: Project = None,
    config: Config = None,
    overrides: Set = None,
    as_json: AsJson = False,
) -> None:
    """Evaluate a stored version on what Feast holds now."""
    settings = settings_of(project, config, overrides)
    from rec_ray.pipeline import run_evaluation

    _print_report(aside(run_evaluation, settings, version), as_json)


@app.command()
def candidates(
    version: Version = None,
    since: Annotated[
        str | None,
        typer.Option(help="Only users with events since then: an ISO time, 36h, 7d, or last; an increment is stored."),
    ] = None,
    publish: Annotated[bool, typer.Option("--publish", help="Push what was computed, too.")] = False,
    project: Project = None,
    config: Config = None,
    overrides: Set = None,
    as_json: AsJson = False,
) -> None:
    """Compute and store the recommendations of a stored version, for all users or those with events since a time."""
    settings = settings_of(project, config, overrides)
    from rec_ray.pipeline import run_candidates, run_increment

    if since is None:
        report = aside(run_candidates, settings, version, publish=publish)
    else:
        report = aside(run_increment, settings, version, since, publish=publish)
    _print_report(report, as_json)


@app.command()
def publish(
    version: Version = None,
    increment: Annotated[
        str | None, typer.Option(help="Push only this increment of the live version; newest is the newest.")
    ] = None,
    project: Project = None,
    config: Config = None,
    overrides: Set = None,
    as_json: AsJson = False,
) -> None:
    """Push the stored recommendations of a version to Feast and make it the live one."""
    settings = settings_of(project, config, overrides)
    from rec_ray.pipeline import run_publishing

    _print_report(aside(run_publishing, settings, version, increment=increment), as_json)


@app.command()
def report(
    version: Annotated[str, typer.Argument(help="Version of the model.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write the page to this file too.", show_default="only stored")
    ] = None,
    project: Project = None,
    config: Config = None,
    overrides: Set = None,
    as_json: AsJson = False,
) -> None:
    """Make the report of a stored version again: one HTML file, kept with the version."""
    settings = settings_of(project, config, overrides)
    from rec_ray.cli.maintenance import make_report

    uri, page = aside(make_report, settings, version)
    if output is not None:
        _write_text(output, page)
    where = {"report": uri} | ({"file": str(output)} if output is not None else {})
    if as_json:
        print(json.dumps({"version": version, **where}))
        return
    from rec_ray.reports.terminal import print_rows

    print_rows(Console(), f"Report of version {version}", where)


def _write_text(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}") from error


app.add_typer(checks_app)
app.add_typer(versions_app, name="versions")


@app.command("vector-index")
def vector_index(
    kind: Annotated[VectorIndex, typer.Option(help="Kind of pgvector index.")] = VectorIndex.HNSW,
    drop: Annotated[bool, typer.Option("--drop", help="Remove the indexes, as before another embedding_size.")] = False,
    project: Project = None,
    config: Config = None,
    overrides: Set = None,
    as_json: AsJson = False,
) -> None:
    """Make the indexes over vectors in a PostgreSQL online store, which Feast leaves out."""
    settings = settings_of(project, config, overrides)
    from rec_ray.cli.maintenance import run_indexing

    done = aside(run_indexing, settings, kind.value, drop=drop)
    if as_json:
        print(json.dumps(done))
        return
    from rec_ray.reports.terminal import print_rows

    print_rows(Console(), "Indexes over vectors", done)


@app.command()
def recommend(
    user_id: Annotated[str | None, typer.Argument(help="Id of the user.")] = None,
    any_user: Annotated[bool, typer.Option("--any", help="Take a user of the live version.")] = False,
    count: Annotated[int, typer.Option("--count", "-n", min=1, help="Items to show.")] = 10,
    project: Project = None,
    config: Config = None,
    overrides: Set = None,
    as_json: AsJson = False,
) -> None:
    """Show a user's recommendations as the Feast online store answers them."""
    if (user_id is None) != any_user:
        raise ConfigError("name a user, or say --any")
    settings = settings_of(project, config, overrides)
    from rec_ray.cli.lookup import recommendations_of

    _print_answer(recommendations_of(settings, user_id, count), as_json)


@app.command()
def similar(
    item_id: Annotated[str, typer.Argument(help="Id of the item.")],
    count: Annotated[int, typer.Option("--count", "-n", min=1, help="Items to show.")] = 10,
    project: Project = None,
    config: Config = None,
    overrides: Set = None,
    as_json: AsJson = False,
) -> None:
    """Show the items whose vectors are nearest to that of an item, in the live version."""
    settings = settings_of(project, config, overrides)
    from rec_ray.cli.lookup import similar_items

    _print_answer(similar_items(settings, item_id, count), as_json)


def _print_answer(answer: Any, as_json: bool) -> None:
    if as_json:
        print(json.dumps(dataclasses.asdict(answer)))
        return
    from rec_ray.reports.terminal import print_items

    print_items(Console(), answer.title, answer.item_ids, answer.scores, answer.names)


@app.command()
def render(
    kind: Annotated[str, typer.Argument(help="rayjob, raycluster, cronjob or raycronjob.")],
    project: Project = None,
    config: Config = None,
    overrides: Set = None,
    name: Annotated[str | None, typer.Option(help="Name; that of a RayJob is the id of its run.")] = None,
    namespace: Annotated[str, typer.Option(help="Namespace of all objects.")] = "rec-ray",
    image: Annotated[str | None, typer.Option(help="Image, if not that of the manifests.")] = None,
    grow_to: Annotated[int | None, typer.Option(help="Let the workers grow to so many.")] = None,
    queue: Annotated[str | None, typer.Option(help="LocalQueue of Kueue that admits the RayJob.")] = None,
    schedule: Annotated[str | None, typer.Option(help="When a cronjob runs, such as '0 3 * * *'.")] = None,
) -> None:
    """Print Kubernetes manifests for the settings: a run, a cluster that stays, or a run every night."""
    from rec_ray.cli.kubernetes_manifests import Wishes, render_manifests

    settings = settings_of(project, config, overrides)
    wishes = Wishes(name, namespace, image, grow_to, queue, schedule)
    print(render_manifests(kind, settings, wishes), end="")


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version of the program.")] = False,
) -> None:
    if version:
        print(__version__)
        raise typer.Exit


def main(argv: list[str] | None = None) -> int:
    """Run one command and return the exit code; faults that are foreseen are one line on standard error."""
    configure_logging(as_json=not sys.stderr.isatty() and "KUBERNETES_SERVICE_HOST" in os.environ)
    previous = signal.signal(signal.SIGTERM, _terminate)
    published = False

    def note_publication(event: StepEvent) -> None:
        nonlocal published
        published |= isinstance(event, StepFinished) and event.publishes

    subscribe(note_publication)
    try:
        code = _invoke(lambda: app(args=argv, standalone_mode=False))
    finally:
        unsubscribe(note_publication)
        signal.signal(signal.SIGTERM, previous)
    if code in STOPPED:
        made = "its version was made live before that" if published else "nothing was made live"
        print(f"rec-ray: {STOPPED[code]}; {made}", file=sys.stderr)
    return code


def _invoke(command: Callable[[], Any]) -> int:
    try:
        code = command()
        return int(code) if isinstance(code, int) else 0  # Typer makes 130 of Ctrl-C.
    except typer.Exit as stop:
        return int(stop.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        return INTERRUPTED
    except _Terminated:
        return TERMINATED
    except _UsageError as error:
        error.show(sys.stderr)
        return 2
    except RecRayError as error:
        return _failed(error)
    except Exception as error:
        if isinstance(foreseen_cause(error), RecRayError):
            return _failed(error)
        LOGGER.exception("unexpected fault")
        print(without_secrets(f"rec-ray: unexpected {type(error).__name__}: {error}"), file=sys.stderr)
        return 1


def _failed(error: Exception) -> int:
    cause: Any = foreseen_cause(error)
    print(without_secrets(f"rec-ray: {cause}"), file=sys.stderr)
    return int(cause.exit_code)


_UsageError: Any = typer.BadParameter.__base__


class _Terminated(BaseException):
    """SIGTERM came."""


def _terminate(_signal: int, _frame: FrameType | None) -> None:
    raise _Terminated


if __name__ == "__main__":
    sys.exit(main())
