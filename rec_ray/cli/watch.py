"""Commands to look at a project from outside: `rec-ray check` for its health, `rec-ray status` for a run.

Each loads the settings, calls one function and prints its result as text or as one JSON object.
"""

from __future__ import annotations

import dataclasses
import json
from datetime import UTC, datetime
from typing import Annotated

import typer
from rich.console import Console

from rec_ray.cli.options import AsJson, Config, Project, Set, redirect_stdout, settings_of
from rec_ray.errors import DataError
from rec_ray.logs import mask_secrets

watch_app = typer.Typer()


@watch_app.command()
def check(
    max_age: Annotated[
        str | None,
        typer.Option(help="Maximum age of the live version and its newest event.", show_default="checks.max_age_hours"),
    ] = None,
    online: Annotated[
        bool, typer.Option("--online/--no-online", help="Read a few lists from the online store, which loads Feast.")
    ] = True,
    project: Project = None,
    config: Config = None,
    overrides: Set = None,
    as_json: AsJson = False,
) -> None:
    """Check that a fresh version is live and served; exit code 8 with the reason if not."""
    settings = settings_of(project, config, overrides)
    from rec_ray.cli.health import EXIT_CODE, examine_health, parse_age

    age = None if max_age is None else parse_age(max_age)
    found = redirect_stdout(examine_health, settings, age, online=online, probe=True)
    code = EXIT_CODE if found.faults else 0
    values = dataclasses.asdict(found)
    if as_json:
        print(mask_secrets(json.dumps({"exit_code": code, **values}, default=str)))
    else:
        for fault in values.pop("faults"):
            print(f"FAULT {fault}")
        for name, value in values.items():
            if value not in (None, [], {}):
                print(f"{name.replace('_', ' ')}: {value}")
    raise typer.Exit(code)


@watch_app.command()
def audit(project: Project = None, config: Config = None, overrides: Set = None, as_json: AsJson = False) -> None:
    """Compare features of some users and items in the online store with the offline store; exit code 8 if they differ.

    Compares the live version's users and items as of now, by view and field, with the likely cause.
    """
    settings = settings_of(project, config, overrides)
    from rec_ray.cli.health import EXIT_CODE
    from rec_ray.cli.maintenance import run_audit

    found = redirect_stdout(run_audit, settings)
    different = [each for each in found if each.differ]
    code = EXIT_CODE if different else 0
    if as_json:
        print(mask_secrets(json.dumps({"exit_code": code, "fields": [dataclasses.asdict(each) for each in found]})))
    else:
        for each in found:
            print(mask_secrets(f"{'DIFFERS' if each.differ else 'ok':<8}{each.said}"))
        if not found:
            print("no feature is declared in features.user or features.item")
    raise typer.Exit(code)


@watch_app.command()
def status(
    run_id: Annotated[str | None, typer.Argument(help="Id of the run.", show_default="the newest run")] = None,
    project: Project = None,
    config: Config = None,
    overrides: Set = None,
    as_json: AsJson = False,
) -> None:
    """Show a run: its state, step, progress, estimated time left, version, counts and error."""
    settings = settings_of(project, config, overrides)
    from rec_ray.cli.health import newest_status, read_status
    from rec_ray.runs.status import state_of
    from rec_ray.runs.stores import open_object_store, open_version_database

    storage = open_object_store(settings)
    found = dict(
        newest_status(storage, open_version_database(settings)) if run_id is None else read_status(storage, run_id)
    )
    if not found:
        what = f"run {run_id!r} left no status" if run_id else "no run was started yet"
        raise DataError(f"{what} at {storage.uri('runs')}; start one: rec-ray run")
    found["state"] = state_of(found, datetime.now(UTC))
    if as_json:
        print(json.dumps(found))
        return
    from rec_ray.reports.terminal import print_rows

    console = Console()
    progress = found.pop("progress", None)
    seconds, counts = found.pop("seconds", {}), found.pop("counts", {})
    facts = {name.replace("_", " "): value for name, value in found.items() if value is not None}
    if progress:
        left = progress["seconds_left"]
        facts["progress"] = f"{progress['done']:,} of at most {progress['total']:,} {progress['what']}" + (
            f", at most {left:,.0f} s left" if left is not None else ""
        )
    print_rows(console, f"Run {facts.pop('run id')}", facts)
    print_rows(console, "Seconds of each step", seconds)
    said = {step: ", ".join(f"{name} {value}" for name, value in each.items()) for step, each in counts.items()}
    print_rows(console, "Counts", said)
