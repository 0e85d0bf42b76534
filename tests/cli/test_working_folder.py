"""Files of the working folder that are named like packages do not hide them."""

import os
import subprocess
import sys
from pathlib import Path

import rec_ray


def test_a_file_named_like_a_package_does_not_hide_it_from_the_command(tmp_path: Path) -> None:
    for name in ("typer.py", "yaml.py", "torch.py"):
        (tmp_path / name).write_text("raise SystemExit('this is no package')")
    environment = {**os.environ, "PYTHONPATH": str(Path(rec_ray.__file__).parents[1])}
    command = [sys.executable, "-m", "rec_ray.cli", "versions", "--help"]
    ran = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert "rec_ray.cli versions" in ran.stdout
