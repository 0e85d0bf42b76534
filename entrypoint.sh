#!/usr/bin/env bash
# Starts rec_ray in a container, on a laptop or as the driver of a Ray job.
#
#   entrypoint.sh                          rec-ray run
#   entrypoint.sh run --set train.epochs=1 any command of rec-ray, or only its options
#   entrypoint.sh python jobs/train.py     any other program, when it is one of those named below or a path
#
# MODE says where it runs; without it the address decides:
#   local    in this process, on a Ray of its own           (RAY_ADDRESS is empty)
#   submit   as a job of the cluster at RAY_ADDRESS         (RAY_ADDRESS is http:// or https://)
#   driver   in this process, on the cluster at RAY_ADDRESS (any other RAY_ADDRESS)
#   rayjob   as driver, as the job of a KubeRay RayJob: the run is called like the RayJob, also when it is retried
#
# A submitted job reads its settings and secrets where it runs: the pods of the cluster carry them, not this shell.
# REC_RAY_RUN_ID, when set, stays the same over retries. Signals reach the program, and its exit code is this script's.
set -euo pipefail

here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)

# Under a user id that the image does not know (OpenShift gives one to each namespace), HOME may belong to someone else
# and the user has no name, which Python's getpass, used by PyTorch for its cache, takes for an error.
if [[ ! -d "${HOME:-}" || ! -w "${HOME:-}" ]]; then
  HOME=$(mktemp -d "${TMPDIR:-/tmp}/home.XXXXXX")
  export HOME
fi
if ! id -un >/dev/null 2>&1; then
  export USER="${USER:-rec_ray}" LOGNAME="${LOGNAME:-rec_ray}"
fi
# A /tmp/ray of another user cannot hold our sessions.
if [[ -z "${RAY_TMPDIR:-}" && -d /tmp/ray && ! -w /tmp/ray ]]; then
  export RAY_TMPDIR="$HOME"
fi

case "${1:-}" in
  "" | -*) set -- rec-ray run "$@" ;;
  rec-ray | python | python3 | ray | feast | bash | sh | */*) ;;
  *) set -- rec-ray "$@" ;;
esac

mode=${MODE:-}
if [[ -z "$mode" ]]; then
  case "${RAY_ADDRESS:-}" in
    "") mode=local ;;
    http://* | https://*) mode=submit ;;
    *) mode=driver ;;
  esac
fi

case "$mode" in
  local)
    unset RAY_ADDRESS
    exec "$@"
    ;;
  submit)
    if [[ ! "${RAY_ADDRESS:-}" =~ ^https?:// ]]; then
      echo "MODE=submit needs RAY_ADDRESS, the http(s) address of the cluster; it is '${RAY_ADDRESS:-}'" >&2
      exit 2
    fi
    exec python "$here/jobs/submit.py" --address "$RAY_ADDRESS" --run-id "${REC_RAY_RUN_ID:-}" -- "$@"
    ;;
  driver)
    exec "$@"
    ;;
  rayjob)
    if [[ -z "${REC_RAY_RUN_ID:-}" ]]; then
      if [[ ! "${RAY_CLUSTER_NAME:-}" =~ ^(.+)-[a-z0-9]{5}$ ]]; then
        echo "MODE=rayjob needs RAY_CLUSTER_NAME, the name of the RayJob's cluster; it is '${RAY_CLUSTER_NAME:-}'" >&2
        exit 2
      fi
      # KubeRay calls the cluster like the RayJob with five letters more, others at a retry; before 1.4 -raycluster- came between.
      REC_RAY_RUN_ID=${BASH_REMATCH[1]%-raycluster}
      export REC_RAY_RUN_ID
    fi
    exec "$@"
    ;;
  *)
    echo "MODE is local, submit, driver or rayjob; it is '$mode'" >&2
    exit 2
    ;;
esac
