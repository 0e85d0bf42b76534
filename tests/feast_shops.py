"""Feast repositories as people have them, generated: files or tables with the definitions over them."""

from datetime import timedelta

import numpy as np
import pandas as pd
from feast import Entity, FeatureService, FeatureView, Field, FileSource, PushSource, ValueType
from feast.infra.offline_stores.contrib.postgres_offline_store.postgres_source import PostgreSQLSource
from feast.types import Bytes, Float32, Int64, String
from tiny_offline_store import TinySource

START = pd.Timestamp("2026-01-01", tz="UTC")
N = 400
GROUPS = 20
WEEKS = pd.to_timedelta(np.arange(0, 100, 7), unit="D")


def entity(name, key, kind=ValueType.INT64):
    return Entity(name=name, join_keys=[key], value_type=kind)


class Repo:
    """Files and definitions of a repository."""

    def __init__(self, folder):
        self.folder, self.objects, self.frames = folder, [], {}
        (folder / "data").mkdir(parents=True)

    def source(self, name, frame, time="event_timestamp", **more):
        self.frames[f"{name}_source"] = frame
        path = self.folder / "data" / f"{name}.parquet"
        frame.to_parquet(path, index=False)
        return FileSource(name=f"{name}_source", path=str(path), timestamp_field=time, **more)

    def pushed(self, name, frame, **more):
        """Return a push source over the same."""
        return PushSource(name=f"{name}_push", batch_source=self.source(name, frame, **more))

    def view(self, name, entities, fields, source, ttl=timedelta(0)):
        schema = [Field(name=field, dtype=dtype) for field, dtype in fields.items()]
        view = FeatureView(name=name, entities=entities, ttl=ttl, schema=schema, source=source)
        self.objects += [*entities, view]
        return view


class TableRepo(Repo):
    """The same in a schema of PostgreSQL."""

    def __init__(self, folder, engine):
        super().__init__(folder)
        self.engine = engine

    def source(self, name, frame, time="event_timestamp", **more):
        self.frames[f"{name}_source"] = frame
        with self.engine.begin() as connection:
            connection.exec_driver_sql("CREATE SCHEMA IF NOT EXISTS theirs")
            frame.to_sql(name, connection, schema="theirs", index=False)
        table = f"SELECT * FROM theirs.{name}"
        return PostgreSQLSource(name=f"{name}_source", query=table, timestamp_field=time, **more)


class TinyRepo(Repo):
    """The same in an offline store of one's own."""

    def source(self, name, frame, time="event_timestamp", **more):
        self.frames[f"{name}_source"] = frame
        path = self.folder / "data" / f"{name}.table"
        frame.to_pickle(path)
        return TinySource(str(path), name=f"{name}_source", timestamp_field=time, **more)


def people(random, key):
    begun = START - pd.Timedelta("400D")
    return pd.DataFrame({key: np.arange(1, N + 1), "event_timestamp": begun, "age": random.integers(15, 80, N)})


def films(folder, random, repo=None):
    """Ratings without a type, three views, no service, no push source.

    Viewers of a town see films of one genre: both are numbers modulo GROUPS.
    """
    repo = repo or Repo(folder)
    viewer, film = entity("viewer", "userid"), entity("film", "movie_id")
    viewers = people(random, "userid").assign(town=lambda rows: [f"town {k % GROUPS}" for k in rows.userid])
    repo.view("viewer_features", [viewer], {"age": Int64, "town": String}, repo.source("viewers", viewers))
    more = random.choice(["Noir", "Comedy", "Silent", "Short"], N)
    genres = ["|".join(random.permutation([f"genre {k % GROUPS}", more[k - 1]])) for k in range(1, N + 1)]
    catalogue = pd.DataFrame({"movie_id": np.arange(1, N + 1), "event_timestamp": START - pd.Timedelta("400D")})
    catalogue = catalogue.assign(title=[f"The film {k}" for k in range(N)], genres=genres, poster=b"x")
    fields = {"title": String, "genres": String, "poster": Bytes}
    repo.view("film_features", [film], fields, repo.source("films", catalogue))
    rated = events(random, "userid", "movie_id").assign(rating=random.integers(1, 6, 4 * N).astype("float32"))
    rated = rated.assign(created=rated.event_timestamp)
    source = repo.source("ratings", rated, created_timestamp_column="created")
    repo.view("ratings", [viewer, film], {"rating": Float32}, source)
    return repo


def model_shop(repo, random):
    """Text keys, views that are pushed to, two views of events, features that expire, one service for a model."""
    user, item = entity("user", "uid", ValueType.STRING), entity("product", "pid", ValueType.STRING)
    begun = START - pd.Timedelta("1D")
    of_group = lambda key: lambda rows: rows[key].map(lambda k: f"group {int(k[1:]) % GROUPS}")  # noqa: E731
    users = people(random, "uid").assign(uid=lambda rows: "u" + rows.uid.astype(str), town=of_group("uid"))
    profile = repo.view("profile", [user], {"age": Int64, "town": String}, repo.pushed("profile", users))
    weeks = [users[["uid"]].assign(visits=random.integers(0, 9, N), event_timestamp=begun + week) for week in WEEKS]
    weeks = pd.concat(weeks).assign(created=lambda rows: rows.event_timestamp)
    late = weeks.iloc[::7].assign(visits=99, created=lambda rows: rows.created + pd.Timedelta("1h"))
    both = pd.concat([late, weeks])
    source = repo.pushed("habits", both, created_timestamp_column="created")
    habits = repo.view("habits", [user], {"visits": Int64}, source, ttl=timedelta(days=30))
    things = people(random, "pid").assign(pid=lambda rows: "p" + rows.pid.astype(str), shelf=of_group("pid"))
    things = repo.view("things", [item], {"shelf": String, "age": Int64}, repo.pushed("things", things))
    clicks = events(random, "uid", "pid").assign(
        uid=lambda rows: "u" + rows.uid.astype(str), pid=lambda rows: "p" + rows.pid.astype(str)
    )
    clicks["action"] = random.choice(["view", "buy"], len(clicks))
    few = repo.view("calls", [user, item], {"action": String}, repo.pushed("calls", clicks.head(N)))
    clicks = repo.view("clicks", [user, item], {"action": String}, repo.pushed("clicks", clicks))
    repo.objects.append(FeatureService(name="ranker_v2", features=[profile, habits[["visits"]], things, clicks, few]))
    return repo


def events(random, user, item):
    """Return events of which nine in ten are of a user and an item of one group: their number modulo GROUPS."""
    times = START + pd.to_timedelta(np.sort(random.integers(0, 100 * 86400, 4 * N)), unit="s")
    who, what = random.integers(1, N + 1, 4 * N), random.integers(1, N + 1, 4 * N)
    alike = (who - 1) % GROUPS + 1 + GROUPS * random.integers(0, N // GROUPS, 4 * N)
    return pd.DataFrame({user: who, item: np.where(random.random(4 * N) < 0.9, alike, what), "event_timestamp": times})
