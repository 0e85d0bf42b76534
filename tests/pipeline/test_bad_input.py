"""A fault that was foreseen ends a command with one line and its exit code, wherever in Ray it was raised."""

import json
from datetime import UTC, datetime, timedelta

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from rec_ray.cli.main import main
from rec_ray.errors import DataError, FeatureStoreError, RecRayError, SchemaError, find_known_cause

pytestmark = [pytest.mark.usefixtures("processes"), pytest.mark.usefixtures("local_ray")]

START = datetime(2024, 1, 1, tzinfo=UTC)


def shop(count=60, **more):
    """Three users, two items, an event an hour, two of them at each time."""
    numbers = range(count)
    return {
        "interactions": pa.table(
            {
                "user_id": [f"u{number % 3}" for number in numbers],
                "item_id": [f"i{number % 2}" for number in numbers],
                "interaction_type": ["view", "skip"] * (count // 2),
                "event_timestamp": [START + timedelta(hours=number // 2) for number in numbers],
                **more,
            }
        ),
        "users": pa.table({"user_id": ["u0", "u1", "u2"], "age": [1.0, 2.0, 3.0]}),
        "items": pa.table({"item_id": ["i0", "i1"], "price": [1.0, 2.0]}),
    }


@pytest.fixture
def train(capsys):
    """Run `rec-ray train` and return its exit code and the one line that it says about the fault."""

    def run(project, *options):
        code = main(["train", "-C", str(project), *options])
        printed = capsys.readouterr()
        assert printed.out == ""
        lines = [line for line in printed.err.splitlines() if line.startswith("rec-ray: ")]
        assert len(lines) == 1, printed.err
        assert "Traceback" not in printed.err
        assert "github.com/ray-project" not in printed.err, "it is no fault of Ray's"
        return code, lines[0]

    return run


def data_of(project, name):
    return project / "feature_repo" / "data" / f"{name}.parquet"


def break_rows(path):
    """Overwrite the pages of a Parquet file and leave its footer as it is."""
    whole = path.read_bytes()
    path.write_bytes(whole[:4] + b"\xff" * 40 + whole[44:])


def test_errors_of_a_task_keep_their_type_and_words_whatever_ray_made_of_them(local_ray):
    """Ray raises a subclass of the error whose text is a traceback; the error itself is its cause."""
    import ray.data

    def fail(*_):
        raise SchemaError("column 'price' is text")

    def ask(way):
        with pytest.raises(Exception) as caught:
            way()
        return find_known_cause(caught.value)

    task = local_ray.remote(fail)
    numbers = ray.data.range(4, override_num_blocks=2)
    ways = [
        lambda: local_ray.get(task.remote(1)),
        # A task that needs what another one failed to make.
        lambda: local_ray.get(local_ray.remote(lambda made: made).remote(task.remote(1))),
        lambda: numbers.map_batches(fail).materialize(),
        lambda: list(numbers.map_batches(fail).iter_batches()),
        lambda: numbers.repartition(1).map_batches(fail, batch_size=None).to_arrow_refs(),
    ]
    for way in ways:
        found = ask(way)
        assert type(found) is SchemaError
        assert str(found) == "column 'price' is text"


def test_errors_that_were_not_foreseen_are_left_as_they_are(local_ray):
    def fail():
        raise ZeroDivisionError("by nought")

    with pytest.raises(ZeroDivisionError) as caught:
        local_ray.get(local_ray.remote(fail).remote())
    assert find_known_cause(caught.value) is caught.value
    assert not isinstance(caught.value, RecRayError)


def test_an_error_behind_others_is_found():
    with pytest.raises(RuntimeError) as caught:
        try:
            try:
                raise DataError("the file x is damaged")
            except DataError as error:
                raise ValueError("reading failed") from error
        except ValueError as error:
            raise RuntimeError("a step failed") from error
    assert str(find_known_cause(caught.value)) == "the file x is damaged"
    plain = FeatureStoreError("the registry is gone")
    assert find_known_cause(plain) is plain


def test_only_negative_events_end_with_4_and_name_the_types(tmp_path, make_project, train):
    settings = {"features": {"interaction": {"type_field": "interaction_type", "negative_types": ["skip", "view"]}}}
    code, said = train(make_project(tmp_path, **shop(), settings=settings))
    assert code == 4
    assert "no positive event" in said
    assert "'view': " in said
    assert "'skip', 'view'" in said


def test_a_missing_column_ends_with_4_and_is_named(tmp_path, make_project, train):
    project = make_project(tmp_path, **shop())
    path = data_of(project, "interactions")
    pq.write_table(pq.read_table(path).drop_columns(["item_id"]), path)
    code, said = train(project)
    assert code == 4
    assert "interactions.parquet lacks the columns 'item_id'; it has 'user_id'" in said


def test_a_column_of_a_wrong_type_ends_with_4_and_is_named(tmp_path, make_project, train):
    """Found in a task, as the types of ids are looked at when rows are read."""
    project = make_project(tmp_path, **shop())
    path = data_of(project, "interactions")
    table = pq.read_table(path)
    pq.write_table(table.set_column(0, "user_id", pa.array([0.5] * table.num_rows)), path)
    code, said = train(project)
    assert code == 4
    assert "user_id is double; an id must be text or a whole number" in said


def test_no_interaction_left_ends_with_4(tmp_path, make_project, train):
    project = make_project(tmp_path, **shop())
    path = data_of(project, "interactions")
    pq.write_table(pq.read_schema(path).empty_table(), path)
    code, said = train(project)
    assert code == 4
    assert "no usable interaction among 0 rows" in said


def test_a_service_that_does_not_exist_ends_with_2_and_lists_those_there_are(tmp_path, make_project, train):
    code, said = train(make_project(tmp_path, **shop()), "--set", "feast.user_service=usr_service")
    assert code == 2
    assert "no feature service 'usr_service'" in said
    for name in ("user_service", "item_service", "interaction_service"):
        assert f"'{name}'" in said


@pytest.mark.parametrize("table", ["interactions", "users"])
def test_a_damaged_file_ends_with_4_and_is_named(tmp_path, make_project, train, table):
    """Interactions are read first by plain tasks of Ray, users within Ray Data."""
    project = make_project(tmp_path, **shop())
    break_rows(data_of(project, table))
    code, said = train(project)
    assert code == 4
    assert f"{table}.parquet is damaged" in said


def test_feasts_default_store_loses_no_row(tmp_path, make_project, capsys):
    """Feast's own Dask join makes one row of those that share user and time; files are joined without it."""
    project = make_project(tmp_path, **shop(item_id=[f"i{number // 2 % 2}" for number in range(60)]))
    # Two events of one user at each time.
    path = data_of(project, "interactions")
    table = pq.read_table(path)
    pq.write_table(table.set_column(0, "user_id", pa.array(["u0"] * table.num_rows)), path)
    file = project / "feature_repo" / "feature_store.yaml"
    values = yaml.safe_load(file.read_text())
    file.write_text(yaml.safe_dump({**values, "offline_store": {"type": "dask"}}))
    assert main(["train", "-C", str(project), "--json", "--set", "train.epochs=1"]) == 0
    counts = json.loads(capsys.readouterr().out)["counts"]
    assert (counts["interactions read"], counts["events used"]) == (60, 60)


def test_a_file_of_another_type_than_declared_ends_with_4_and_names_both(tmp_path, make_project, train):
    """Found before Ray is started."""
    project = make_project(tmp_path, **shop())
    path = data_of(project, "users")
    table = pq.read_table(path)
    at = table.schema.get_field_index("user_id")
    pq.write_table(table.set_column(at, "user_id", pa.array(range(table.num_rows))), path)
    code, said = train(project)
    assert code == 4
    assert "column 'user_id' of " in said and "users.parquet is int64, but the view declares string" in said


def test_faults_of_several_kinds_come_together(tmp_path, make_project, train):
    project = make_project(tmp_path, **shop())
    code, said = train(project, "--set", "feast.user_service=usr", "--set", "features.interaction.type_field=kind")
    assert code == 2
    assert "2 faults" in said
