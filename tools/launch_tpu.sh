#!/usr/bin/env bash
echo "error: tools/launch_tpu.sh is now: python -m tools.launch.tpu" >&2
exit 2
