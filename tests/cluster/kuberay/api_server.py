"""The API server of the double: HTTP requests for the kinds of KubeRay, with tokens and the rights of Roles."""

from __future__ import annotations

import json
import threading
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from kuberay.double import Cluster, RefusedError


@contextmanager
def serve(cluster: Cluster, account: str) -> Iterator[str]:
    """Answer requests while the block runs; gives the address. The token of a service account is its name."""
    with _Server(cluster, account) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, cluster: Cluster, account: str) -> None:
        super().__init__(("127.0.0.1", 0), _Requests)
        self.cluster, self.account = cluster, account


class _Requests(BaseHTTPRequestHandler):
    server: _Server
    kinds = {"rayjobs": "RayJob", "raycronjobs": "RayCronJob"}

    def do_GET(self) -> None:
        self._answer("GET")

    def do_POST(self) -> None:
        self._answer("POST")

    def _answer(self, method: str) -> None:
        url = urllib.parse.urlsplit(self.path)
        resource, _, name = url.path.removeprefix("/apis/ray.io/v1/namespaces/rec-ray/").partition("/")
        verb = "create" if method == "POST" else "get" if name else "list"
        cluster = self.server.cluster
        try:
            if self.headers["Authorization"] != f"Bearer {self.server.account}":
                raise RefusedError(401, "Unauthorized")
            if resource not in self.kinds or not cluster.may(self.server.account, verb, resource, name):
                raise RefusedError(403, f"User cannot {verb} resource {resource} in API group ray.io")
            if verb == "create":
                found: Any = cluster.create(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            elif verb == "list":
                key, _, value = urllib.parse.parse_qs(url.query)["labelSelector"][0].partition("=")
                every = cluster.all(self.kinds[resource])
                found = {"items": [each for each in every if each["metadata"]["labels"].get(key) == value]}
            elif (found := cluster.find(self.kinds[resource], name)) is None:
                raise RefusedError(404, f"{resource} {name} not found")
            self._send(200, found)
        except RefusedError as refused:
            self._send(refused.code, {"message": str(refused)})

    def _send(self, code: int, body: Any) -> None:
        self.send_response(code)
        self.end_headers()
        self.wfile.write(json.dumps(body).encode())

    def log_message(self, *_: Any) -> None:
        """Print nothing."""
