"""Runs `python -m rec_ray.cli` as `rec-ray`. It contains no logic."""

import sys
from pathlib import Path

import rec_ray

if __name__ == "__main__":
    # `python -m` imports from the working folder first, where a file torch.py would hide the package of that name.
    if Path(sys.path[0]) == Path.cwd() != Path(rec_ray.__file__).parents[1]:
        del sys.path[0]
    from rec_ray.cli.main import main

    sys.exit(main())
