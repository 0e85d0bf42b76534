"""The command `rec-ray forget`: deletes users and items from all stored data.

It calls one function and prints its result as a table or as one JSON object.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated

import typer

from rec_ray.cli.options import AsJson, Config, Project, Set, open_console, print_next, redirect_stdout, settings_of
from rec_ray.errors import ConfigError

forget_app = typer.Typer()


@forget_app.command()
def forget(
    ids: Annotated[list[str] | None, typer.Argument(help="Ids of users, or of items with --items.")] = None,
    file: Annotated[Path | None, typer.Option("--file", help="File with further ids, one per line.")] = None,
    items: Annotated[bool, typer.Option("--items", help="The ids are those of items.")] = False,
    project: Project = None,
    config: Config = None,
    overrides: Set = None,
    as_json: AsJson = False,
) -> None:
    """Forget users or items: delete them from lists, vectors and the online store, and leave them out of every run."""
    settings = settings_of(project, config, overrides)
    from rec_ray.pipeline import run_forgetting

    named = [*(ids or []), *(_read_ids(file) if file else [])]
    if not named:
        raise ConfigError("name the users to forget, or a file with their ids: rec-ray forget --file IDS")
    found = redirect_stdout(run_forgetting, settings, [] if items else named, named if items else [])
    if as_json:
        print(json.dumps(dataclasses.asdict(found)))
        return
    from rec_ray.reports.terminal import print_rows

    rows: dict[str, object] = {
        "forgotten": f"{found.users:,} users, {found.items:,} items",
        "candidates rewritten": len(found.candidates),
        "files of runs and reports rewritten or deleted": len(found.files),
        "views without their rows": ", ".join(found.views),
    }
    console = open_console()
    print_rows(console, "Forgotten", rows | dict.fromkeys(found.not_touched, "not deleted: left to their owner"))
    print_next(console, "rec-ray versions")


def _read_ids(file: Path) -> list[str]:
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--file {file} cannot be read as UTF-8 text: {type(error).__name__}") from None
    return [line.strip() for line in lines if line.strip()]
