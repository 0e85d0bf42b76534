"""Commands to use before a run: `rec-ray doctor` tests every connection, `rec-ray plan` estimates its cost.

Each loads the settings, calls one function and prints its result as text or as one JSON object.
"""

from __future__ import annotations

import dataclasses
import json
from typing import Annotated

import typer

from rec_ray.cli.options import (
    AsJson,
    Config,
    Project,
    Set,
    name_project,
    open_console,
    print_next,
    redirect_stdout,
    settings_of,
)
from rec_ray.cli.watch import watch_app
from rec_ray.logs import mask_secrets

checks_app = typer.Typer()
checks_app.add_typer(watch_app)


@checks_app.command()
def doctor(project: Project = None, config: Config = None, overrides: Set = None, as_json: AsJson = False) -> None:
    """Test every store and service and list the faults that would stop a run; exit code 2 or 3 if there are any."""
    settings = settings_of(project, config, overrides)
    from rec_ray.cli.doctor import examine, exit_code_of

    checks = redirect_stdout(examine, settings)
    code = exit_code_of(checks)
    if as_json:
        answer = {"exit_code": code, "checks": [dataclasses.asdict(check) for check in checks]}
        print(mask_secrets(json.dumps(answer)))
    else:
        for check in checks:
            print(mask_secrets(name_project(f"{'ok' if check.ok else 'FAULT':<6}{check.name}: {check.said}")))
        if code == 0:
            print_next(open_console(), "rec-ray plan", "rec-ray run")
    raise typer.Exit(code)


@checks_app.command()
def plan(
    project: Project = None,
    config: Config = None,
    overrides: Set = None,
    kubernetes: Annotated[
        bool, typer.Option("--kubernetes", help="Print the sizes of worker pods for this data instead.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Estimate steps, time and memory of a run and list its publication targets, without changing anything."""
    settings = settings_of(project, config, overrides)
    if kubernetes:
        from rec_ray.cli.pod_sizes import plan_sizes
        from rec_ray.reports.terminal import print_rows

        sizes = redirect_stdout(plan_sizes, settings).rows()
        if as_json:
            print(json.dumps(sizes))
        else:
            print_rows(open_console(), "A worker pod", sizes)
        return
    from rec_ray.cli.plan import plan_run

    found = redirect_stdout(plan_run, settings)
    if as_json:
        print(json.dumps(dataclasses.asdict(found) | {"seconds": found.seconds, "memory_bytes": found.memory_bytes}))
        return
    from rec_ray.reports.terminal import print_plan

    console = open_console()
    print_plan(console, found)
    print_next(console, "rec-ray run")
