"""One online vector query a user, as the replaced system did, beside the search of all: `python tests/bench_online.py`.

A real PostgreSQL with pgvector holds the items; a client asks it for the nearest of one user after another, over one
connection that stays open. That leaves out what Feast does around each query, so the ratio is the least there is.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from typing import Any

import numpy as np
import psycopg
from bench_top_k import random_vectors
from servers import PostgreSQL, running

from rec_ray.retrieval.search import ExactTopK


def text_of(vector: np.ndarray[Any, Any]) -> str:
    """Return a vector in pgvector's notation, with all its digits."""
    return "[" + ",".join(repr(float(value)) for value in vector) + "]"


def bench(users: int, items: int, k: int, rounds: int) -> dict[str, Any]:
    """Return users a second of both ways and how far their lists agree."""
    catalogue, queries = random_vectors(1, items, 64), random_vectors(2, users, 64)
    server = PostgreSQL()
    with running(server):
        address = server.url.replace("postgresql://rec_ray@", f"postgresql://rec_ray:{server.password}@")
        with psycopg.connect(address, autocommit=True) as connection:
            connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
            connection.execute("CREATE TABLE items (id integer PRIMARY KEY, embedding vector(64))")
            with connection.cursor().copy("COPY items (id, embedding) FROM STDIN") as copy:
                for number, vector in enumerate(catalogue):
                    copy.write_row((number, text_of(vector)))
            connection.execute("ANALYZE items")
            wanted = "SELECT id FROM items ORDER BY embedding <=> %s::vector LIMIT %s"
            found, started = [], time.perf_counter()
            for query in queries:
                found.append([row[0] for row in connection.execute(wanted, (text_of(query), k))])
            online = users / (time.perf_counter() - started)
    search = ExactTopK(catalogue)
    lists = search.search(queries, k)[0]
    rates = []
    for _ in range(rounds):
        started = time.perf_counter()
        lists = search.search(queries, k)[0]
        rates.append(users / (time.perf_counter() - started))
    same = [len(set(mine) & set(theirs)) / k for mine, theirs in zip(lists.tolist(), found, strict=True)]
    return {
        "users": users,
        "items": items,
        "online_users_per_second": round(online, 1),
        "search_users_per_second": round(statistics.median(rates)),
        "search_over_online": round(statistics.median(rates) / online),
        "share_of_items_that_agree": round(statistics.fmean(same), 4),
    }


def main() -> None:
    """Print one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--users", type=int, default=2000)
    parser.add_argument("--items", type=int, default=20_000)
    parser.add_argument("--k", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    print(json.dumps({"online": bench(arguments.users, arguments.items, arguments.k, arguments.rounds)}))


if __name__ == "__main__":
    main()
