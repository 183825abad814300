#!/bin/bash
# Submit a profile to Slurm, from the root of the clone: what all runs share as one job, then one job for each run.
#
#     examples/slurm/submit.sh paper                  # more words go to each `codeact run`, e.g. --dry-run
#
# Submitting again is harmless: what is done is skipped. docs/cluster.md explains the parts.
set -euo pipefail
profile=${1:-paper}
logs=artifacts/slurm
runs=$logs/$(basename "$profile" .yaml).runs
mkdir -p "$logs"

codeact runs --profile "$profile" > "$runs"  # one run_id a line; line N belongs to array index N - 1
last=$(($(wc -l < "$runs") - 1))

shared=$(sbatch --parsable --output="$logs/%x-%j.log" examples/slurm/shared.sbatch "$profile" "${@:2}")
sbatch --dependency=afterok:"$shared" --kill-on-invalid-dep=yes --array=0-"$last" --output="$logs/%x-%A_%a.log" \
    examples/slurm/run.sbatch "$profile" "$runs" "${@:2}"
