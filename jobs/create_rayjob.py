"""Create a RayJob from a suspended RayCronJob and wait for its end: the command of the nightly CronJob's pod.

    python jobs/create_rayjob.py --template rec-ray --job "$JOB_NAME" --uid "$JOB_UID"

The logic is that of `rec_ray/cli/nightly_rayjob.py`.
"""

import sys

from rec_ray.cli.nightly_rayjob import main

if __name__ == "__main__":
    sys.exit(main())
