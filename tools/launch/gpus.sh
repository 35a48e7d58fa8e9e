#!/usr/bin/env bash
# Starts a command once per GPU of this machine, as processes of one job, and ends all when one fails.
#
#   tools/launch/gpus.sh python -m vit_registers.train --config=configs/digits.py --workdir=runs/digits
#
# One process uses all GPUs as well, without this script; a process per GPU helps where reading and decoding
# images in one process is too slow. The batch has to divide over the GPUs either way.
#
#   PROCESSES=2   so many processes, on the first GPUs (all that nvidia-smi lists; without it, give a number)
#   PORT=8476     where they meet (a free port)
#   LOGS=logs     a folder: process 0 speaks here, the others to LOGS/process-1.log and so on (this terminal)
#
# SIGTERM and ctrl-C go to all of them: they save at one step, and end with 0. The exit code is 0, or that of
# the first process that ended with another.
set -euo pipefail

if [ $# -eq 0 ]; then
    sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p;}' "$0"
    exit 2
fi
if [ -z "${PROCESSES:-}" ]; then
    if ! command -v nvidia-smi > /dev/null; then
        echo "error: there is no nvidia-smi: give PROCESSES=number" >&2
        exit 2
    fi
    PROCESSES=$(nvidia-smi --list-gpus | wc -l)
fi
if [ -z "${PORT:-}" ]; then
    PORT=$((20000 + RANDOM % 10000))
fi

pids=()
for ((i = 0; i < PROCESSES; i++)); do
    # Each process sees one GPU, as its only one.
    process=(env CUDA_VISIBLE_DEVICES="$i" "$@" --coordinator="127.0.0.1:$PORT")
    process+=(--num_processes="$PROCESSES" --process_id="$i")
    if [ "$i" -gt 0 ] && [ -n "${LOGS:-}" ]; then
        mkdir -p "$LOGS"
        "${process[@]}" >> "$LOGS/process-$i.log" 2>&1 &
    else
        "${process[@]}" &
    fi
    pids+=($!)
done

# shellcheck disable=SC2329  # called by the trap
stop() {
    for pid in "${pids[@]}"; do
        kill -TERM "$pid" 2> /dev/null || true
    done
}
trap stop TERM INT

# The processes end each other; we only wait. A trap interrupts `wait`, so it is called until none is left.
code=0
for pid in "${pids[@]}"; do
    while kill -0 "$pid" 2> /dev/null; do
        wait "$pid" || true
    done
    one=0
    wait "$pid" || one=$?
    if [ "$code" -eq 0 ]; then
        code=$one
    fi
done
exit "$code"
