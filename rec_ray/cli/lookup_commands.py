"""The commands that look up published data: `rec-ray recommend` and `rec-ray similar`.

Each loads the settings, calls one function and prints its result as a table or as one JSON object.
"""

from __future__ import annotations

import dataclasses
import json
import shlex
from typing import Annotated, Any

import typer

from rec_ray.cli.options import AsJson, Config, Project, Set, open_console, print_next, settings_of
from rec_ray.errors import ConfigError

lookup_app = typer.Typer()


@lookup_app.command()
def recommend(
    user_id: Annotated[str | None, typer.Argument(help="Id of the user.")] = None,
    any_user: Annotated[bool, typer.Option("--any", help="Pick a user of the live version.")] = False,
    count: Annotated[int, typer.Option("--count", "-n", min=1, help="Items to show.")] = 10,
    project: Project = None,
    config: Config = None,
    overrides: Set = None,
    as_json: AsJson = False,
) -> None:
    """Show a user's recommendations from the Feast online store."""
    if (user_id is None) != any_user:
        raise ConfigError("expected either a user id or --any")
    settings = settings_of(project, config, overrides)
    from rec_ray.cli.lookup import find_recommendations

    answer = find_recommendations(settings, user_id, count)
    _print_answer(answer, as_json, *(f"rec-ray similar {shlex.quote(item)}" for item in answer.item_ids[:1]))


@lookup_app.command()
def similar(
    item_id: Annotated[str, typer.Argument(help="Id of the item.")],
    count: Annotated[int, typer.Option("--count", "-n", min=1, help="Items to show.")] = 10,
    project: Project = None,
    config: Config = None,
    overrides: Set = None,
    as_json: AsJson = False,
) -> None:
    """Show the items most similar to an item in the live version."""
    settings = settings_of(project, config, overrides)
    from rec_ray.cli.lookup import similar_items

    _print_answer(similar_items(settings, item_id, count), as_json, "rec-ray versions")


def _print_answer(answer: Any, as_json: bool, *following: str) -> None:
    if as_json:
        print(json.dumps(dataclasses.asdict(answer)))
        return
    from rec_ray.reports.terminal import print_items

    console = open_console()
    print_items(console, answer.title, answer.item_ids, answer.scores, answer.names)
    print_next(console, *following)
