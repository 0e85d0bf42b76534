"""Embed all users and items with a stored model and store the recommendations of each user.

    ray job submit --address http://HEAD:8265 -- python jobs/generate_candidates.py --config rec_ray.yaml

Takes the arguments of `rec-ray candidates` and ends with its exit code. Inside a job Ray sets RAY_ADDRESS, and the
program joins that cluster.
"""

import sys

from rec_ray.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["candidates", *sys.argv[1:]]))
