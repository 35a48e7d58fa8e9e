#!/usr/bin/env bash
# A SLURM job of several nodes with GPUs, one process per GPU, which is put back into the queue when it is
# preempted, runs out of time, or loses a node, and goes on from its last checkpoint.
#
#   sbatch --nodes=4 --gpus-per-node=8 --ntasks-per-node=8 --cpus-per-task=12 --time=24:00:00 \
#       tools/launch/slurm.sh .venv/bin/python -m vit_registers.train \
#       --config=configs/vit_s16_i1k.py --workdir=/shared/runs/s16
#
# The command is run in the folder that sbatch is called in. The run folder has to be on a file system that
# all nodes share. --distributed, which is added, has the processes find each other through SLURM.
#
# Each process takes the GPU of its number on the node, so it has to see all of them: no --gpus-per-task.
# Exit codes of a process: 0 done, or saved after SIGTERM; 2 something to mend first; others: a node or
# process is gone or hung. The job is put back for the first (if it was stopped) and the last, not for 2.
#SBATCH --job-name=vit_registers
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:TERM@180
# The line above: 3 minutes before its time is over this script gets SIGTERM, and passes it on.
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

# --kill-on-bad-exit=0: the processes end each other and say why; SLURM would be quicker, and silent.
# --wait=300: but no step outlives the first of its processes by more than 5 minutes.
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
    echo "not put back into the queue: there is something to mend first" >&2
    exit 2
fi
if [ "${SLURM_RESTART_COUNT:-0}" -ge "${MAX_RESTARTS:-50}" ]; then
    echo "not put back into the queue: it was ${SLURM_RESTART_COUNT} times (MAX_RESTARTS)" >&2
    exit "$code"
fi
echo "exit code $code after restart ${SLURM_RESTART_COUNT:-0}: back into the queue" >&2
scontrol requeue "$SLURM_JOB_ID"
