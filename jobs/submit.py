"""Submit a command to a Ray cluster and end with its exit code: `entrypoint.sh` calls it for MODE=submit.

    python jobs/submit.py --address http://HEAD:8265 --run-id night -- rec-ray run --config rec_ray.yaml

The logic is in `rec_ray/cli/job_submission.py`; Kubeflow components import `ask` and `stop_run` from here.
"""

import sys

from rec_ray.cli.job_submission import ask, main, stop_run

__all__ = ["ask", "main", "stop_run"]

if __name__ == "__main__":
    sys.exit(main())
