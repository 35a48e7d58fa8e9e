#!/usr/bin/env bash
echo "error: tools/launch_slurm.sh is now: tools/launch/slurm.sh" >&2
exit 2
