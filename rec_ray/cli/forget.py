"""The command `rec-ray forget`: users and items leave everything that the program stores.

Options come in, one function that does the work is called, its answer is printed as a table or as one JSON object. No
command has logic of its own.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from rec_ray.cli.options import AsJson, Config, Project, Set, redirect_stdout, settings_of
from rec_ray.errors import ConfigError

forget_app = typer.Typer()


@forget_app.command()
def forget(
    ids: Annotated[list[str] | None, typer.Argument(help="Ids of users, or of items with --items.")] = None,
    file: Annotated[Path | None, typer.Option("--file", help="File with further ids, one a line.")] = None,
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
        "candidates written anew": len(found.candidates),
        "files of runs and reports written anew or deleted": len(found.files),
        "views without their rows": ", ".join(found.views),
    }
    print_rows(Console(), "Forgotten", rows | dict.fromkeys(found.not_touched, "not touched: for their owner to clear"))


def _read_ids(file: Path) -> list[str]:
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--file {file} cannot be read as UTF-8 text: {type(error).__name__}") from None
    return [line.strip() for line in lines if line.strip()]
