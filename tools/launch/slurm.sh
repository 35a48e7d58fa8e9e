#!/usr/bin/env bash
# A SLURM job of several nodes with GPUs, one process per GPU, which resumes from its last checkpoint whenever it
# starts again.
#
#   sbatch --nodes=4 --gpus-per-node=8 --ntasks-per-node=8 --cpus-per-task=12 --time=24:00:00 \
#       tools/launch/slurm.sh .venv/bin/python -m vit_registers.train \
#       --config=configs/vit_s16_i1k.py --workdir=/shared/runs/s16
#
# The command runs in the folder in which sbatch is called. That folder and the run folder must be on file systems
# that all nodes share. The script adds --distributed, with which the processes find each other through SLURM.
#
#   time limit         3 minutes before (--signal=B:USR1@180): saved, requeued
#   preemption         saved within GraceTime or else KillWait, and requeued. PreemptMode=CANCEL without GraceTime
#                      ends the job like scancel
#   scontrol requeue   saved within KillWait (30 s), requeued
#   scancel            saved within KillWait (30 s), not requeued. To give the save more time:
#                      scancel --signal=TERM --batch JOB
#   lost node, exit    requeued; the run resumes from the checkpoint before
#   code 3 and others
#   exit code 2        not requeued: an error that must be fixed first
#
#   MAX_RESTARTS=50            the job is not requeued by this script after so many restarts
#   JAX_COMPILATION_CACHE_DIR  shared folder for compiled programs (default: .jax_cache in the folder of sbatch)
#
# Each process uses the GPU with its number on the node, so it must see all of them: do not set --gpus-per-task.
#SBATCH --job-name=vit_registers
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:USR1@180
set -uo pipefail

if [ $# -eq 0 ] || [ -z "${SLURM_JOB_ID:-}" ]; then
    sed -n '2,/^#SBATCH/{/^#SBATCH/d;s/^# \{0,1\}//;p;}' "$0"
    exit 2
fi

# Process 0 writes the programs that the processes of all nodes read. Set to nothing, JAX's variable turns this off.
case " $*" in
    *run.compile_cache=*) ;;
    *) export JAX_COMPILATION_CACHE_DIR="${JAX_COMPILATION_CACHE_DIR-$PWD/.jax_cache}" ;;
esac
# srun does not take the number of CPUs over from sbatch.
[ -z "${SLURM_CPUS_PER_TASK:-}" ] || export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"

# Where the environment names a proxy, JAX would call the other nodes through it, and does not reach them.
if [ -n "${grpc_proxy:-}${https_proxy:-}${http_proxy:-}" ]; then
    no_grpc_proxy=$(scontrol show hostnames | paste --serial --delimiters=,)
    export no_grpc_proxy
fi

show_time() { # show_time EndTime: that field of the job, "" if it is not set
    scontrol show job "$SLURM_JOB_ID" | sed -n "s/.*\b$1=\([0-9][^ ]*\).*/\1/p"
}

requeue() {
    if [ "${SLURM_RESTART_COUNT:-0}" -ge "${MAX_RESTARTS:-50}" ]; then
        echo "not requeued: it was restarted ${SLURM_RESTART_COUNT} times (MAX_RESTARTS)" >&2
        return 1
    fi
    echo "$1, after restart ${SLURM_RESTART_COUNT:-0}: requeued" >&2
    scontrol requeue "$SLURM_JOB_ID"
}

# Signals go to the processes through SLURM: srun, if it receives SIGTERM, kills them before they have saved.
signal='' timer=''
# shellcheck disable=SC2329  # called by the traps
stop() {
    signal=$1
    scancel --signal=TERM "$SLURM_JOB_ID.0" 2> /dev/null
    [ "$signal" = USR1 ] || return
    # SLURM does not requeue a job that reaches its limit, so this happens before, whether it has saved or not.
    end=$(show_time EndTime)
    left=$(($(date --date="${end:-1 day}" +%s) - $(date +%s)))
    { sleep $((left * 3 / 4)) && requeue "the save takes too long"; } &
    timer=$!
}
trap 'stop USR1' USR1
trap 'stop TERM' TERM

# --kill-on-bad-exit=0: the processes end each other and report the cause; SLURM would end them without one.
# --wait=300: the step ends at most 5 minutes after the first of its processes.
srun --kill-on-bad-exit=0 --wait=300 --label "$@" --distributed &
step=$!
while kill -0 "$step" 2> /dev/null; do
    wait "$step"
done
wait "$step"
code=$?
[ -z "$timer" ] || kill "$timer" 2> /dev/null

if [ "$signal" = TERM ]; then
    # From scancel, or SLURM requeues by itself.
    exit "$code"
fi
if [ "$code" -eq 2 ]; then
    echo "not requeued: exit code 2 is an error that must be fixed first" >&2
    exit 2
fi
# GraceTime begins with a SIGTERM that only the processes receive.
if [ "$code" -eq 0 ] && [ -z "$signal" ] && [ -z "$(show_time PreemptTime)" ]; then
    exit 0
fi
requeue "exit code $code" || exit "$code"
