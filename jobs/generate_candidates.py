"""Embed all users and items with a stored model and store who gets what.

    ray job submit --address http://HEAD:8265 -- python jobs/generate_candidates.py --config rec_ray.yaml

Takes the arguments of `rec-ray candidates` and ends with its exit code. Inside a job Ray sets RAY_ADDRESS, and the
program joins that cluster. What the step does, how it logs and what its errors mean is no business of this script.
"""

import sys

from rec_ray.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["candidates", *sys.argv[1:]]))
