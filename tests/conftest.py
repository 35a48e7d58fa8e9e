"""Strict numerics: 8 fake CPU devices, no implicit rank promotion; warnings are errors (pyproject.toml)."""

import os

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

import subprocess
import sys
from pathlib import Path

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_default_matmul_precision", "float32")
# Most of the time of small tests is LLVM's. Programs that tests start are compiled as users compile them.
jax.config.update("jax_disable_most_optimizations", True)

# torch looks for Triton, whose LLVM and TensorFlow's abort each other in one process.
sys.modules.setdefault("triton", None)

ROOT = Path(__file__).parents[1]

# Runs the command that follows, with a limit on the size of the files that it writes.
LIMITED = """
import os, resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]),) * 2)
os.execv(sys.argv[2], sys.argv[2:])
"""


@pytest.fixture(scope="session")
def compilation_cache(tmp_path_factory):
    """Shared by the programs that tests start, which compile the same few steps."""
    return tmp_path_factory.mktemp("compiled")


@pytest.fixture
def start(compilation_cache):
    """start("train", "--flag=...", devices=1) -> a running program of ours; killed at the end of the test."""
    running = []

    def start(program, *args, devices=1, folder=ROOT, limit_bytes=None):
        environment = os.environ | {
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
            "JAX_COMPILATION_CACHE_DIR": str(compilation_cache),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }
        command = [sys.executable, "-m", f"vit_registers.{program}", *args]
        if limit_bytes is not None:
            command = [sys.executable, "-c", LIMITED, str(limit_bytes), *command]
            del environment["JAX_COMPILATION_CACHE_DIR"]  # could not be written either
        pipe = subprocess.PIPE
        running.append(
            subprocess.Popen(
                command,
                cwd=folder,
                env=environment,
                stdout=pipe,
                stderr=pipe,
                text=True,
            )
        )
        return running[-1]

    yield start
    for program in running:
        program.kill()
        program.communicate()


@pytest.fixture
def run(start):
    """run("train", "--flag=...") -> (exit code, standard output, standard error)."""

    def run(program, *args, devices=1, folder=ROOT, limit_bytes=None):
        process = start(program, *args, devices=devices, folder=folder, limit_bytes=limit_bytes)
        out, err = process.communicate(timeout=300)
        return process.returncode, out, err

    return run
