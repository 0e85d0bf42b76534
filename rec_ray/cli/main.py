"""Command line: each command loads the settings, calls one function and prints its report.

`main` takes the arguments and returns the exit code. Reports go to standard output, as tables or as one JSON object
with `--json`; log lines go to standard error. Commands have no logic of their own.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shlex
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import typer

from rec_ray import __version__
from rec_ray.cli.checks import checks_app
from rec_ray.cli.configuration import config_app
from rec_ray.cli.data import data_app
from rec_ray.cli.feast import feast_app
from rec_ray.cli.forget import forget_app
from rec_ray.cli.init import init_app
from rec_ray.cli.kubernetes import kubernetes_app
from rec_ray.cli.lookup_commands import lookup_app
from rec_ray.cli.options import (
    AS_IS,
    AsJson,
    Config,
    Project,
    RunId,
    Set,
    forget_project,
    name_project,
    open_console,
    print_next,
    redirect_stdout,
    settings_of,
)
from rec_ray.cli.vector_index import vector_index_app
from rec_ray.cli.versions import versions_app
from rec_ray.errors import EXIT_CODES, ConfigError, RecRayError, find_known_cause
from rec_ray.logs import LOGGER, configure_logging, mask_secrets, printable
from rec_ray.step_events import StepEvent, StepFinished, subscribe, unsubscribe

INTERRUPTED, TERMINATED = 130, 143
STOPPED = {INTERRUPTED: "interrupted", TERMINATED: "terminated"}


app = typer.Typer(
    name="rec-ray",
    help="Two-tower recommendations from a Feast feature store, on Ray.",
    epilog="Exit codes: " + "; ".join(f"{code} {meaning}" for code, meaning in EXIT_CODES.items()) + ".",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)

app.add_typer(init_app)
app.add_typer(feast_app)

Version = Annotated[str | None, typer.Argument(help="Version of the model.", show_default="newest stored")]


def _print_report(report: Any, as_json: bool, *following: str) -> None:
    """Print the report of a run. following: commands to try next."""
    if as_json:
        values = dataclasses.asdict(report)
        # Data of plots and the histories of example users are only in the report of the version.
        for name in ("examples", "distributions") if values["evaluation"] else ():
            del values["evaluation"][name]
        print(json.dumps(values, default=str))
        return
    from rec_ray.reports.terminal import print_evaluation, print_rows

    console = open_console()
    if report.finished_before:
        console.print(f"Run {report.run_id} had already finished; nothing was done. Its report:", highlight=False)
    if report.evaluation is not None:
        print_evaluation(console, report.evaluation)
    print_rows(console, f"Version {report.version}" if report.version else "Data", report.counts)
    print_rows(console, "Seconds of each step", report.seconds | {"total": sum(report.seconds.values())})
    print_rows(console, "Locations", report.where)
    for sentence in report.advice:
        console.print(name_project(sentence), style="yellow", **AS_IS)
    print_next(console, *_open_page(report.where.get("report", "")), *following)


def _open_page(page: str) -> list[str]:
    """Return the command that opens a page in a browser; none for one in a bucket."""
    opener = "open" if sys.platform == "darwin" else "xdg-open"
    return [f"{opener} {shlex.quote(page)}"] if page and "://" not in page else []


@app.command()
def run(
    project: Project = None,
    config: Config = None,
    overrides: Set = None,
    run_id: RunId = None,
    again: Annotated[
        bool, typer.Option("--again", help="After a run of this id ended well, begin a new one, <id>-2, <id>-3, ...")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Run the complete pipeline: train, evaluate, store, compute candidates, publish to Feast."""
    settings = settings_of(project, config, overrides)
    from rec_ray.cli import refusals

    redirect_stdout(refusals.check_new_run, settings, run_id)
    from rec_ray.pipeline import run_pipeline

    if again and run_id:
        from rec_ray.runs.run_names import next_run_id
        from rec_ray.runs.stores import open_object_store

        run_id = next_run_id(open_object_store(settings), settings, "run", run_id)
    report = redirect_stdout(run_pipeline, settings, run_id=run_id)
    _print_report(report, as_json, "rec-ray recommend --any")


