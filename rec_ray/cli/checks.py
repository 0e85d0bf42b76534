"""The commands that look before a run: `rec-ray doctor` uses each part of the outside world, `rec-ray plan` none.

Options come in, one function that does the work is called, its answer is printed as text or as one JSON object. No
command has logic of its own.
"""

from __future__ import annotations

import dataclasses
import json

import typer
from rich.console import Console

from rec_ray.cli.options import AsJson, Config, Project, Set, aside, settings_of
from rec_ray.logs import without_secrets

checks_app = typer.Typer()


@checks_app.command()
def doctor(project: Project = None, config: Config = None, overrides: Set = None, as_json: AsJson = False) -> None:
    """Use each store and service once and say what a run would trip over; ends with 2 or 3 if there is something."""
    settings = settings_of(project, config, overrides)
    from rec_ray.cli.doctor import examine, exit_code_of

    checks = aside(examine, settings)
    code = exit_code_of(checks)
    if as_json:
        answer = {"exit_code": code, "checks": [dataclasses.asdict(check) for check in checks]}
        print(without_secrets(json.dumps(answer)))
    else:
        for check in checks:
            print(without_secrets(f"{'ok' if check.ok else 'FAULT':<6}{check.name}: {check.said}"))
    raise typer.Exit(code)


@checks_app.command()
def plan(project: Project = None, config: Config = None, overrides: Set = None, as_json: AsJson = False) -> None:
    """Say what a run would do, about how long it would take and what it would publish; touches nothing."""
    settings = settings_of(project, config, overrides)
    from rec_ray.cli.plan import plan_run

    found = aside(plan_run, settings)
    if as_json:
        print(json.dumps(dataclasses.asdict(found) | {"seconds": found.seconds, "memory_bytes": found.memory_bytes}))
        return
    from rec_ray.reports.terminal import print_plan

    print_plan(Console(), found)
