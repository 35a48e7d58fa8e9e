"""tools/launch/gpus.sh: the GPU of each process, and bad values, with a command that prints them."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "tools" / "launch" / "gpus.sh"
SHOW = ("sh", "-c", 'echo "GPU $CUDA_VISIBLE_DEVICES: $*"', "sh")


@pytest.fixture
def launch(tmp_path):
    """launch(num_gpus=4, PROCESSES="2") -> the ended script.

    nvidia-smi lists that number of GPUs; None: it is not installed.
    """

    def launch(num_gpus=None, **variables):
        # Without the machine's own nvidia-smi.
        for name in ("env", "sh", "seq", "grep", "mkdir"):
            (tmp_path / name).symlink_to(shutil.which(name))
        if num_gpus is not None:
            lines = "".join(f"echo 'GPU {i}: NVIDIA H200 (UUID: GPU-{i})'\n" for i in range(num_gpus))
            (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\n{lines}")
            (tmp_path / "nvidia-smi").chmod(0o755)
        environment = {"PATH": str(tmp_path), **variables}
        return subprocess.run(
            ["/bin/bash", SCRIPT, *SHOW], env=environment, capture_output=True, text=True, timeout=60
        )

    return launch


def _gpus(done):
    """The GPU of each process, in order."""
    assert (done.returncode, done.stderr) == (0, "")
    found = re.findall(r"GPU (\S+): .*--num_processes=(\d+) --process_id=(\d+)", done.stdout)
    gpus = {int(me): gpu for gpu, _, me in found}
    assert {int(count) for _, count, _ in found} == {len(gpus)} and len(found) == len(gpus)
    return [gpus[me] for me in range(len(gpus))]


@pytest.mark.parametrize(
    ("num_gpus", "variables", "gpus"),
    [
        (4, {}, ["0", "1", "2", "3"]),
        (4, {"PROCESSES": "2"}, ["0", "1"]),
        (8, {"CUDA_VISIBLE_DEVICES": "4,5"}, ["4", "5"]),
        (8, {"CUDA_VISIBLE_DEVICES": "4,5,6", "PROCESSES": "2"}, ["4", "5"]),
        (8, {"CUDA_VISIBLE_DEVICES": "GPU-8932f937,GPU-1a"}, ["GPU-8932f937", "GPU-1a"]),
        (None, {"CUDA_VISIBLE_DEVICES": "3, 1"}, ["3", "1"]),
        (None, {"PROCESSES": "2"}, ["0", "1"]),
    ],
)
def test_gpu_of_each_process(launch, num_gpus, variables, gpus):
    assert _gpus(launch(num_gpus, **variables)) == gpus


@pytest.mark.parametrize(
    ("num_gpus", "variables", "line"),
    [
        (None, {}, "nvidia-smi was not found: set PROCESSES=number"),
        (0, {}, "nvidia-smi lists no GPU"),
        (4, {"PROCESSES": "0"}, "PROCESSES=0: must be a number from 1"),
        (4, {"PROCESSES": "-1"}, "PROCESSES=-1: must be a number from 1"),
        (4, {"PROCESSES": "two"}, "PROCESSES=two: must be a number from 1"),
        (4, {"PROCESSES": "5"}, "PROCESSES=5: nvidia-smi lists 4 GPUs"),
        (
            4,
            {"PROCESSES": "3", "CUDA_VISIBLE_DEVICES": "0,1"},
            "PROCESSES=3: CUDA_VISIBLE_DEVICES=0,1 names 2 GPUs",
        ),
        (4, {"CUDA_VISIBLE_DEVICES": ""}, "CUDA_VISIBLE_DEVICES= names no GPU"),
        (4, {"CUDA_VISIBLE_DEVICES": "-1"}, "CUDA_VISIBLE_DEVICES=-1: must be GPUs, as in 4,5"),
        (4, {"CUDA_VISIBLE_DEVICES": "4,,5"}, "CUDA_VISIBLE_DEVICES=4,,5: must be GPUs, as in 4,5"),
        (4, {"PORT": "0"}, "PORT=0: must be a number from 1 to 65535"),
        (4, {"PORT": "http"}, "PORT=http: must be a number from 1 to 65535"),
        (4, {"LOGS": "/dev/null/logs"}, "LOGS=/dev/null/logs: this folder cannot be created"),
    ],
)
def test_bad_values_are_refused(launch, num_gpus, variables, line):
    done = launch(num_gpus, **variables)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"error: {line}\n")
