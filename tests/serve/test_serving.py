"""The example servers answer over HTTP, refuse in one line, and take up a version that becomes live meanwhile."""

import json
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from rec_ray import Recommender, fit

ROOT = Path(__file__).parents[2]
DEADLINE = 120

pytestmark = pytest.mark.usefixtures("processes")


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """The store of a quickly fitted model, and the model, to save it again as the next version."""
    events = {
        "user_id": [f"u{n % 9}" for n in range(90)],
        "item_id": [f"i{(n * 7) % 20}" for n in range(90)],
        "event_timestamp": [f"2024-01-01T00:00:{n:02d}" for n in range(60)]
        + [f"2024-01-01T00:01:{n:02d}" for n in range(30)],
    }
    import pandas as pd

    frame = pd.DataFrame(events).assign(event_timestamp=lambda f: pd.to_datetime(f.event_timestamp, utc=True))
    train = {"epochs": 1, "refit": "off", "uniform_negatives": 4}
    model = fit(frame, model={"history": "mean", "embedding_size": 8}, train=train, candidates={"k": 5})
    store = tmp_path_factory.mktemp("served") / "store"
    model.save(str(store))
    return model, store


def call(address, body=None):
    """Return status and answer of a request; a body is posted."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(address, data, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=20) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def until(condition, process=None):
    """Wait for a condition that may fail to connect at first."""
    end = time.monotonic() + DEADLINE
    while time.monotonic() < end:
        assert process is None or process.poll() is None, "the server ended"
        try:
            if condition():
                return
        except OSError:
            pass
        time.sleep(0.2)
    raise AssertionError("nothing came in time")


def exchange(address, opened):
    """Ask everything once, and compare with the recommender itself."""
    status, answer = call(f"{address}/recommend", {"history": ["i1", "i2"], "k": 3})
    expected = opened.recommend(history=["i1", "i2"], k=3)
    assert status == 200, answer
    assert (answer["item_ids"], answer["version"]) == (expected.item_ids, "1")
    events = [
        {"item_id": "i1", "event_timestamp": "2024-01-01T00:00:00Z"},
        {"item_id": "i2", "event_timestamp": "2024-01-02T00:00:00Z"},
    ]
    assert call(f"{address}/recommend", {"history": events[::-1], "k": 3})[1] == answer
    assert (
        call(f"{address}/recommend", {"user_id": "u1", "k": 5})[1]["item_ids"]
        == opened.recommend(user_id="u1", k=5).item_ids
    )
    assert call(f"{address}/similar?item_id=i1&k=2")[1]["item_ids"] == opened.similar("i1", 2).item_ids
    assert call(f"{address}/recommend", {"user_id": "stranger", "k": 5}) == (
        422,
        {"error": "version 1 has no list for user 'stranger'; give the user's history instead"},
    )
    assert call(f"{address}/similar?item_id=none")[0] == 422
    assert call(f"{address}/recommend", {"histroy": []})[0] == 422


def test_fastapi_over_http(served, tmp_path):
    model, fitted_store = served
    store = tmp_path / "store"
    shutil.copytree(fitted_store, store)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "rec_ray.serve.fastapi_app", str(store), "--port", str(port), "--seconds", "0.2"]
    address = f"http://127.0.0.1:{port}"
    with subprocess.Popen(command, cwd=ROOT) as server:
        try:
            until(lambda: call(f"{address}/healthz") == (200, {"version": "1", "items": 20}), server)
            exchange(address, Recommender.open(str(store)))
            assert model.save(str(store)) == "2"
            until(lambda: call(f"{address}/healthz")[1]["version"] == "2", server)
            pointer = store / "two-tower/live.json"
            pointer.write_text(pointer.read_text().replace('"2"', '"9"'))
            time.sleep(1)
            assert call(f"{address}/recommend", {"history": ["i1"]})[1]["version"] == "2"
        finally:
            server.terminate()
    # Uvicorn closes the app and then ends by the signal that it got.
    assert server.returncode in (0, -signal.SIGTERM)


def test_ray_serve_over_http(served, tmp_path, local_ray):
    pytest.importorskip("grpc_reflection", reason="extra serve")
    from ray import serve

    from rec_ray.serve.ray_serve import Options, build

    model, fitted_store = served
    store = tmp_path / "store"
    shutil.copytree(fitted_store, store)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    try:
        serve.start(http_options={"port": port})
        serve.run(build(Options(url=str(store), seconds=0.2)))
        assert call(f"{address}/healthz") == (200, {"version": "1", "items": 20})
        exchange(address, Recommender.open(str(store)))
        model.save(str(store))
        until(lambda: call(f"{address}/healthz")[1]["version"] == "2")
    finally:
        serve.shutdown()


@pytest.mark.parametrize("name", ["fastapi_app", "ray_serve"])
def test_an_example_fits_on_a_page(name):
    assert len((ROOT / f"rec_ray/serve/{name}.py").read_text().splitlines()) <= 80
