"""A sweep of tiny runs on digits, and programs that run it, which tests may kill."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from vit_registers.config import override, to_dict

ROOT = Path(__file__).parents[2]

CONFIG = '''
"""Positions and registers, two seeds."""
from vit_registers.config import Checkpoint, Config, Data, Model, Run, parse_arg, to_config_dict

def get_config(arg=None):
    a = parse_arg(arg, steps=24, cells=4)
    return to_config_dict(Config(
        model=Model(width=16, depth=1, num_heads=2, patch_size=4, image_size=(8, 8), channels=1,
                    num_classes=10),
        data=Data(loader="memory", name="digits", eval_split="test", batch_size=16, eval_batch_size=360,
                  train_ops="", eval_ops="", mean=(0.5,), std=(0.5,)),
        checkpoint=Checkpoint(every_steps=4),
        run=Run(total_steps=a.steps, log_every_steps=2, eval_every_steps=8, use_tensorboard=False)))

def sweep(arg=None):
    cells = [(positions, registers) for positions in ("learned", "none") for registers in (0, 2)]
    for seed in range(2):
        for positions, registers in cells[: parse_arg(arg, steps=24, cells=4).cells]:
            yield {"model.positions": positions, "model.num_registers": registers, "run.seed": seed}
'''

# Stands in for vit_registers.train: 20 steps, which take a moment; goes on where it was; SIGTERM stops it.
FAKE = """
import json, os, pathlib, signal, sys, time
run = pathlib.Path(next(a for a in sys.argv if a.startswith("--workdir=")).partition("=")[2])
here = pathlib.Path(__file__).parent
stop = []
signal.signal(signal.SIGTERM, lambda *_: stop.append(1))
signal.signal(signal.SIGINT, lambda *_: stop.append(1))
plan = json.loads((here / "plan.json").read_text()).get(run.name)
if plan:
    print("a line\\nerror: this is why\\n", flush=True)
    os.kill(os.getpid(), signal.SIGKILL) if plan == "kill" else sys.exit(plan)
(run / "config.json").write_text((here / "configs" / run.name).read_text())
metrics = run / "metrics.jsonl"
done = len(metrics.read_text().splitlines()) if metrics.exists() else 0
while done < 20 and not stop:
    time.sleep(0.02)
    done += 1
    with metrics.open("a") as file:
        file.write(json.dumps({"step": done}) + "\\n")
if done == 20:
    result = {"metrics": {"test/top1": 0.5}, "time_s": 0.4}
    (run / "result.tmp").write_text(json.dumps(result))
    os.replace(run / "result.tmp", run / "result.json")
"""

DRIVER = """
import sys
from absl import flags
from ml_collections import config_flags
from tools import sweep
from vit_registers import cli
sweep.TRAIN = (sys.executable, sys.argv.pop(1))
config_flags.DEFINE_config_file("config")
flags.DEFINE_string("workdir", None, "")
flags.DEFINE_bool("list", False, "")
flags.DEFINE_integer("index", None, "")
cli.run(sweep.main)
"""


@pytest.fixture
def config(tmp_path):
    """The path of the config file."""
    path = tmp_path / "tiny.py"
    path.write_text(CONFIG)
    return path


@pytest.fixture
def make(config, tmp_path):
    """make("cells=2", {"model.width": 32}, workdir=...) -> the Sweep of that argument and those settings."""

    from tools import runs

    def make(arg=None, common=None, *, workdir=tmp_path / "work"):
        base = override(runs.load_module(str(config)).get_config(arg), common or {})
        name = str(config) if arg is None else f"{config}:{arg}"
        return runs.make_sweep(name, base, common or {}, workdir)

    return make


@pytest.fixture
def launch(quick):
    """launch("-m", "tools.sweep", ...) -> Python in a process group of its own, killed at the end."""
    running = []

    def launch(*command):
        running.append(
            subprocess.Popen(
                [sys.executable, *map(str, command)],
                cwd=ROOT,
                env=quick(),
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
        )
        return running[-1]

    yield launch
    for program in running:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(program.pid, signal.SIGKILL)
        program.communicate()


@pytest.fixture
def fake(tmp_path, make):
    """The path of the stand-in; plan.json beside it says which runs fail, and how."""
    (tmp_path / "configs").mkdir()
    for run in make().runs:
        (tmp_path / "configs" / run.name).write_text(json.dumps(to_dict(run.config)))
    (tmp_path / "plan.json").write_text("{}")
    (tmp_path / "fake.py").write_text(FAKE)
    return tmp_path / "fake.py"


@pytest.fixture
def command(fake, config, tmp_path):
    """The command of a sweep that trains with the stand-in."""
    return ("-c", DRIVER, fake, f"--config={config}", f"--workdir={tmp_path}/work")
