"""Push stored candidates to Feast and commit their version.

    ray job submit --address http://HEAD:8265 -- python jobs/update_features.py --config rec_ray.yaml

Takes the arguments of `rec-ray publish` and ends with its exit code. Inside a job Ray sets RAY_ADDRESS, and the program
joins that cluster.
"""

import sys

from rec_ray.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["publish", *sys.argv[1:]]))