@app.command()
def train(
    project: Project = None, config: Config = None, overrides: Set = None, run_id: RunId = None, as_json: AsJson = False
) -> None:
    """Train, evaluate and store a model under a new version, without publishing."""
    settings = settings_of(project, config, overrides)
    from rec_ray.cli import refusals

    redirect_stdout(refusals.check_new_run, settings, run_id)
    from rec_ray.pipeline import run_training

    report = redirect_stdout(run_training, settings, run_id=run_id)
    _print_report(report, as_json, f"rec-ray candidates {report.version} --publish")


@app.command()
def tune(
    project: Project = None,
    config: Config = None,
    overrides: Set = None,
    minutes: Annotated[int | None, typer.Option(min=1, help="Time of the search.", show_default="tune.minutes")] = None,
    run_id: RunId = None,
    as_json: AsJson = False,
) -> None:
    """Search for better settings of model and train on the current data; nothing is applied."""
    given = [*(overrides or []), *([f"tune.minutes={minutes}"] if minutes is not None else [])]
    settings = settings_of(project, config, given)
    from rec_ray.cli import refusals

    refusals.require_run_id(run_id)
    from rec_ray.pipeline import run_tuning

    _print_report(redirect_stdout(run_tuning, settings, run_id=run_id), as_json)


@app.command()
def evaluate(
    version: Annotated[str, typer.Argument(help="Version of the model.")],
    project: Project = None,
    config: Config = None,
    overrides: Set = None,
    as_json: AsJson = False,
) -> None:
    """Evaluate a stored version on the current data in Feast."""
    settings = settings_of(project, config, overrides)
    from rec_ray.cli import refusals

    refusals.require_stored(settings, version)
    from rec_ray.pipeline import run_evaluation

    report = redirect_stdout(run_evaluation, settings, version)
    _print_report(report, as_json, f"rec-ray candidates {version} --publish")


@app.command()
def candidates(
    version: Version = None,
    since: Annotated[
        str | None,
        typer.Option(help="Store an increment of users with events since an ISO time, 36h, 7d or last."),
    ] = None,
    publish: Annotated[bool, typer.Option("--publish", help="Also publish the result.")] = False,
    project: Project = None,
    config: Config = None,
    overrides: Set = None,
    as_json: AsJson = False,
) -> None:
    """Compute and store recommendations with a stored version, for all users or for recently active ones."""
    settings = settings_of(project, config, overrides)
    from rec_ray.cli import refusals

    if since is None:
        refusals.require_stored(settings, version)
    else:
        refusals.require_since(settings, version, since)
    from rec_ray.pipeline import run_candidates, run_increment

    if since is None:
        report = redirect_stdout(run_candidates, settings, version, publish=publish)
    else:
        report = redirect_stdout(run_increment, settings, version, since, publish=publish)
    ready = f"rec-ray publish {report.version}" if since is None else "rec-ray publish --increment newest"
    made = "users with recommendations" in report.counts
    _print_report(report, as_json, "rec-ray recommend --any" if publish or not made else ready)


@app.command()
def publish(
    version: Version = None,
    increment: Annotated[
        str | None, typer.Option(help="Push only this increment of the live version, by name or newest.")
    ] = None,
    project: Project = None,
    config: Config = None,
    overrides: Set = None,
    as_json: AsJson = False,
) -> None:
    """Push the stored recommendations of a version to Feast and make the version live."""
    settings = settings_of(project, config, overrides)
    from rec_ray.cli import refusals

    if increment is None:
        refusals.require_candidates(settings, version)
    else:
        refusals.require_increment(settings, version, increment)
    from rec_ray.pipeline import run_publishing

    report = redirect_stdout(run_publishing, settings, version, increment=increment)
    _print_report(report, as_json, "rec-ray recommend --any")


