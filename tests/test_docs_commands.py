"""The commands of README.md and docs/ that end within seconds are run, on small models and images.

tests/test_docs.py parses all commands. Those that are not here train, download, or run all experiments.
"""

import os
import re
import shutil
import stat
import subprocess

import jax
import numpy as np
import pytest
from etils import epath
from PIL import Image

import vit_registers
from tests.conftest import ROOT
from tests.fixtures.digits import make_config
from tests.fixtures.quick import parametrize_quick
from tests.objectives.image_text.test_objective import change
from tests.objectives.image_text.test_training import CONFIG as TEXTS
from tests.objectives.self_distillation.test_training import CONFIG
from tests.test_docs import _BLOCK, COMMANDS_OF_PAGES, PAGES
from vit_registers.config import Data, Model
from vit_registers.data.tokenizers.byte_values import Bytes
from vit_registers.data.tokenizers.clip import find_vocabulary
from vit_registers.errors import MissingPackageError
from vit_registers.interop.export import targets
from vit_registers.models.params import init_params
from vit_registers.objectives.catalog import make_objective
from vit_registers.runs.checkpoint_folder import TrainedOn
from vit_registers.runs.checkpoints import Checkpoints
from vit_registers.runs.tokenizer_file import write_tokenizer
from vit_registers.training.state import TrainState

NAMES = [f"class{number}" for number in range(10)]
MODEL = Model(
    width=192, depth=1, num_heads=3, mlp_dim=384, patch_size=16, image_size=(32, 32), num_classes=10
)
SHORT = {"configs", "convert", "evaluate"}
_PATHS = r"=(runs|exported|exported/digits|root|photos|mine|weights|downloads|exported/clip)(?=[/.@:]|$)"
SHORTER = {  # a few steps
    "--task=linear": ["--config.tasks.linear.num_steps=5"],
    "--task=logistic": ["--config.tasks.logistic.num_c=2"],
}
_STEPS = re.compile(r"(?<=@)\d+|(?<=--step=)\d+")  # the untrained run is at step 1


# Data sets with labels of pixels, which pages name by folders of the user's own, runs in a bucket, which
# tests/storage/test_runs.py reads, and jobs of several processes (tests/test_several_processes.py).
_ELSEWHERE = (
    "--data=/data/",
    "--data=imagenet2012:",
    "--data=data/",
    "--data=nyu_depth_v2",
    "--checkpoint=gs://",
    "--distributed",
)


def _is_short(program, *args):
    if any(arg.startswith(_ELSEWHERE) for arg in args):
        return False
    return program in SHORT or args[:1] == ("norms",) or {"--list", "--print_config"} & set(args)


SHORT_COMMANDS = [command for command in COMMANDS_OF_PAGES if _is_short(*command)]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with the run, weights and images that the pages name."""
    folder = tmp_path_factory.mktemp("made")
    runs = {"digits": make_config(model={"num_registers": 4}), "dino": CONFIG, "clip": TEXTS}
    for name, config in runs.items():
        objective = make_objective(config)
        params, extra = objective.init(jax.random.key(0))
        one = jax.numpy.ones((), jax.numpy.int32)
        state = TrainState(step=one, params=params, opt_state=None, ema=None, extra=extra)
        data = TrainedOn(class_names=tuple("0123456789"), num_examples=10)
        with Checkpoints(str(folder / "runs" / name), config, data=data) as written:
            written.save(state, {objective.best.metric: 0.5})
    write_tokenizer(Bytes(), epath.Path(folder / "runs" / "clip"), is_resumed=False)
    _write_clip(folder)
    exported = targets.export(MODEL, init_params(MODEL, key=jax.random.key(0)), "timm")
    targets.write(exported, folder / "weights.safetensors", np.dtype("float32"), Data())
    for name in NAMES:
        (folder / "root" / "val" / name).mkdir(parents=True)
        Image.new("RGB", (40, 32), (200, 100, 0)).save(folder / "root" / "val" / name / "1.png")
    return folder


def _write_clip(folder):
    """downloads/clip: a model of images and texts in the format of transformers."""
    layers = {"use_norm_after_pool": True, "use_patch_bias": False, "num_registers": 0, "norm_eps": 1e-5}
    config = change(TEXTS, model=layers, text={"vocab_size": 49408})
    params, extra = make_objective(config).init(jax.random.key(0))
    one = jax.numpy.ones((), jax.numpy.int32)
    state = TrainState(step=one, params=params, opt_state=None, ema=None, extra=extra)
    with Checkpoints(str(folder / "clip"), config) as written:
        written.save(state, None)
    vit_registers.load_image_text(str(folder / "clip")).save(folder / "downloads" / "clip", "transformers")


@pytest.fixture
def place(made, tmp_path):
    """A copy of that folder, to write in; runs/mine is runs/digits."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    (tmp_path / "runs" / "mine").symlink_to("digits")
    return tmp_path


@parametrize_quick("command", SHORT_COMMANDS, ids=" ".join, number=8)
def test_short_commands_run(command, place, run_here):
    program, *args = command
    if "--text" in args and any(arg.startswith("--output=runs/") for arg in args):
        try:  # the tokenizer of the run
            find_vocabulary()
        except MissingPackageError as error:
            pytest.skip(str(error))
    args = [_STEPS.sub("1", re.sub(_PATHS, rf"={place}/\1", arg)) for arg in args]
    args = [re.sub(r"^--output=(?!/)", f"--output={place}/", arg) for arg in args]
    if program == "evaluate":  # the results of weights are otherwise in the current folder
        args.append(f"--out={place}/evaluation")
        args = [re.sub(r"num_blocks=\d+", "num_blocks=1", arg) for arg in args]  # the run has one block
        args += SHORTER.get(next((arg for arg in args if arg.startswith("--task=")), ""), [])
    code, out, err = run_here(program, *args)
    assert (code, [line for line in err.splitlines() if line.startswith("error: ")]) == (0, [])
    assert out


def _shell(mark):
    """The command of the pages that has `mark`."""
    blocks = [code for page in PAGES for kind, code in _BLOCK.findall(page.read_text()) if kind == "sh"]
    (block,) = [block for block in blocks if mark in block]
    return block


@pytest.mark.parametrize(
    ("mark", "said"),
    [
        ("sbatch", "srun --kill-on-bad-exit=0 --wait=300 --label .venv/bin/vit-registers train"),
        ("tools/launch/gpus.sh", "train --config=vit_s16_i1k:registers=4 --workdir=runs/s16 --coordinator="),
    ],
)
def test_launchers_start_the_command_of_the_page(mark, said, tmp_path):
    """With programs instead of srun, vit-registers and nvidia-smi that print their arguments."""
    for name in ("srun", "vit-registers"):
        (tmp_path / name).write_text(f'#!/bin/sh\necho {name} "$@"\n')
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\necho GPU 0\necho GPU 1\n")
    (tmp_path / "sbatch").write_text(
        '#!/bin/bash\nwhile [[ $1 == --* ]]; do shift; done\nSLURM_JOB_ID=1 exec "$@"\n'
    )
    for file in tmp_path.iterdir():
        file.chmod(file.stat().st_mode | stat.S_IXUSR)
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "DRY_RUN": "1"}
    command = ["bash", "-c", _shell(mark)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert said in done.stdout
    assert done.stdout.count("--process_id=") == (2 if "gpus" in mark else 0)
