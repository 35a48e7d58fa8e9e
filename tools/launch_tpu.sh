#!/usr/bin/env bash
echo "error: tools/launch_tpu.sh is now: tools/launch/tpu.sh" >&2
exit 2
