"""The ledger of a run: finished steps are not done again, other settings are refused, a finished run is left alone."""

import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from rec_ray.config import Settings
from rec_ray.contracts import StoredModel
from rec_ray.errors import ConfigError, DataError, GateError, LockedError
from rec_ray.logs import LOGGER, hide_secrets
from rec_ray.runs.ledger import RunLedger, open_run, run_folder, work_folder
from rec_ray.step_events import step
from rec_ray.storage.object_store import Storage, open_storage

MODEL = StoredModel("7", "/somewhere", "0" * 64)


@pytest.fixture(autouse=True)
def logging_as_a_run_does() -> Iterator[None]:
    before = (LOGGER.level, LOGGER.propagate)
    LOGGER.propagate = True
    LOGGER.setLevel("INFO")
    yield
    LOGGER.setLevel(before[0])
    LOGGER.propagate = before[1]


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return open_storage(str(tmp_path / "store"))


def begin(storage: Storage, run_id: str | None = "x", command: str = "run", **sections: Any) -> Any:
    return open_run(storage, Settings.model_validate(sections), command, run_id)


def status(storage: Storage, run_id: str = "x") -> dict[str, Any]:
    found: dict[str, Any] = json.loads(storage.read_bytes(f"runs/{run_id}/status.json"))
    return found


def log(storage: Storage, run_id: str = "x") -> list[str]:
    return [json.loads(line)["message"] for line in storage.read_bytes(f"runs/{run_id}/log.jsonl").splitlines()]


def counted(calls: list[str], name: str) -> Callable[[], StoredModel]:
    def do() -> StoredModel:
        calls.append(name)
        with step(name, version="7") as log:
            log.add(rows=3)
        return dataclasses.replace(MODEL, uri=name)

    return do


def test_a_record_that_was_changed_or_lost_ends_the_run(storage: Storage) -> None:
    """One bit between the death of a run and its rerun would otherwise go into the model that is published."""
    calls: list[str] = []
    with pytest.raises(ZeroDivisionError), begin(storage) as run:
        run.once("train", StoredModel, counted(calls, "a"))
        raise ZeroDivisionError
    key = f"{work_folder('x')}/steps/train/record.json"
    whole = storage.read_bytes(key)
    storage.write_bytes(key, whole.replace(b"0000", b"0001", 1))
    with pytest.raises(DataError, match="does not have the SHA-256 sum of the ledger: run x"), begin(storage) as run:
        run.once("train", StoredModel, counted(calls, "b"))
    storage.delete_prefix(key)
    with pytest.raises(DataError, match=r"record.json is missing: run x cannot continue"), begin(storage) as run:
        run.once("train", StoredModel, counted(calls, "b"))
    storage.write_bytes(key, whole)
    with begin(storage) as run:
        assert run.once("train", StoredModel, counted(calls, "b")).uri == "a"
    assert calls == ["a"]


@pytest.mark.parametrize("text", [b'{"run_id": "x', b"[1]", b"\xff\xfe", b"[" * 100_000, b'{"attempts": "two"}'])
def test_a_damaged_status_or_log_does_not_stop_a_rerun(
    storage: Storage, caplog: pytest.LogCaptureFixture, text: bytes
) -> None:
    with pytest.raises(ZeroDivisionError), begin(storage):
        raise ZeroDivisionError
    storage.write_bytes("runs/x/status.json", text)
    storage.write_bytes("runs/x/log.jsonl", b'{"message": "first"}\n\xff\xfe\n')
    with begin(storage):
        LOGGER.info("second")
    assert "status.json is damaged; it is replaced" in caplog.text
    assert status(storage)["state"] == "done"
    assert b"second" in storage.read_bytes("runs/x/log.jsonl") and b"first" in storage.read_bytes("runs/x/log.jsonl")


