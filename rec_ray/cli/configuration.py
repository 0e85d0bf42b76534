"""The command `rec-ray config explain`: the meaning, the values, the default and the present value of a setting.

It calls one function and prints its result as lines or as one JSON object.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated, Any

import typer

from rec_ray.cli.options import AS_IS, AsJson, Config, Project, Set, open_console, settings_of
from rec_ray.config.loading import SETTINGS_FILE

config_app = typer.Typer(help="Explain settings.", no_args_is_help=True)


@config_app.callback()
def _config() -> None:
    """Explain settings."""


@config_app.command()
def explain(
    name: Annotated[str, typer.Argument(metavar="SECTION.KEY", help="Setting, such as train.epochs.")],
    project: Project = None,
    config: Config = None,
    overrides: Set = None,
    as_json: AsJson = False,
) -> None:
    """Print the meaning of a setting, its values, its default, its variable and its value in the project."""
    from rec_ray.config.reference import find_entry

    entry = find_entry(name)
    answer: dict[str, Any] = dataclasses.asdict(entry)
    if project is not None or config is not None or Path(SETTINGS_FILE).exists():
        answer["value"] = _present(settings_of(project, config, overrides), entry.name)
    if as_json:
        print(json.dumps(answer, default=str))
        return
    console = open_console()
    console.print(entry.name, style="bold", **AS_IS)
    rows = {"meaning": "description", "values": "allowed", "default": "default", "variable": "variable"}
    for title, key in [*rows.items(), *([("now", "value")] if "value" in answer else [])]:
        console.print(f"  {title:<9} {answer[key]}", **AS_IS)
    console.print(f"  {'to change':<9} in {SETTINGS_FILE}, or --set {entry.name}=VALUE", **AS_IS)


def _present(settings: Any, name: str) -> str:
    from rec_ray.config.reference import to_yaml

    value = settings.model_dump(mode="json")
    for key in name.split("."):
        value = value[key]
    return to_yaml(value)
