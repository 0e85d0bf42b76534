"""Ray nodes with a network of their own on this machine, for tests: a head and workers that can be lost.

Each node is a network namespace with an address on a bridge, in which `ray start` runs with its own object store; all
see the same files. It needs root and `ip`; `why_not` says what is missing.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import psutil
import requests

BIN = Path(sys.executable).parent
START_SECONDS = 180


def _ip(*words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["ip", *words], capture_output=True, text=True, check=check)


def why_not() -> str | None:
    """Return why there can be no namespaces here, or None."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if shutil.which("ip") is None:
        return "network namespaces need `ip`, of the package iproute2"
    probe = f"probe{random.SystemRandom().randrange(10**6)}"
    made = _ip("netns", "add", probe, check=False)
    _ip("netns", "del", probe, check=False)
    return f"no network namespace can be made: {made.stderr.strip()}" if made.returncode else None


class Node:
    """One node: a namespace and the processes in it."""

    def __init__(self, bridge: str, address: str, folder: Path) -> None:
        self.name = f"{bridge}-{address.rpartition('.')[2]}"
        self.address, self.folder = address, folder
        self.process: subprocess.Popen[bytes] | None = None
        self._link = f"{self.name}v"
        _ip("netns", "add", self.name)
        _ip("link", "add", self._link, "type", "veth", "peer", "name", "eth0", "netns", self.name)
        _ip("link", "set", self._link, "master", bridge, "up")
        _ip("-n", self.name, "addr", "add", f"{address}/24", "dev", "eth0")
        for device in ("lo", "eth0"):
            _ip("-n", self.name, "link", "set", device, "up")

    def start(self, *options: str, environment: dict[str, str]) -> None:
        """Start Ray in the namespace."""
        command = ["ip", "netns", "exec", self.name, str(BIN / "ray"), "start", "--block"]
        command += [f"--node-ip-address={self.address}", *options]
        with (self.folder / f"{self.name}.log").open("w") as log:
            self.process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, cwd=self.folder)

    def kill(self) -> None:
        """Kill every process of the node at once, as when the machine is lost."""
        for pid in _ip("netns", "pids", self.name, check=False).stdout.split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        if self.process is not None:
            self.process.wait()

    def cut_off(self) -> None:
        """Take the node's network away; `join` brings it back."""
        _ip("link", "set", self._link, "down")

    def join(self) -> None:
        """Give the node its network back."""
        _ip("link", "set", self._link, "up")

    def find(self, words: str) -> list[int]:
        """Return the ids of the node's processes with some words on their command line."""
        found = []
        for pid in _ip("netns", "pids", self.name).stdout.split():
            with contextlib.suppress(psutil.Error):
                if words in " ".join(psutil.Process(int(pid)).cmdline()):
                    found.append(int(pid))
        return found

    def close(self) -> None:
        """Kill what runs in the namespace and remove it."""
        self.kill()
        _ip("netns", "del", self.name, check=False)
        _ip("link", "del", self._link, check=False)


class RayNodes:
    """A head without CPUs and as many workers as are added; as a context it is gone afterwards."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        """environment: of every process of every node, beside that of this one."""
        self.folder = Path(tempfile.mkdtemp(prefix="ray", dir="/tmp"))
        self._bridge = f"rr{random.SystemRandom().randrange(10**4)}"
        self._net = f"10.{random.SystemRandom().randrange(64, 256)}.{random.SystemRandom().randrange(256)}"
        self.nodes: list[Node] = []
        self.environment = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "REC_"))}
        self.environment |= {
            **environment,
            "PATH": f"{BIN}:{os.environ['PATH']}",
            "RAY_AUTH_MODE": "disabled",
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_num_workers_soft_limit": "8",
            # Gloo looks up the name of the host, which is the same in all namespaces; a pod's is that of its address.
            "GLOO_SOCKET_IFNAME": "eth0",
        }

    @property
    def gateway(self) -> str:
        """Address of this machine as the nodes see it."""
        return f"{self._net}.1"

    @property
    def address(self) -> str:
        """Address that jobs are submitted to."""
        return f"http://{self.nodes[0].address}:8265"

    def __enter__(self) -> Self:
        try:
            _ip("link", "add", self._bridge, "type", "bridge")
            _ip("addr", "add", f"{self.gateway}/24", "dev", self._bridge)
            _ip("link", "set", self._bridge, "up")
            head = self._node()
            head.start(
                *("--head", "--port=6379", "--num-cpus=0", "--dashboard-host=0.0.0.0"),
                *(f"--temp-dir={self.folder}", "--object-store-memory=150000000"),
                environment=self.environment,
            )
            self._wait_for(1)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _node(self) -> Node:
        node = Node(self._bridge, f"{self._net}.{len(self.nodes) + 2}", self.folder)
        self.nodes.append(node)
        return node

    def have_workers(self, count: int, cpus: int) -> None:
        """Add nodes until so many workers are alive."""
        while self.alive() - 1 < count:
            self.add_worker(cpus)

    def add_worker(self, cpus: int) -> Node:
        """Add a node and wait until the cluster has it."""
        there = self.alive()
        node = self._node()
        node.start(
            *(f"--address={self.nodes[0].address}:6379", f"--num-cpus={cpus}", "--object-store-memory=200000000"),
            environment=self.environment,
        )
        self._wait_for(there + 1)
        return node

    def alive(self) -> int:
        """Return how many nodes the cluster has."""
        found = self.ask("/api/v0/nodes?detail=1", seconds=0)["data"]["result"]["result"]
        return sum(node["state"] == "ALIVE" for node in found)

    def state(self, what: str) -> list[dict[str, str]]:
        """Return Ray's list of `nodes` or `actors`."""
        found: list[dict[str, str]] = self.ask(f"/api/v0/{what}?detail=1&limit=5000")["data"]["result"]["result"]
        return found

    def ask(self, path: str, seconds: float = 120) -> dict[str, Any]:
        """Return what the dashboard answers; a busy one is asked again."""
        deadline = time.monotonic() + seconds
        while True:
            try:
                answer = requests.get(f"{self.address}{path}", timeout=30)
                answer.raise_for_status()
            except requests.RequestException:
                if time.monotonic() > deadline:
                    raise
                time.sleep(1)
            else:
                found: dict[str, Any] = answer.json()
                return found

    def _wait_for(self, count: int) -> None:
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            with contextlib.suppress(requests.RequestException, KeyError, TypeError):
                # The agent of the head starts jobs; the dashboard answers before it is there.
                healthy = requests.get(f"http://{self.nodes[0].address}:52365/api/healthz", timeout=30).ok
                if healthy and self.alive() >= count:
                    return
            time.sleep(0.5)
        logs = "\n".join(path.read_text()[-2000:] for path in self.folder.glob("*.log"))
        raise TimeoutError(f"the cluster did not come to {count} nodes:\n{logs}")

    def close(self) -> None:
        """End all nodes and remove what was made for them."""
        for node in reversed(self.nodes):
            node.close()
        _ip("link", "del", self._bridge, check=False)
        shutil.rmtree(self.folder, ignore_errors=True)
