"""Run the complete pipeline, from Feast to Feast.

    ray job submit --address http://HEAD:8265 -- python jobs/run_pipeline.py --config rec_ray.yaml

Takes the arguments of `rec-ray run` and ends with its exit code. Inside a job Ray sets RAY_ADDRESS, and the program
joins that cluster.
"""

import sys

from rec_ray.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["run", *sys.argv[1:]]))
