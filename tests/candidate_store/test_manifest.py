"""The manifest of candidates is read strictly: what an earlier program wrote is known, everything else is refused."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from rec_ray.candidate_store.manifest import (
    CandidatesManifest,
    Part,
    SearchView,
    parse_manifest,
    read_manifest,
    read_with_sum,
    write_manifest,
)
from rec_ray.errors import DataError
from rec_ray.storage.object_store import open_storage

SUM = "0" * 64
PARTS = {name: (Part("g/a.parquet", 2, 10, SUM),) for name in ("item_embeddings", "user_embeddings", "recommendations")}
WHOLE = CandidatesManifest(
    version="3",
    parts=PARTS,
    as_of=datetime(2024, 5, 1, tzinfo=UTC),
    k=5,
    items=2,
    users=2,
    similarity="dot",
    embedding_size=8,
    generation="g",
    facts={"recall": 0.5, "users_without_items": 1},
    search={"texts": SearchView({"name": 3}, "transformers:some")},
)


def test_a_manifest_comes_back_as_it_was_written(tmp_path: Path) -> None:
    storage = open_storage(str(tmp_path))
    write_manifest(storage, "c", WHOLE)
    assert read_manifest(storage, "c") == WHOLE
    assert read_with_sum(storage, "c")[1] == read_with_sum(storage, "c")[1] != SUM
    assert (WHOLE.rows("recommendations"), WHOLE.rows("similar_items"), WHOLE.lists) == (2, 0, 1)
    with pytest.raises(DataError, match=r"holds no complete candidates; run: rec-ray candidates VERSION"):
        read_manifest(storage, "d")


def test_the_format_of_earlier_programs_is_still_read() -> None:
    """It has no number, facts beside the other fields, and may lack sums."""
    old = {
        "version": "3",
        "as_of": "2024-05-01T00:00:00+00:00",
        "k": 5,
        "items": 2,
        "users": 2,
        "similarity": "cosine",
        "embedding_size": 8,
        "is_increment": False,
        "parts": {"recommendations": [{"name": "part-000000-000.parquet", "rows": 2}]},
        "engine": "exact",
        "short_lists": 1,
        "search": {"texts": {"vectors": {"name": 3}, "encoder": "transformers:some"}},
    }
    found = parse_manifest(json.dumps(old).encode(), "m")
    assert found.format_version == 1 and found.generation == ""
    assert found.facts == {"engine": "exact", "short_lists": 1}
    assert found.parts == {"recommendations": (Part("part-000000-000.parquet", 2),)}
    assert found.as_of == WHOLE.as_of and found.search == WHOLE.search
    assert parse_manifest(found.to_bytes(), "m") == found, "vectors are added to old candidates"


def changed(**values: Any) -> bytes:
    return json.dumps({**json.loads(WHOLE.to_bytes()), **values}).encode()


def with_part(**values: Any) -> bytes:
    part = {"name": "g/a.parquet", "rows": 2, "bytes": 10, "sha256": SUM, **values}
    parts = json.loads(WHOLE.to_bytes())["parts"]
    return changed(parts={**parts, "recommendations": [{name: part[name] for name in part if part[name] != "gone"}]})


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "no JSON object"),
        (b"\xff\x00", "no JSON object"),
        (b"[]", "no JSON object"),
        (b"{}", "version: .*required"),
        (WHOLE.to_bytes()[:200], "no JSON object"),
        (b"[" * 200_000, "no JSON object"),
        (b'{"a":' * 200_000, "no JSON object"),
        (changed(unknown=1), "unknown: "),
        (changed(embedding_size="8"), "embedding_size: "),
        (changed(is_increment=1), "is_increment: "),
        (changed(users=-1), "users: "),
        (changed(users=3), "'user_embeddings' has 2 rows instead of 3"),
        (changed(items=3), "'item_embeddings' has 2 rows instead of 3"),
        (changed(similarity="euclid"), "similarity: "),
        (changed(format_version=3), "format version 3, this program reads 1 to 2; upgrade rec_ray"),
        (changed(parts={}), "'user_embeddings' has 0 rows instead of 2"),
        (with_part(sha256="gone"), "no SHA-256 sum"),
        (with_part(bytes="gone"), "no SHA-256 sum or size"),
        (with_part(sha256="xyz"), "sha256: "),
        (with_part(rows=1e10), "rows: "),
        (with_part(rows=10**10), "'recommendations' has 10,000,000,000 rows instead of 2"),
        (with_part(rows=-2), "rows: "),
        (with_part(name="../../3/weights"), "outside its folder"),
        (with_part(name="/etc/passwd"), "outside its folder"),
    ],
)
def test_everything_else_is_refused_in_one_line(data: bytes, said: str) -> None:
    with pytest.raises(DataError, match=said) as caught:
        parse_manifest(data, "s3://b/m")
    assert "s3://b/m" in str(caught.value) and "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400
