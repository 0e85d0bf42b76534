"""The command `rec-ray data append`: adds new events to a project that `rec-ray init` made.

It calls one function and prints its result as a table or as one JSON object.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated

import typer

from rec_ray.cli.options import AsJson, Config, Project, Set, open_console, print_next, settings_of

data_app = typer.Typer(help="Add data to a project.", no_args_is_help=True)


@data_app.callback()
def _data() -> None:
    """Add data to a project."""


@data_app.command()
def append(
    file: Annotated[
        Path, typer.Argument(help="New events with the columns of the first ones: .parquet, .csv, .csv.gz.")
    ],
    user_column: Annotated[str | None, typer.Option(help="Column with the ids of users.")] = None,
    item_column: Annotated[str | None, typer.Option(help="Column with the ids of items.")] = None,
    time_column: Annotated[str | None, typer.Option(help="Column with the time of an event.")] = None,
    project: Project = None,
    config: Config = None,
    overrides: Set = None,
    as_json: AsJson = False,
) -> None:
    """Append new events to the project's data, checked, without rows that are there already, in one rename."""
    settings = settings_of(project, config, overrides)
    from rec_ray.sample.append_events import append_events
    from rec_ray.sample.roles import ColumnNames

    names = ColumnNames((user_column,) if user_column else (), (item_column,) if item_column else (), time_column)
    done = append_events(Path(settings.feast.repo) / "data", file, names)
    if as_json:
        print(json.dumps(dataclasses.asdict(done)))
        return
    from rec_ray.reports.terminal import print_rows

    console = open_console()
    rows: dict[str, object] = {"rows read": done.read, "rows added": done.added, "rows there already": done.repeated}
    rows |= {f"new {table}": count for table, count in done.new_ids.items()}
    rows |= {f"ids that {table}.parquet lacks": count for table, count in done.unknown.items()}
    print_rows(console, f"Events of {file}", rows)
    print_next(console, "rec-ray candidates --since last --publish", "rec-ray run")
