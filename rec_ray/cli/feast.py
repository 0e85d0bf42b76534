"""Commands for an existing Feast repository: the options and output of `init --feast`, and `feast-views`.

Input: options. Output: decisions and files, on the terminal or as JSON. `sample` and `feature_store` do the work.
"""

from __future__ import annotations

import dataclasses
import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rec_ray.cli.options import AS_IS, AsJson, Config, Project, Set, open_console, print_next, settings_of

if TYPE_CHECKING:
    from rec_ray.feature_store.feast_views import PublishedViews
    from rec_ray.sample.roles import Question

Feast = Annotated[
    Path | None, typer.Option("--feast", help="Your own Feast repository: its folder or its feature_store.yaml.")
]
EventsView = Annotated[str | None, typer.Option(help="With --feast: the view whose rows are the events.")]
DECISION = 24
"""Width of the decision column; longer decisions shift their reasons to the right."""
PublishViews = Annotated[
    bool,
    typer.Option("--publish-views", help="With --feast: also write rec_ray_views.py, as `feast-views` does."),
]


@dataclasses.dataclass(frozen=True)
class InitOptions:
    """Options of `init --feast`. wished: the fields of `LayoutOptions`. asks: prompt for ambiguous decisions."""

    wished: tuple[str | None, ...]
    asks: bool
    publish_views: bool
    as_json: bool


def init_feast(folder: Path, repo: Path, options: InitOptions) -> None:
    """Make a project for a Feast repository, print each decision and the next command."""
    from rec_ray.sample.feast_layout import LayoutOptions
    from rec_ray.sample.feast_project import init_from_feast

    made = init_from_feast(folder, repo, LayoutOptions(*options.wished), _ask if options.asks else None)
    views = _write_views(made.settings) if options.publish_views else None
    if options.as_json:
        print(json.dumps(dataclasses.asdict(made) | {"views": views and views.file}, default=str))
        return
    console = open_console()
    wide = max(len(choice.what) for choice in made.choices), max(len(choice.decision) for choice in made.choices)
    console.print(f"Decisions on {made.repo}", **AS_IS)
    for choice in made.choices:
        option = f"  [{choice.option}]" if choice.option else ""
        line = f"  {choice.what:<{wide[0]}}  {choice.decision:<{min(wide[1], DECISION)}}  {choice.why}{option}"
        console.print(line, **AS_IS)
    console.print(f"{made.events:,} events of {made.users:,} users and {made.items:,} items", highlight=False)
    for warning in made.warnings:
        console.print(f"WARNING: {warning}", markup=False, highlight=False)
    console.print(f"Settings: {made.settings}", **AS_IS)
    if views is not None:
        console.print(f"Views to publish to: {views.file}", **AS_IS)
    place = shlex.quote(str(folder))
    register = f"rec-ray feast-views -C {place} --apply && " if views is not None and views.is_new else ""
    print_next(console, f"{register}rec-ray run -C {place}")


def _ask(question: Question) -> str:
    """Prompt until the answer is one of the choices."""
    text = f"{question.text} ({', '.join(question.choices)})"
    while (answer := str(typer.prompt(text, default=question.guess))) not in question.choices:
        typer.echo(f"{answer!r} is none of them")
    return answer


def _write_views(file: Path) -> PublishedViews:
    from rec_ray.config.loading import load_settings
    from rec_ray.feature_store.feast_views import plan_views, write_views
    from rec_ray.feature_store.repository import open_store

    settings = load_settings(file)
    store = open_store(settings.feast.repo)
    plan = plan_views(store, settings)
    write_views(store, settings, plan)
    return plan


feast_app = typer.Typer()


@feast_app.command("feast-views")
def feast_views(
    apply: Annotated[bool, typer.Option("--apply", help="Add the views to the registry, too.")] = False,
    project: Project = None,
    config: Config = None,
    overrides: Set = None,
    as_json: AsJson = False,
) -> None:
    """Write feature views for the published data of a run into your Feast repository, as rec_ray_views.py."""
    settings = settings_of(project, config, overrides)
    from rec_ray.feature_store.feast_views import apply_views, plan_views, write_views
    from rec_ray.feature_store.repository import open_store

    store = open_store(settings.feast.repo)
    plan = plan_views(store, settings)
    if not as_json:
        console = open_console()
        console.print(f"{'To add to' if plan.is_new else 'Already in'} Feast project {store.project}:", **AS_IS)
        for view, fields in plan.views.items():
            console.print(f"  + view {view}: {', '.join(fields)}", **AS_IS)
        console.print(f"  + push sources {', '.join(plan.push_sources)}; feature service recommendations", **AS_IS)
    write_views(store, settings, plan)
    if apply:
        apply_views(store, plan)
    if as_json:
        print(json.dumps({"file": str(plan.file), "views": plan.views, "new": plan.is_new, "applied": apply}))
        return
    console.print(f"Written{' and applied' if apply else ''}: {plan.file}", **AS_IS)
    place = f" -C {shlex.quote(str(project))}" if project else ""
    print_next(
        console,
        f"rec-ray publish{place}" if apply else f"rec-ray feast-views{place} --apply   (or `feast apply` there)",
    )
