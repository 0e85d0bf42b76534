"""The options that most commands share, and what is done with them.

What a person typed comes in; settings go out, and standard output stays free for the answer. It knows no command.
Options are types: a command takes those it has as arguments.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from rec_ray.config import Settings, secrets_of
from rec_ray.config.loading import SETTINGS_FILE, load_settings
from rec_ray.errors import ConfigError
from rec_ray.logs import hide

Project = Annotated[
    Path | None,
    typer.Option("--project", "-C", help="Folder of the project; its rec_ray.yaml is used.", show_default="here"),
]
Config = Annotated[Path | None, typer.Option("--config", help="Settings file.", show_default="./rec_ray.yaml")]
Set = Annotated[
    list[str] | None, typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Override a setting; may be repeated.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else on standard output.")]
RunId = Annotated[
    str | None,
    typer.Option("--run-id", envvar="REC_RAY_RUN_ID", help="Name of the run; the same name goes on where it stopped."),
]


def settings_of(project: Path | None, config: Path | None, overrides: list[str] | None) -> Settings:
    """Return the settings that the options name; from then on their secrets are in no log line.

    Raises:
        ConfigError: the options contradict each other, or the settings are wrong.
    """
    if project is not None and config is not None:
        raise ConfigError("--project and --config name the settings twice; give one of them")
    path = config if config is not None else (project or Path()) / SETTINGS_FILE
    settings = load_settings(path, overrides or [])
    hide(secrets_of(settings))
    return settings


def aside(command: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    """Call a function; what it or Ray prints meanwhile goes to standard error, as standard output is for the answer."""
    with contextlib.redirect_stdout(sys.stderr):
        return command(*arguments, **named)