def test_a_ledger_that_is_nested_without_end_is_damaged(storage: Storage) -> None:
    storage.write_bytes("runs/x/ledger.json", b"[" * 100_000)
    with pytest.raises(DataError, match=r"ledger.json is damaged; use a new run id"), begin(storage):
        pass


def fail(error: BaseException) -> Callable[[], StoredModel]:
    def do() -> StoredModel:
        with step("second"):
            raise error

    return do


def test_a_run_goes_on_behind_its_last_finished_step(storage: Storage) -> None:
    calls: list[str] = []
    with pytest.raises(GateError), begin(storage) as run:
        as_of = run.as_of
        run.once("first", StoredModel, counted(calls, "first"))
        run.once("second", StoredModel, fail(GateError("worse than nothing")))
    assert status(storage)["state"] == "failed"
    assert status(storage)["error"] == "worse than nothing" and status(storage)["exit_code"] == 5
    assert status(storage)["step"] == "second" and status(storage)["version"] == "7"
    assert status(storage)["counts"] == {"first": {"rows": 3}} and set(status(storage)["seconds"]) == {"first"}
    with begin(storage) as run:
        assert run.as_of == as_of and run.done == ["first"]
        assert run.once("first", StoredModel, counted(calls, "first")).uri == "first"
        assert run.once("second", StoredModel, counted(calls, "second")).uri == "second"
        run.finish(MODEL)
    assert calls == ["first", "second"]
    assert (status(storage)["state"], status(storage)["error"], status(storage)["attempts"]) == ("done", None, 2)
    assert set(status(storage)["seconds"]) == {"first", "second"}
    said = log(storage)
    assert "second failed after 0.0 s: GateError" in said
    assert said[said.index("second failed after 0.0 s: GateError") + 2 :] == [
        "first was finished by an earlier attempt of run x",
        "second ..., version 7",
        "second done in 0.0 s, rows 3",
    ]


def test_the_log_level_stops_no_status(storage: Storage) -> None:
    LOGGER.setLevel("ERROR")
    with begin(storage) as run:
        run.once("first", StoredModel, counted([], "first"))
        assert (status(storage)["step"], status(storage)["version"]) == ("first", "7")
        run.once("a renamed step", StoredModel, counted([], "a renamed step"))
    assert status(storage)["counts"] == {"first": {"rows": 3}, "a renamed step": {"rows": 3}}
    assert set(status(storage)["seconds"]) == {"first", "a renamed step"}
    assert log(storage) == []


def test_nothing_updates_the_status_after_the_run(storage: Storage) -> None:
    with begin(storage) as run:
        run.once("first", StoredModel, counted([], "first"))
    before = status(storage)
    with step("of another run"):
        pass
    assert status(storage) == before


def test_a_finished_run_is_left_alone_and_says_so(storage: Storage, caplog: pytest.LogCaptureFixture) -> None:
    with begin(storage) as run:
        run.once("first", StoredModel, counted([], "first"))
        storage.write_bytes(f"{work_folder('x')}/data/part", b"rows")
        run.finish(MODEL)
    before = {key: storage.read_bytes(key) for key in storage.list()}
    assert sorted(before) == [
        "runs/newest.json",
        *(f"runs/x/{name}" for name in ("ledger.json", "log.jsonl", "status.json")),
    ]
    with begin(storage) as run:
        assert run.report == dataclasses.asdict(MODEL)
    assert {key: storage.read_bytes(key) for key in storage.list()} == before
    assert "run x is finished already: nothing is done" in caplog.messages


def test_what_a_failed_run_left_is_kept_for_the_next_attempt(storage: Storage) -> None:
    with pytest.raises(KeyboardInterrupt), begin(storage):
        storage.write_bytes(f"{work_folder('x')}/data/part", b"rows")
        storage.write_bytes("training/x/checkpoint", b"weights")
        raise KeyboardInterrupt
    assert storage.exists(f"{work_folder('x')}/data/part") and storage.exists("training/x/checkpoint")
    assert (status(storage)["state"], status(storage)["error"]) == ("stopped", "KeyboardInterrupt")


