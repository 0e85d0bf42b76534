"""Options shared by most commands, as annotated types, and the settings that they select.

`settings_of` loads the settings of a command; `redirect_stdout` keeps standard output free for its report;
`name_project` completes the commands in hints with the project, so that they can be pasted.
"""

from __future__ import annotations

import contextlib
import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

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


_COMMAND = re.compile(
    r"\brec-ray (?:versions (?:list|show|rollback|prune|unlock)|data append|config explain|"
    r"feast-views|vector-index|[a-z]+)"
    r"(?![\w-])(?! -C)"
)
_WITHOUT_PROJECT = ("rec-ray init", "rec-ray config", "rec-ray render")
_selected: list[str] = []
"""Options that selected the settings of this command, as a shell reads them."""
PIPE_COLUMNS = 1000
"""Width of tables and lines outside a terminal, where nothing has to be wrapped or cut."""


def name_project(text: str) -> str:
    """Return a text with `-C FOLDER`, quoted for the shell, in each command of this program that it names."""
    if not _selected:
        return text

    def complete(found: re.Match[str]) -> str:
        command = found[0]
        return command if command.startswith(_WITHOUT_PROJECT) else f"{command} {' '.join(_selected)}"

    return _COMMAND.sub(complete, text)


def open_console() -> Console:
    """Return the console for reports; outside a terminal it neither wraps nor cuts lines."""
    console = Console()
    if not console.is_terminal and "COLUMNS" not in console._environ:
        console.width = PIPE_COLUMNS
    return console


def print_next(console: Console, *commands: str) -> None:
    """Print the commands to try next, ready to be pasted."""
    for place, command in enumerate(commands):
        console.print(f"{'      ' if place else 'Next: '}{name_project(command)}", style="bold", **AS_IS)


AS_IS: dict[str, Any] = {"markup": False, "highlight": False, "soft_wrap": True}
"""Options of `Console.print` for paths and commands, which a wrapped line would break."""


def forget_project() -> None:
    """Forget the options of an earlier command of this process."""
    _selected.clear()


def settings_of(project: Path | None, config: Path | None, overrides: list[str] | None) -> Settings:
    """Load the settings selected by the options and mask their secrets in all later log lines.

    Raises:
        ConfigError: both options are given, or the settings are wrong.
    """
    if project is not None and config is not None:
        raise ConfigError("--project and --config both select settings; use one of them")
    path = config if config is not None else (project or Path()) / SETTINGS_FILE
    options = ("--config", config) if config is not None else ("-C", project)
    _selected[:] = [options[0], shlex.quote(str(options[1]))] if options[1] is not None else []
    settings = load_settings(path, overrides or [])
    hide_secrets(find_secrets(settings))
    return settings


def redirect_stdout(command: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    """Call a function with standard output redirected to standard error, so that only the report uses the former."""
    with contextlib.redirect_stdout(sys.stderr):
        return command(*arguments, **named)
