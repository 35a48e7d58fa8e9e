#!/usr/bin/env bash
# Starts a command once per GPU of this machine, as processes of one job, and ends all of them when one fails.
#
#   tools/launch/gpus.sh python -m vit_registers.train --config=configs/digits.py --workdir=runs/digits
#
# A single process uses all GPUs too, without this script. One process per GPU helps if reading and decoding
# images in one process is too slow. The batch must be divisible by the number of GPUs in both cases.
#
#   PROCESSES=2   number of processes, on the first GPUs (default: all that nvidia-smi lists)
#   PORT=8476     port of process 0 (default: a random port)
#   LOGS=logs     folder for the output of all processes but process 0, as LOGS/process-1.log and so on
#                 (default: this terminal)
#
# SIGTERM and ctrl-C are sent to all processes, which save at the same step and exit with 0. The exit code is 0,
# or that of the first process with another exit code.
set -euo pipefail

if [ $# -eq 0 ]; then
    sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p;}' "$0"
    exit 2
fi
if [ -z "${PROCESSES:-}" ]; then
    if ! command -v nvidia-smi > /dev/null; then
        echo "error: nvidia-smi was not found: set PROCESSES=number" >&2
        exit 2
    fi
    PROCESSES=$(nvidia-smi --list-gpus | wc -l)
fi
if [ -z "${PORT:-}" ]; then
    PORT=$((20000 + RANDOM % 10000))
fi

pids=()
for ((i = 0; i < PROCESSES; i++)); do
    # Each process sees one GPU only.
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

# The processes end each other; this script only waits. A trap interrupts `wait`, hence the loop.
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
