#!/usr/bin/env bash
# Runs a command on all workers of a TPU VM or pod, and restarts it after a preemption or a lost worker.
#
#   NAME=my-pod ZONE=us-central2-b FOLDER=vit_registers tools/launch/tpu.sh .venv/bin/python \
#       -m vit_registers.train --config=configs/vit_s16_i1k.py:registers=4 --workdir=/mnt/shared/run
#
#   NAME, ZONE      of the TPU, as in `gcloud compute tpus tpu-vm list` (default of ZONE: that of gcloud)
#   FOLDER          of the checkout on each worker, in the home directory (default: vit_registers)
#   MAX_RESTARTS    maximum number of restarts (default: 50); exit code 2, an error that must be fixed first,
#                   ends the script
#   DRY_RUN=1       prints the gcloud command and does not run it
#
# The run folder must be the same for all workers: a Filestore share, or a bucket mounted with gcsfuse. The
# script adds --distributed, with which the workers find each other. ctrl-C here closes the connections but does
# not end the run. To save and end it, send SIGTERM to the trainer on one worker:
#   gcloud compute tpus tpu-vm ssh NAME --worker=0 --command="pkill -TERM -f vit_registers.train"
set -uo pipefail

if [ $# -eq 0 ] || [ -z "${NAME:-}" ]; then
    sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p;}' "$0"
    exit 2
fi

# Quoted twice, because ssh starts a shell on the workers.
remote="cd $(printf '%q' "${FOLDER:-vit_registers}") &&$(printf ' %q' "$@" --distributed)"
gcloud=(gcloud compute tpus tpu-vm ssh "$NAME" ${ZONE:+--zone="$ZONE"} --worker=all --command="$remote")
if [ -n "${DRY_RUN:-}" ]; then
    printf '%q ' "${gcloud[@]}"
    echo
    exit 0
fi

for ((restart = 0; ; restart++)); do
    "${gcloud[@]}"
    code=$?
    case $code in
        0) exit 0 ;;
        2) exit 2 ;;
    esac
    if [ "$restart" -ge "${MAX_RESTARTS:-50}" ]; then
        exit "$code"
    fi
    echo "exit code $code: restarting in 60 s (restart $((restart + 1)))" >&2
    sleep 60
done
