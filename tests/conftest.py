"""Strict numerics: 8 fake CPU devices, no implicit rank promotion; warnings are errors (pyproject.toml)."""

import os

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
os.environ["JAX_COMPILATION_CACHE_DIR"] = ""  # programs that tests start leave the user's cache alone

import gc
import logging
import resource
import runpy
import signal
import subprocess
import sys
import warnings
from importlib.metadata import version
from pathlib import Path

import jax
import pytest
from absl import app, flags
from absl import logging as absl_logging
from jax.experimental.compilation_cache import compilation_cache as jax_cache

# The emitters of fused loops that jaxlib 0.10 has take three times as long to compile as those before them.
# Other versions may not know the flag, and XLA ends the process on flags that it does not know.
QUICK_FLAGS = " --xla_cpu_use_fusion_emitters=false" * version("jaxlib").startswith("0.10.")
os.environ["XLA_FLAGS"] += QUICK_FLAGS

# A shell without job control ignores SIGINT in what it runs in the background, and programs inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_default_matmul_precision", "float32")
# Most of the time of small tests is LLVM's.
jax.config.update("jax_disable_most_optimizations", True)

# torch looks for Triton, whose LLVM and TensorFlow's abort each other in one process.
sys.modules.setdefault("triton", None)

ROOT = Path(__file__).parents[1]

pytest_plugins = [
    "tests.fixtures.digits",
    "tests.fixtures.emulator",
    "tests.fixtures.slurm",
    "tests.fixtures.sweeps",
    "tests.fixtures.training",
]

_IS_OWN_PROCESS = "VIT_REGISTERS_OWN_PROCESS"


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem):
    """Runs a test with the mark own_process in a pytest of its own."""
    if pyfuncitem.get_closest_marker("own_process") is None or _IS_OWN_PROCESS in os.environ:
        return None
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", pyfuncitem.nodeid]
    run = subprocess.run(
        command,
        env=environment | {_IS_OWN_PROCESS: "1"},
        cwd=pyfuncitem.config.rootpath,
        text=True,
        capture_output=True,
    )
    assert run.returncode == 0, (run.returncode, run.stdout[-5000:], run.stderr[-2000:])
    if " skipped" in run.stdout:
        pytest.skip(run.stdout.splitlines()[-1])
    return True


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node, error):
    """Prints how a worker of pytest-xdist ended that should not have; xdist does not say it."""
    if error:
        code = node.gateway._io.wait()
        how = f"{signal.Signals(-code).name}" if code and code < 0 else f"exit code {code}"
        print(f"\n{node.gateway.id} ended with {how}", flush=True)


# Runs the command of its arguments with a limit on the size of the files that it writes.
LIMITED = """
import os, resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]),) * 2)
os.execv(sys.argv[2], sys.argv[2:])
"""


# A worker that runs half of the suite would otherwise hold 6 GiB of compiled functions.
MAX_GROWTH_BYTES = 2**30
# Each has some memory maps. Linux allows 65,530 of them (vm.max_map_count); with more, LLVM ends the process.
MAX_MAPS = 25_000
TESTS_BETWEEN_COUNTS = 10  # counting takes milliseconds
_resident_bytes = {"after the last clearing": 0}
_tests = {"since the last count": 0}


def _read_resident_bytes():
    statm = Path("/proc/self/statm")
    return int(statm.read_text().split()[1]) * resource.getpagesize() if statm.exists() else 0


def _count_maps():
    maps = Path("/proc/self/maps")
    return maps.read_bytes().count(b"\n") if maps.exists() else 0


def _clear_compiled():
    jax.clear_caches()
    gc.collect()
    _resident_bytes["after the last clearing"] = _read_resident_bytes()


@pytest.fixture(scope="module", autouse=True)
def bounded_memory():
    """Drops JAX's compiled functions after a module where the process has grown by MAX_GROWTH_BYTES."""
    yield
    if _read_resident_bytes() > _resident_bytes["after the last clearing"] + MAX_GROWTH_BYTES:
        _clear_compiled()


@pytest.fixture(autouse=True)
def bounded_maps():
    """Drops them after a test where the process has more than MAX_MAPS memory maps."""
    yield
    _tests["since the last count"] += 1
    if _tests["since the last count"] >= TESTS_BETWEEN_COUNTS:
        _tests["since the last count"] = 0
        if _count_maps() > MAX_MAPS:
            _clear_compiled()


@pytest.fixture(autouse=True)
def collected_leftovers(request):
    """Frees what a failed save or restore leaves behind in the test that ignores its messages."""
    yield
    if any("Unraisable" in str(mark.args) for mark in request.node.iter_markers("filterwarnings")):
        gc.collect()


