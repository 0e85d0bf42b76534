"""Options shared by most commands, as annotated types, and the settings that they select.

`settings_of` loads the settings of a command; `redirect_stdout` keeps standard output free for its report.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from rec_ray.config import Settings, find_secrets
from rec_ray.config.loading import SETTINGS_FILE, load_settings
from rec_ray.errors import ConfigError
from rec_ray.logs import hide_secrets

Project = Annotated[
    Path | None,
    typer.Option("--project", "-C", help="Project folder with a rec_ray.yaml.", show_default="current folder"),
]
Config = Annotated[Path | None, typer.Option("--config", help="Settings file.", show_default="./rec_ray.yaml")]
Set = Annotated[
    list[str] | None, typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Override a setting; repeatable.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else on standard output.")]
RunId = Annotated[
    str | None,
    typer.Option(
        "--run-id", envvar="REC_RAY_RUN_ID", help="Name of the run; a failed run with the same name is resumed."
    ),
]


def settings_of(project: Path | None, config: Path | None, overrides: list[str] | None) -> Settings:
    """Load the settings selected by the options and mask their secrets in all later log lines.

    Raises:
        ConfigError: both options are given, or the settings are wrong.
    """
    if project is not None and config is not None:
        raise ConfigError("--project and --config both select settings; use one of them")
    path = config if config is not None else (project or Path()) / SETTINGS_FILE
    settings = load_settings(path, overrides or [])
    hide_secrets(find_secrets(settings))
    return settings


def redirect_stdout(command: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    """Call a function with standard output redirected to standard error, so that only the report uses the former."""
    with contextlib.redirect_stdout(sys.stderr):
        return command(*arguments, **named)
