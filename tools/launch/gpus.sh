#!/usr/bin/env bash
# Starts a command once per GPU of this machine, as processes of one job, and ends all of them when one fails.
#
#   tools/launch/gpus.sh python -m vit_registers.train --config=configs/digits.py --workdir=runs/digits
#
# A single process uses all GPUs too, without this script. One process per GPU helps if reading and decoding
# images in one process is too slow. The batch must be divisible by the number of GPUs in both cases.
#
#   PROCESSES=2   number of processes, on the first GPUs (default: one for each GPU)
#   CUDA_VISIBLE_DEVICES=4,5   the GPUs (default: all that nvidia-smi lists)
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

fail() {
    echo "error: $1" >&2
    exit 2
}

gpus=()
if [ -n "${CUDA_VISIBLE_DEVICES+set}" ]; then
    IFS=, read -r -a gpus <<< "${CUDA_VISIBLE_DEVICES// /}"
    where="CUDA_VISIBLE_DEVICES=$CUDA_VISIBLE_DEVICES names"
    for gpu in "${gpus[@]}"; do
        [[ $gpu =~ ^[[:alnum:]] ]] || fail "CUDA_VISIBLE_DEVICES=$CUDA_VISIBLE_DEVICES: must be GPUs, as in 4,5"
    done
elif command -v nvidia-smi > /dev/null; then
    mapfile -t gpus < <(seq 0 $(($(nvidia-smi --list-gpus | grep -c ^GPU) - 1)))
    where="nvidia-smi lists"
elif [ -n "${PROCESSES:-}" ]; then
    where=
else
    fail "nvidia-smi was not found: set PROCESSES=number"
fi
PROCESSES=${PROCESSES:-${#gpus[@]}}
[ -z "$where" ] || [ "${#gpus[@]}" -gt 0 ] || fail "$where no GPU"
[[ $PROCESSES =~ ^[1-9][0-9]{0,3}$ ]] || fail "PROCESSES=$PROCESSES: must be a number from 1"
if [ -z "$where" ]; then
    mapfile -t gpus < <(seq 0 $((PROCESSES - 1)))
elif [ "$PROCESSES" -gt "${#gpus[@]}" ]; then
    fail "PROCESSES=$PROCESSES: $where ${#gpus[@]} GPUs"
fi
PORT=${PORT:-$((20000 + RANDOM % 10000))}
[[ $PORT =~ ^[1-9][0-9]{0,4}$ && $PORT -le 65535 ]] || fail "PORT=$PORT: must be a number from 1 to 65535"
[ -z "${LOGS:-}" ] || mkdir -p "$LOGS" 2> /dev/null || fail "LOGS=$LOGS: this folder cannot be created"

pids=()
for ((i = 0; i < PROCESSES; i++)); do
    # Each process sees one GPU only.
    process=(env CUDA_VISIBLE_DEVICES="${gpus[i]}" "$@" --coordinator="127.0.0.1:$PORT")
    process+=(--num_processes="$PROCESSES" --process_id="$i")
    if [ "$i" -gt 0 ] && [ -n "${LOGS:-}" ]; then
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