@app.command()
def report(
    version: Annotated[str, typer.Argument(help="Version of the model.")],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Also write the page to this file.", show_default="only stored"),
    ] = None,
    project: Project = None,
    config: Config = None,
    overrides: Set = None,
    as_json: AsJson = False,
) -> None:
    """Render the report of a stored version again: one HTML file, stored with the version."""
    settings = settings_of(project, config, overrides)
    from rec_ray.cli import refusals

    refusals.require_stored(settings, version)
    from rec_ray.cli.maintenance import make_report

    uri, page = redirect_stdout(make_report, settings, version)
    if output is not None:
        _write_text(output, page)
    where = {"report": uri} | ({"file": str(output)} if output is not None else {})
    if as_json:
        print(json.dumps({"version": version, **where}))
        return
    from rec_ray.reports.terminal import print_rows

    console = open_console()
    print_rows(console, f"Report of version {version}", where)
    print_next(console, *_open_page(where["file" if output is not None else "report"]), "rec-ray versions")


def _write_text(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}") from error


app.add_typer(checks_app)
app.add_typer(kubernetes_app)
app.add_typer(versions_app, name="versions")
app.add_typer(forget_app)
app.add_typer(config_app, name="config")
app.add_typer(data_app, name="data")
app.add_typer(lookup_app)
app.add_typer(vector_index_app)


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version of the program.")] = False,
) -> None:
    if version:
        print(__version__)
        raise typer.Exit


def main(argv: list[str] | None = None) -> int:
    """Run one command and return its exit code; an expected error is one line on standard error."""
    configure_logging(as_json=not sys.stderr.isatty() and "KUBERNETES_SERVICE_HOST" in os.environ)
    words = sys.argv[1:] if argv is None else argv
    as_json = "--json" in words
    forget_project()
    previous = {each: signal.signal(each, _terminate) for each in (signal.SIGTERM, signal.SIGHUP)}
    published = False

    def note_publication(event: StepEvent) -> None:
        nonlocal published
        published |= isinstance(event, StepFinished) and event.publishes

    subscribe(note_publication)
    try:
        code = _invoke(lambda: app(args=words, standalone_mode=False), as_json)
    finally:
        unsubscribe(note_publication)
        for each, handler in previous.items():
            signal.signal(each, handler)
    if code in STOPPED:
        outcome = "its version was made live before that" if published else "nothing was made live"
        print(f"rec-ray: {STOPPED[code]}; {outcome}", file=sys.stderr)
    return code


def _invoke(command: Callable[[], Any], as_json: bool) -> int:
    try:
        code = command()
        return int(code) if isinstance(code, int) else 0  # Typer returns 130 for Ctrl-C.
    except typer.Exit as stop:
        return int(stop.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        return INTERRUPTED
    except _Terminated:
        return TERMINATED
    except _UsageError as error:
        if as_json:
            return _report_error(error.format_message(), 2, as_json)
        error.show(sys.stderr)
        return 2
    except Exception as error:
        cause: Any = find_known_cause(error)
        if isinstance(cause, RecRayError):
            return _report_error(str(cause), cause.exit_code, as_json)
        LOGGER.exception("unexpected fault")
        return _report_error(f"unexpected {type(error).__name__}: {error}", 1, as_json)


def _report_error(text: str, code: int, as_json: bool) -> int:
    """Print an error with the project in the commands that it names; with --json also as an object."""
    said = printable(mask_secrets(name_project(text)))
    print(f"rec-ray: {said}", file=sys.stderr)
    if as_json:
        print(json.dumps({"error": said, "code": code}))
    return code


_UsageError: Any = typer.BadParameter.__base__


class _Terminated(BaseException):
    """The process received SIGTERM, or SIGHUP because its terminal was closed."""


def _terminate(_signal: int, _frame: FrameType | None) -> None:
    raise _Terminated


if __name__ == "__main__":
    sys.exit(main())
