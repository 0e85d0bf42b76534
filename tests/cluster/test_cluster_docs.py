"""The commands of docs/cluster.md can be pasted: their syntax, options, files and names exist."""

import re
import shlex
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
from manifests import OVERLAYS, ROOT, objects

from rec_ray import __version__

BLOCKS = re.findall(r"^ *```bash\n(.*?)^ *```", (ROOT / "docs" / "cluster.md").read_text(), re.S | re.M)
COMMANDS = [line.strip() for block in BLOCKS for line in block.splitlines() if line.strip()]
FOREIGN = {"kind", "helm", "podman", "cosign", "cp", "oc", "pip", "python"}
"""Programs whose options are not checked here."""


@cache
def help_of(*command: str) -> str:
    kubectl = shutil.which("kubectl", path=f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin")
    assert kubectl, "`make install` puts kubectl into .venv/bin"
    program = [kubectl] if command[0] == "kubectl" else [sys.executable, "-m", "rec_ray.cli"]
    texts = [[*command[1:], "--help"]] + ([["options"]] if command[0] == "kubectl" else [])
    return "".join(
        subprocess.run([*program, *text], capture_output=True, text=True, check=False).stdout for text in texts
    )


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_is_sound_shell_and_has_only_options_that_exist(command: str) -> None:
    checked = subprocess.run(["bash", "-n", "-c", command], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr
    for part in command.split(" | "):
        program, *words = shlex.split(part)
        if program in FOREIGN:
            continue
        assert program in ("kubectl", "rec-ray"), f"add {program} to the programs of this test"
        plain = [word for word in re.sub(r"--namespace \S+ ", "", " ".join(words)).split() if not word.startswith("-")]
        verb = plain[:2] if plain[0] in ("create",) and plain[1] in ("job", "namespace") else plain[:1]
        for option in {word.split("=")[0] for word in words if word.startswith("--") and word != "--"}:
            assert re.search(rf"(^|\s){option}\b", help_of(program, *verb)), f"{program} {verb} has no {option}"


def test_the_files_overlays_and_names_of_the_commands_exist() -> None:
    text = "\n".join(COMMANDS)
    for path in re.findall(r"cluster/[\w./-]+", text):
        assert (ROOT / path).exists(), path
    assert set(re.findall(r"apply -k cluster/overlays/(\w+)", text)) == {"dev", "openshift", "production"}
    tags = set(re.findall(r"recommendation-training:(\S+)", text))
    assert tags == {__version__}, "the image that base/raycluster.yaml names"
    names = {overlay: {(each["kind"], each["metadata"]["name"]) for each in objects(overlay)} for overlay in OVERLAYS}
    assert {("RayJob", "rec-ray"), ("CronJob", "recommend")} <= names["dev"]
    assert ("CronJob", "rec-ray") in names["production"]


def test_the_page_lists_every_overlay() -> None:
    text = (ROOT / "docs" / "cluster.md").read_text()
    assert set(re.findall(r"^\| `([\w-]+)` \|", text, re.M)) >= set(OVERLAYS)
