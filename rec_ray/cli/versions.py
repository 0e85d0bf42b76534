"""The commands `rec-ray versions ...`: list, show, rollback, prune, unlock.

Each loads the settings, calls one function and prints its result as a table or as one JSON object.
"""

from __future__ import annotations

import dataclasses
import json
from typing import Annotated

import typer

from rec_ray.cli.options import AsJson, Config, Project, Set, open_console, print_next, redirect_stdout, settings_of
from rec_ray.errors import ConfigError

versions_app = typer.Typer(help="List versions, show one, roll back to one, prune old ones.")

OneVersion = Annotated[str, typer.Argument(help="Version of the model.")]


@versions_app.callback(invoke_without_command=True)
def versions(
    context: typer.Context,
    project: Project = None,
    config: Config = None,
    overrides: Set = None,
    as_json: AsJson = False,
) -> None:
    """List all versions with their state: live, published before, stored, refused, pruned."""
    if context.invoked_subcommand is None:
        _list(project, config, overrides, as_json)
    elif project is not None or config is not None or overrides or as_json:
        raise ConfigError(f"options go after the command: rec-ray versions {context.invoked_subcommand} -C ...")


@versions_app.command("list")
def list_all(project: Project = None, config: Config = None, overrides: Set = None, as_json: AsJson = False) -> None:
    """List the versions, the live one first; the same as `rec-ray versions`."""
    _list(project, config, overrides, as_json)


def _list(project: Project, config: Config, overrides: Set, as_json: bool) -> None:
    settings = settings_of(project, config, overrides)
    from rec_ray.cli.version_listing import list_versions

    found = list_versions(settings)
    if as_json:
        print(json.dumps({"versions": found}, default=str))
        return
    from rec_ray.reports.terminal import print_versions

    console = open_console()
    print_versions(console, found)
    print_next(console, *([f"rec-ray versions show {found[0]['version']}"] if found else ["rec-ray run"]))


@versions_app.command()
def show(
    version: OneVersion,
    project: Project = None,
    config: Config = None,
    overrides: Set = None,
    as_json: AsJson = False,
) -> None:
    """Show one version: metrics, data range, parent, run, checksum, address, completeness of its files."""
    settings = settings_of(project, config, overrides)
    from rec_ray.cli.version_listing import next_for, show_version

    found = show_version(settings, version)
    if as_json:
        print(json.dumps(found, default=str))
        return
    from rec_ray.reports.terminal import print_version

    console = open_console()
    print_version(console, found)
    print_next(console, next_for(found))


@versions_app.command()
def rollback(
    version: OneVersion,
    project: Project = None,
    config: Config = None,
    overrides: Set = None,
    as_json: AsJson = False,
) -> None:
    """Push the stored recommendations of a previously live version again and make it live."""
    settings = settings_of(project, config, overrides)
    from rec_ray.cli.refusals import is_live

    if is_live(settings, version):
        said = f"version {version} is live already; nothing was done"
        print(json.dumps({"version": version, "done": said}) if as_json else f"{said[0].upper()}{said[1:]}.")
        if not as_json:
            print_next(open_console(), "rec-ray versions", f"rec-ray publish {version}   (pushes its lists again)")
        return
    from rec_ray.pipeline import run_rollback

    report = redirect_stdout(run_rollback, settings, version)
    if as_json:
        print(json.dumps(dataclasses.asdict(report), default=str))
        return
    from rec_ray.reports.terminal import print_rows

    console = open_console()
    print_rows(console, f"Version {report.version} is live again", report.counts)
    print_rows(console, "Seconds of each step", report.seconds | {"total": sum(report.seconds.values())})
    print_next(console, "rec-ray recommend --any")


@versions_app.command()
def prune(
    keep: Annotated[int, typer.Option("--keep", min=1, help="Number of newest versions whose files are kept.")],
    project: Project = None,
    config: Config = None,
    overrides: Set = None,
    as_json: AsJson = False,
) -> None:
    """Remove the files of old versions, except the live version and its parent; their records stay."""
    settings = settings_of(project, config, overrides)
    from rec_ray.cli.maintenance import run_pruning

    pruned = run_pruning(settings, keep)
    if as_json:
        print(json.dumps(dataclasses.asdict(pruned)))
        return
    from rec_ray.reports.terminal import print_rows

    console = open_console()
    print_rows(console, "Kept", pruned.kept)
    removed: dict[str, object] = dict.fromkeys(pruned.removed, "files removed, record kept")
    if pruned.replaced_parts:
        removed["parts of replaced candidates"] = pruned.replaced_parts
    print_rows(console, "Removed", removed)
    print_next(console, "rec-ray versions")


@versions_app.command()
def unlock(
    yes: Annotated[bool, typer.Option("--yes", help="Free the lock; without it the holder is only shown.")] = False,
    project: Project = None,
    config: Config = None,
    overrides: Set = None,
    as_json: AsJson = False,
) -> None:
    """Show the holder of the publishing lock and its age; with --yes free the lock of a publisher that is dead."""
    settings = settings_of(project, config, overrides)
    from rec_ray.cli.maintenance import run_unlocking

    found = run_unlocking(settings, yes=yes)
    if as_json:
        print(json.dumps(found, default=str))
        return
    from rec_ray.reports.terminal import print_rows

    console = open_console()
    print_rows(console, "Publishing lock", found)
    free = "held for" in found and not yes
    print_next(console, "rec-ray versions unlock --yes" if free else "rec-ray publish")
