#!/usr/bin/env bash
echo "error: tools/launch_gpus.sh is now: tools/launch/gpus.sh" >&2
exit 2
