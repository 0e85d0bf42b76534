"""Runs `python -m rec_ray.cli` as `rec-ray`. It holds no logic of its own."""

import sys

from rec_ray.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