def test_other_settings_are_refused_and_named(storage: Storage) -> None:
    with pytest.raises(GateError), begin(storage, train={"epochs": 2}):
        raise GateError("no")
    with pytest.raises(ConfigError, match=r"'x' was begun with other settings: 'train.epochs' differ .*was 2, is 3"):
        begin(storage, train={"epochs": 3}).__enter__()
    with pytest.raises(ConfigError, match="belongs to `rec-ray run`"):
        begin(storage, command="train", train={"epochs": 2}).__enter__()
    assert status(storage)["error"] == "no"


def test_where_a_run_works_may_change_between_attempts(storage: Storage) -> None:
    with pytest.raises(GateError), begin(storage, ray={"num_cpus": 2}):
        raise GateError("no")
    elsewhere = {"feast": {"repo": "/elsewhere"}, "database": {"url": "sqlite:////elsewhere.db"}}
    with begin(storage, ray={"num_cpus": 1}, publish={"batch_rows": 5}, **elsewhere) as run:
        run.finish(MODEL)


def test_a_process_that_lost_its_run_stops_and_leaves_the_status_to_the_other(storage: Storage) -> None:
    with pytest.raises(LockedError, match=r"run x was taken over by process \d+ on"), begin(storage) as old:
        with begin(storage) as new:
            new.once("first", StoredModel, counted([], "new"))
            with pytest.raises(LockedError):
                old.once("first", StoredModel, counted([], "old"))
            assert new.once("first", StoredModel, counted([], "new")).uri == "new"
            new.finish(MODEL)
        before = status(storage)
        old.finish(MODEL)
    assert status(storage) == before


def test_secrets_are_in_no_status_and_no_log(storage: Storage) -> None:
    secret = 'h"und/erts'
    hide_secrets([secret])
    with pytest.raises(RuntimeError), begin(storage):
        LOGGER.warning("the key is %s", secret)
        raise RuntimeError(f"s3://{secret}@host and h%22und%2Ferts")
    for name in ("status.json", "log.jsonl", "ledger.json"):
        text = storage.read_bytes(f"runs/x/{name}").decode()
        assert "und" + "/erts" not in text and "%2Ferts" not in text
    assert "***" in status(storage)["error"]
    assert "the key is ***" in log(storage)


@pytest.mark.parametrize("run_id", ["", ".", "..", "../x", "a/b", "a b", "-x", "x" * 201, "ä", "x\n", "a\\b", "%2e%2e"])
def test_a_run_id_that_could_lead_elsewhere_is_refused(run_id: str) -> None:
    with pytest.raises(ConfigError, match="is no run id"):
        run_folder(run_id)


@pytest.mark.parametrize("data", [b"", b"[]", b"{}", b'{"format_version": 1, "as_of": "yesterday"}'])
def test_a_damaged_ledger_is_named(storage: Storage, data: bytes) -> None:
    storage.write_bytes("runs/x/ledger.json", data)
    with pytest.raises(DataError, match=r"runs/x/ledger.json is damaged; use a new run id"):
        begin(storage).__enter__()
    storage.write_bytes("runs/x/ledger.json", b'{"format_version": 99}')
    with pytest.raises(DataError, match="format version 99"):
        begin(storage).__enter__()


def test_a_store_that_is_gone_does_not_hide_why_the_run_failed(storage: Storage, tmp_path: Path) -> None:
    with pytest.raises(GateError, match="worse"), begin(storage):
        (tmp_path / "store").rename(tmp_path / "away")
        (tmp_path / "store").write_bytes(b"")
        raise GateError("worse")


def test_a_run_without_id_gets_one(storage: Storage) -> None:
    with begin(storage, None) as run:
        assert isinstance(run, RunLedger)
        run.finish(MODEL)
    assert storage.folders("runs") == [run.run_id]
