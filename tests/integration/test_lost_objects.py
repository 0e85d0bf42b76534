"""Tasks that hold all CPUs and wait for an object of a node that is lost let it be made anew; a real cluster."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = pytest.mark.usefixtures("processes")


@pytest.mark.timeout(180)
def test_waiting_tasks_give_their_cpus_to_what_makes_the_object_anew(
    record_property: Callable[[str, object], None],
) -> None:
    program = [sys.executable, str(Path(__file__).with_name("lost_objects.py"))]
    done = subprocess.run(program, capture_output=True, text=True, timeout=170, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    outcome = json.loads(done.stdout.strip().splitlines()[-1])
    record_property("seconds from the loss to the end of the last task", outcome["seconds"])
    assert outcome["found"] == [2**23] * 6
