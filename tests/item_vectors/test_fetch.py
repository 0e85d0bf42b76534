"""Files of images from a folder and a web server: bounded in time and size, and an address in a log holds no secret."""

import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from rec_ray.errors import DataError
from rec_ray.item_vectors.fetch import ImageFiles, describe_address
from rec_ray.storage.object_store import open_storage


class Answers(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        if self.path == "/gone":
            self.send_error(404)
            return
        self.send_response(200)
        self.end_headers()
        if self.path == "/slow":
            for _ in range(20):
                self.wfile.write(b"x")
                time.sleep(0.1)
        else:
            self.wfile.write(b"x" * int(self.path.rpartition("/")[2]))

    def log_message(self, *arguments: Any) -> None:
        """Say nothing."""


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture
def files(tmp_path: Path) -> ImageFiles:
    (tmp_path / "a b.png").write_bytes(b"here")
    return ImageFiles(open_storage(str(tmp_path / "store")), str(tmp_path), 0.5, 1000)


def test_a_path_is_relative_to_the_repository(files: ImageFiles, tmp_path: Path) -> None:
    for address in ("a b.png", str(tmp_path / "a b.png"), (tmp_path / "a b.png").as_uri()):
        assert files.read(address) == b"here"


@pytest.mark.parametrize(
    ("address", "why"),
    [
        ("b.png", "no such file"),
        ("/dev/zero", "no such file"),
        ("large", "more than 1,000 bytes"),
        ("ftp://host/a.png", "unsupported address ftp://"),
        ("http://", "no host"),
        ("http://127.0.0.1:1/a.png", "refused"),
    ],
)
def test_what_cannot_be_read_says_why(files: ImageFiles, tmp_path: Path, address: str, why: str) -> None:
    (tmp_path / "large").write_bytes(b"x" * 1001)
    with pytest.raises(DataError, match=why):
        files.read(address)


def test_a_web_server_is_given_its_time_and_no_more(files: ImageFiles, server: str) -> None:
    started = time.perf_counter()
    found = files.read_all([f"{server}/{end}" for end in ("1000", "1001", "gone", "slow")])
    assert time.perf_counter() - started < 2
    assert found[0] == b"x" * 1000
    assert [str(each) for each in found[1:]] == [
        "has more than 1,000 bytes",
        "HTTP Error 404: Not Found",
        "not received within 0.5 s",
    ]


def test_an_address_is_shown_without_what_may_be_secret() -> None:
    assert describe_address("https://ada:key@host/a/b.png?signature=key#part") == "https://host/a/b.png"
    assert describe_address("images/a.png") == "images/a.png"
    assert describe_address("https://host?signature=key") == "https://host"
