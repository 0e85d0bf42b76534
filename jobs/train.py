"""Train a model, evaluate it and store it.

    ray job submit --address http://HEAD:8265 -- python jobs/train.py --config rec_ray.yaml

Takes the arguments of `rec-ray train` and ends with its exit code. Inside a job Ray sets RAY_ADDRESS, and the program
joins that cluster.
"""

import sys

from rec_ray.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
