#!/usr/bin/env bash
# A SLURM job of several nodes with GPUs, one process per GPU. The job is requeued when it is preempted, runs
# out of time, or loses a node, and resumes from its last checkpoint.
#
#   sbatch --nodes=4 --gpus-per-node=8 --ntasks-per-node=8 --cpus-per-task=12 --time=24:00:00 \
#       tools/launch/slurm.sh .venv/bin/python -m vit_registers.train \
#       --config=configs/vit_s16_i1k.py --workdir=/shared/runs/s16
#
# The command runs in the folder in which sbatch is called. The run folder must be on a file system that all
# nodes share. The script adds --distributed, with which the processes find each other through SLURM.
#
# Each process uses the GPU with its number on the node, so it must see all of them: do not set --gpus-per-task.
# Exit codes of a process: 0, finished, or saved after SIGTERM; 2, an error that must be fixed first; others, a
# node or process failed or hung. The job is requeued after 0 if it was stopped, and after others, not after 2.
#SBATCH --job-name=vit_registers
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:TERM@180
# The line above: this script gets SIGTERM 3 minutes before the time limit, and forwards it.
set -uo pipefail

if [ $# -eq 0 ] || [ -z "${SLURM_JOB_ID:-}" ]; then
    sed -n '2,/^#SBATCH/{/^#SBATCH/d;s/^# \{0,1\}//;p;}' "$0"
    exit 2
fi

is_stopped=false
step=
# shellcheck disable=SC2329  # called by the trap
stop() {
    is_stopped=true
    [ -z "$step" ] || kill -TERM "$step" 2> /dev/null
}
trap stop TERM

# --kill-on-bad-exit=0: the processes end each other and report the cause; SLURM would end them without one.
# --wait=300: the step ends at most 5 minutes after the first of its processes.
srun --kill-on-bad-exit=0 --wait=300 --label "$@" --distributed &
step=$!
while kill -0 "$step" 2> /dev/null; do
    wait "$step"
    code=$?
done
wait "$step"
code=$?

if [ "$code" -eq 0 ] && ! $is_stopped; then
    exit 0
fi
if [ "$code" -eq 2 ]; then
    echo "not requeued: exit code 2 is an error that must be fixed first" >&2
    exit 2
fi
if [ "${SLURM_RESTART_COUNT:-0}" -ge "${MAX_RESTARTS:-50}" ]; then
    echo "not requeued: it was restarted ${SLURM_RESTART_COUNT} times (MAX_RESTARTS)" >&2
    exit "$code"
fi
echo "exit code $code after restart ${SLURM_RESTART_COUNT:-0}: requeued" >&2
scontrol requeue "$SLURM_JOB_ID"
