"""A run id whose run has ended well has successors; one whose run has not goes on."""

from pathlib import Path

import pytest

from rec_ray.config import Settings
from rec_ray.contracts import StoredModel
from rec_ray.errors import ConfigError, GateError
from rec_ray.runs.ledger import open_run
from rec_ray.runs.run_names import next_run_id
from rec_ray.storage.object_store import Storage, open_storage


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return open_storage(str(tmp_path / "store"))


def settings(epochs: int = 2) -> Settings:
    return Settings.model_validate({"train": {"epochs": epochs}})


def end_badly(storage: Storage, run_id: str) -> None:
    with pytest.raises(GateError), open_run(storage, settings(), "run", run_id):
        raise GateError("no")


def end_well(storage: Storage, run_id: str) -> None:
    with open_run(storage, settings(), "run", run_id) as run:
        run.finish(StoredModel("7", "/somewhere", "0" * 64))


def test_a_run_that_failed_goes_on_and_one_that_ended_well_has_a_successor(storage: Storage) -> None:
    assert next_run_id(storage, settings(), "run", "x") == "x"
    end_badly(storage, "x")
    assert next_run_id(storage, settings(), "run", "x") == "x"
    end_well(storage, "x")
    assert next_run_id(storage, settings(), "run", "x") == "x-2"
    end_badly(storage, "x-2")
    assert next_run_id(storage, settings(), "run", "x") == "x-2"
    end_well(storage, "x-2")
    assert next_run_id(storage, settings(), "run", "x") == "x-3"


def test_other_settings_and_other_commands_get_a_run_of_their_own(storage: Storage) -> None:
    end_badly(storage, "x")
    assert next_run_id(storage, settings(epochs=3), "run", "x") == "x-2"
    assert next_run_id(storage, settings(), "train", "x") == "x-2"


def test_no_run_id_is_refused(storage: Storage) -> None:
    with pytest.raises(ConfigError, match="is no run id"):
        next_run_id(storage, settings(), "run", "../x")
