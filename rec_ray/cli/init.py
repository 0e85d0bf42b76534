"""The command `init`: a new project from nothing, from files, or for an existing Feast repository.

It reads options, asks questions on a terminal and prints the table of decisions; `sample` makes the project.
"""

from __future__ import annotations

import dataclasses
import json
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from rec_ray.cli.feast import EventsView, Feast, InitOptions, PublishViews, init_feast
from rec_ray.cli.options import AS_IS, AsJson, open_console, print_next
from rec_ray.errors import ConfigError

init_app = typer.Typer()


@init_app.command()
def init(
    folder: Annotated[Path, typer.Argument(help="Folder of the new project.")],
    source: Annotated[
        str | None,
        typer.Option(
            "--from",
            help="Folder or address (s3://...) with interactions and, if there, users and items: .parquet, .csv, "
            ".csv.gz or folders of Parquet files.",
        ),
    ] = None,
    user_column: Annotated[
        list[str] | None, typer.Option(help="Column with the ids of users; again for another name in another file.")
    ] = None,
    item_column: Annotated[
        list[str] | None, typer.Option(help="Column with the ids of items; again for another name in another file.")
    ] = None,
    time_column: Annotated[str | None, typer.Option(help="Column with the time of an event.")] = None,
    time_unit: Annotated[str | None, typer.Option(help="Unit of times that are numbers: s, ms, us or ns.")] = None,
    type_column: Annotated[str | None, typer.Option(help="Column with the type of an event.")] = None,
    value_column: Annotated[
        str | None, typer.Option(help="Column with the value of an event, such as a rating.")
    ] = None,
    feast: Feast = None,
    events_view: EventsView = None,
    publish_views: PublishViews = False,
    yes: Annotated[bool, typer.Option("--yes", help="Take all decisions without asking on a terminal.")] = False,
    seed: Annotated[int, typer.Option(help="Seed of the generated shop.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Make a project: settings, a Feast repository and data, generated or your own."""
    on_terminal = sys.stdin.isatty() and open_console().is_terminal and not (as_json or yes)
    if feast is not None:
        columns = (_only(user_column, "--user-column"), _only(item_column, "--item-column"), type_column, value_column)
        init_feast(folder, feast, InitOptions((events_view, *columns), on_terminal, publish_views, as_json))
        return
    from rec_ray.sample.project import init_project
    from rec_ray.sample.roles import ColumnNames, Question, unit_named

    def ask(question: Question) -> str:
        console.print(f"Its columns: {', '.join(question.choices)}", markup=False, highlight=False)
        return str(typer.prompt(question.text, default=question.guess))

    console = open_console()
    names = ColumnNames(
        tuple(user_column or ()),
        tuple(item_column or ()),
        time_column,
        unit_named(time_unit),
        type_column,
        value_column,
    )
    summary = init_project(folder, source, seed=seed, names=names, prompt=ask if on_terminal else None)
    if as_json:
        print(json.dumps(dataclasses.asdict(summary), default=str))
        return
    from rec_ray.reports.terminal import print_rows

    rows = {"users": summary.users, "items": summary.items, "interactions": summary.interactions}
    print_rows(console, f"Project from {summary.source}", rows)
    if summary.decisions:
        table = Table("table", "column", "role", "why", title="Decisions")
        for decision in summary.decisions:
            # Without markup, because `a:b:` is a name here and not an emoji.
            table.add_row(*(Text(repr(text)[1:-1]) for text in dataclasses.astuple(decision)))
        console.print(table, highlight=False)
    for note in summary.notes:
        console.print(f"- {note}", markup=False, highlight=False)
    console.print(f"Settings to look at: {summary.settings}", **AS_IS)
    print_next(console, f"rec-ray run -C {shlex.quote(str(folder))}")


def _only(names: list[str] | None, option: str) -> str | None:
    """Return the only value of an option with --feast, where all columns belong to one view."""
    if names and len(names) > 1:
        raise ConfigError(
            f"{option} is given {len(names)} times; with --feast there is one view of events: give it once"
        )
    return names[0] if names else None
