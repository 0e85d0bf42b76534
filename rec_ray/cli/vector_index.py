"""Command `vector-index`: indexes of a PostgreSQL online store."""

from __future__ import annotations

import json
from enum import StrEnum
from typing import Annotated

import typer

from rec_ray.cli.options import AsJson, Config, Project, Set, open_console, print_next, redirect_stdout, settings_of

vector_index_app = typer.Typer()


class VectorIndex(StrEnum):
    """Index types of pgvector."""

    HNSW = "hnsw"
    IVFFLAT = "ivfflat"


@vector_index_app.command("vector-index")
def vector_index(
    kind: Annotated[VectorIndex, typer.Option(help="Kind of pgvector index.")] = VectorIndex.HNSW,
    drop: Annotated[
        bool, typer.Option("--drop", help="Remove the indexes; needed before embedding_size changes.")
    ] = False,
    project: Project = None,
    config: Config = None,
    overrides: Set = None,
    as_json: AsJson = False,
) -> None:
    """Create the vector indexes in a PostgreSQL online store, which Feast does not create."""
    settings = settings_of(project, config, overrides)
    from rec_ray.cli.maintenance import run_indexing

    done = redirect_stdout(run_indexing, settings, kind.value, drop=drop)
    if as_json:
        print(json.dumps(done))
        return
    from rec_ray.reports.terminal import print_rows

    console = open_console()
    print_rows(console, "Vector indexes", done)
    print_next(console, "rec-ray doctor")