@pytest.fixture(scope="session")
def compilation_cache(tmp_path_factory):
    """The folder of compiled functions that the programs of all tests share."""
    return tmp_path_factory.mktemp("compiled")


@pytest.fixture(scope="module")
def compiled_once(compilation_cache):
    """Keeps what this process compiles on disk, for modules that train one model several times."""
    settings = {
        "jax_compilation_cache_dir": str(compilation_cache),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
    }
    before = {name: getattr(jax.config, name) for name in settings}
    for name, value in settings.items():
        jax.config.update(name, value)
    jax_cache.reset_cache()
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    jax_cache.reset_cache()


@pytest.fixture(scope="session")
def quick(compilation_cache):
    """quick(devices=1): an environment with fast compilation and slower programs."""

    def quick(devices=1):
        return os.environ | {
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}{QUICK_FLAGS}",
            "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
            "JAX_COMPILATION_CACHE_DIR": str(compilation_cache),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }

    return quick


@pytest.fixture
def start(quick, request):
    """start("train", "--flag=...", devices=1) -> a running program of ours; killed at the end of the test.

    Compilation is fast, or as users have it in tests marked "as_users".
    """
    running = []
    is_quick = request.node.get_closest_marker("as_users") is None

    def start(program, *args, devices=1, folder=ROOT, limit_bytes=None):
        environment = quick(devices)
        if not is_quick:
            del environment["JAX_DISABLE_MOST_OPTIMIZATIONS"]
            environment["XLA_FLAGS"] = environment["XLA_FLAGS"].removesuffix(QUICK_FLAGS)
        command = [sys.executable, "-m", f"vit_registers.{program}", *args]
        if limit_bytes is not None:
            command = [sys.executable, "-c", LIMITED, str(limit_bytes), *command]
            environment["JAX_COMPILATION_CACHE_DIR"] = ""  # the limit would apply to it too
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


@pytest.fixture
def untrained():
    """untrained(folder, config): writes a run folder of `config` with the initial parameters, at step 1."""
    from vit_registers.models.params import init_params
    from vit_registers.runs.checkpoints import Checkpoints
    from vit_registers.training.state import TrainState

    def untrained(folder, config, **meta):
        params = jax.jit(lambda: init_params(config.model, key=jax.random.key(config.run.seed)))()
        state = TrainState(
            step=jax.numpy.ones((), jax.numpy.int32), params={"vit": params}, opt_state=None, ema=None
        )
        with Checkpoints(str(folder), config, **meta) as written:
            written.save(state, {"top1": 0.5})
        return params

    return untrained


def _signal_handlers():
    return {number: signal.getsignal(number) for number in signal.valid_signals()}


@pytest.fixture
def run_here(monkeypatch, capfd):
    """run_here("train", "--flag=...") -> (exit code, standard output, standard error), in this process.

    For short runs: a new process spends seconds on imports. Changes of flags, of log handlers and filters,
    and of hooks are undone. A program may handle ctrl-C, and changes no other signal: with the default of
    SIGPIPE, a later test whose library writes to a closed socket would end the process without a message.
    """

    def run_here(program, *args):
        app.define_help_flags()
        module = f"vit_registers.{program}"
        before = set(flags.FLAGS)
        capfd.readouterr()
        with monkeypatch.context() as patch, warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # as Python does in programs
            for log in (logging.getLogger(), absl_logging.get_absl_logger(), logging.getLogger("asyncio")):
                patch.setattr(log, "handlers", [*log.handlers])
                patch.setattr(log, "filters", [*log.filters])
            patch.setattr(sys, "unraisablehook", sys.unraisablehook)
            patch.setattr(app, "faulthandler", None)  # it would take over pytest's, whose output is shown
            patch.setattr(sys, "argv", [program, *args])
            patch.setenv("TF_CPP_MIN_LOG_LEVEL", "3")
            patch.delitem(sys.modules, module, raising=False)
            patch.chdir(ROOT)
            verbosity, on_signal = absl_logging.get_verbosity(), _signal_handlers()
            try:
                with pytest.raises(SystemExit) as stopped:
                    runpy.run_module(module, run_name="__main__", alter_sys=True)
            finally:
                for name in set(flags.FLAGS) - before:  # except those of modules, which stay imported
                    owner = flags.FLAGS.find_module_defining_flag(name, "")
                    if name.startswith("config") or owner.endswith(f"{module.rpartition('.')[2]}.py"):
                        delattr(flags.FLAGS, name)
                flags.FLAGS.unparse_flags()
                absl_logging.set_verbosity(verbosity)
                signal.signal(signal.SIGINT, on_signal[signal.SIGINT])
            assert _signal_handlers() == on_signal
        return stopped.value.code or 0, *capfd.readouterr()

    return run_here
