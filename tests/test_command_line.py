"""Mistakes on the command line and in config files: one line that says what, where and how to fix it."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.fixtures.digits import flags
from vit_registers.config import Config, Model, Run, override, to_dict
from vit_registers.errors import user_line
from vit_registers.models.params import abstract_model
from vit_registers.training import memory

ROOT = Path(__file__).parents[1]
DIGITS = "--config=configs/digits.py"
_BEGINS = "def get_config(arg=None):\n"
_IMPORTS = f"from vit_registers.config import *\n{_BEGINS}"
_RETURNS = f"{_IMPORTS}    c = to_config_dict(Config())\n"

# What a config file may hold instead of a config, and what is said of it; {file} is its path.
CONFIG_FILES = {
    "run.json": (json.dumps({"model": {}}), "--config={file} is JSON: give a config file in Python"),
    "json.py": ('{"model": {}}', "--config={file} is JSON"),
    "binary.py": (b"\0\1\2", "--config={file} is a binary file"),
    "not_utf8.py": (b"# \xff\xfe\nx = 1\n", "--config={file}"),
    "empty.py": ("", "--config={file}: the file has no get_config()"),
    "no_function.py": ("x = 1\n", "--config={file}: the file has no get_config()"),
    "syntax.py": ("x = 1\ndef get_config(:\n", "{file}:2: SyntaxError"),
    "import.py": ("import nosuchmodule\n", "{file}:1: ModuleNotFoundError: No module named 'nosuchmodule'"),
    "raises.py": (
        "def get_config(arg=None):\n    raise RuntimeError('a\\nb')\n",
        "{file}:2: RuntimeError: a",
    ),
    "wrong_type.py": (
        f"{_BEGINS}    return int('x')\n",
        "{file}:2: ValueError: invalid lit",
    ),
    "lookup.py": (_BEGINS + "    return {}['key']\n", "{file}:2: "),
    "exits.py": ("import sys\nsys.exit('out')\n", "{file}:2: SystemExit: out"),
    "opens.py": (
        f"{_BEGINS}    open('nothere.txt')\n",
        "{file}:2: nothere.txt: No such file",
    ),
    "none.py": (f"{_BEGINS}    pass\n", "get_config() returned NoneType: return a ConfigDict"),
    "dict.py": (_BEGINS + "    return {'a': 1}\n", "returned dict: return a ConfigDict"),
    "plain.py": (
        "from vit_registers.config import Config\ndef get_config(arg=None):\n    return Config()\n",
        "returned Config: return a ConfigDict",
    ),
    "argument.py": (
        f"{_IMPORTS}    return Config(model=Model(widht=3))\n",
        "{file}:3: Model has no setting 'widht': did you mean 'model.width'?",
    ),
    "section.py": (
        f"{_IMPORTS}    return InitFrom(pth='x')\n",
        "{file}:3: InitFrom has no setting 'pth': did you mean 'init_from.path'?",
    ),
    "reads.py": (
        f"{_RETURNS}    c.model.width = c.optimizer.learing_rate\n    return c\n",
        "{file}:4: there is no setting 'learing_rate': did you mean 'optimizer.learning_rate'?",
    ),
    "sets.py": (
        f"{_RETURNS}    c.model.widht = 3\n    return c\n",
        "{file}:4: there is no setting 'widht': did you mean 'model.width'?",
    ),
    "casts.py": (f"{_RETURNS}    c.model.patch_size = 'a'\n    return c\n", "{file}:4: TypeError: "),
}


def assert_one_line(result, message):
    """Asserts that a program ended with code 2 and one short line on standard error."""
    code, _, err = result
    assert code == 2, err
    assert err.startswith("error: ") and err.count("\n") == 1, err
    assert message in err and len(err) < 1000, err


@pytest.mark.parametrize("overrides", [(), ("--config.model.depth=1",)], ids=["plain", "overridden"])
@pytest.mark.parametrize("name", CONFIG_FILES)
def test_config_files(run_here, tmp_path, name, overrides):
    content, message = CONFIG_FILES[name]
    file = tmp_path / name
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    result = run_here("train", f"--config={file}", f"--workdir={tmp_path}/run", *overrides)
    assert_one_line(result, message.format(file=file))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--config=configs",), "--config=configs is not a file"),
        (("--config=configs/nosuch.py",), "--config=configs/nosuch.py: there is no such file"),
        (("--config=configs/nosuch.py", "--config.model.depth=1"), "there is no such file"),
        (("--config=",), "--config has no value"),
        (("--config", "--verbosity=0"), "--config has no value"),
        (("--config=a\0b",), "--config=a"),
        ((DIGITS, "--config=configs/cifar10.py"), "--config is given 2 times: keep one"),
        (("--config.model.depth=1", DIGITS), "Found --config.model.depth=1 in argv before"),
        (("--config=configs/digits.py:steps=1,steps=2",), "config argument 'steps' is given twice"),
        (("--config=configs/transfer.py:path=/nonexistent",), "/nonexistent: there is no such file"),
        ((DIGITS, "--workdir="), "--workdir= is empty"),
        ((DIGITS, "--flagfile=nothere"), "nothere"),
        ((DIGITS, "--workdir=caf\udce9"), "is not valid UTF-8"),
        ((DIGITS, "--config.data.name=caf\udce9"), "is not valid UTF-8"),
        (
            (DIGITS, "--config.optimizer.grad_clip_norm=" + 5000 * "1"),
            "(5002 characters) is of type str",
        ),
        (
            (DIGITS, "--config.optimizer.grad_clip_norm=" + 400 * "1"),
            "is an integer of 400 digits",
        ),
        ((DIGITS, "--config.model.depth=" + 5000 * "("), "(5002 characters) is of type str: must be int"),
        ((DIGITS, "--config.model=1"), "config.model is not a setting: it is a section, of variant, width"),
        ((DIGITS, "--config.=1"), "config. is not a setting"),
        ((DIGITS, "--config.data.also_eval=digits test"), "also_eval"),
    ],
)
def test_arguments(run_here, tmp_path, arguments, message):
    workdir = () if any("workdir" in argument for argument in arguments) else (f"--workdir={tmp_path}/run",)
    assert_one_line(run_here("train", *workdir, *arguments), message)


@pytest.mark.parametrize(
    ("program", "flag"),
    [("evaluate", "checkpoint"), ("convert", "input"), ("analyze", "checkpoint"), ("train", "workdir")],
)
def test_flags_without_a_value(run_here, program, flag):
    assert_one_line(run_here(program, f"--{flag}="), f"--{flag}= is empty")


@pytest.mark.parametrize(
    ("program", "arguments", "message"),
    [
        ("train", ("digits",), "'digits' is not a flag: did you mean --config=digits?"),
        ("train", ("--config=digits", "registers=4"), "as in --config=digits:registers=4"),
        (
            "train",
            ("--config=digits", "--registers=4"),
            "write --config=digits:registers=..., as an argument",
        ),
        (
            "train",
            ("--config=digits:k=2", "--steps=4"),
            "write --config=digits:k=2,steps=..., as an argument",
        ),
        (
            "train",
            ("--config=digits", "--lr=1"),
            "--lr is not a flag: did you mean --config.optimizer.learning",
        ),
        ("train", ("--config=digits", "--model.depth=3"), "did you mean --config.model.depth?"),
        ("train", ("--config=digits", "--workdirr=x"), "did you mean --workdir?"),
        ("train", ("--config=digits", "--frobnicate"), "--frobnicate is not a flag; --help lists the flags"),
        (
            "train",
            ("--config=digits",),
            "--workdir is missing: give it a value, such as --workdir=runs/digits",
        ),
        ("train", (), "--config is missing: give it a value, such as --config=digits:registers=4"),
        ("train", ("--config=digit",), "--config=digit: there is no such run card: did you mean 'digits'?"),
        ("train", ("--config=digits:registers:4",), "arguments are written name=value, joined by commas"),
        (
            "train",
            ("--config=digits:registers",),
            "'registers' has no value: write registers=..., as in regis",
        ),
        (
            "train",
            ("--config=digits", "--config.data.repeats=two"),
            "--config.data.repeats=two: must be a whole nu",
        ),
        ("train", ("--config=digits", "--config.run.log_every_s=x"), "log_every_s=x: must be a number"),
        ("train", ("--config=digits", "--dry_run=maybe"), "error: --dry_run=maybe: must be True or False"),
        ("evaluate", ("--task=lin",), "error: --task=lin is unknown: did you mean 'linear'?"),
        ("evaluate", ("--task=boxes",), "error: --task=boxes is unknown: known: depth, knn, linear, log"),
        ("evaluate", ("runs/digits",), "did you mean --checkpoint=runs/digits?"),
        ("convert", ("model.pth",), "did you mean --input=model.pth?"),
        ("analyze", ("norms", "runs/digits"), "did you mean --checkpoint=runs/digits?"),
        ("analyze", ("runs/digits",), "did you mean vit-registers analyze all --checkpoint=runs/digits?"),
        (
            "tabulate",
            ("--config=digits", "--workdir=/nonexistent"),
            "there is no such folder: give that of the",
        ),
    ],
)
def test_commands_of_beginners_are_answered_with_what_may_be_meant(run_here, program, arguments, message):
    assert_one_line(run_here(program, *arguments), message)


def test_spaces_around_arguments_of_a_run_card_are_accepted(run_here):
    code, out, _ = run_here("train", "--config=digits: registers = 4 , mask= fractal", "--print_config")
    assert code == 0 and "num_registers=4" in out and "mask='fractal'" in out


def test_lists_may_be_empty(run_here):
    assert_one_line(run_here("analyze", "norms", "--energy=", "--checkpoint=/nonexistent"), "/nonexistent")


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("optimizer.lr", "'optimizer.learning_rate'"),
        ("lr", "'optimizer.learning_rate'"),
        ("model.learning_rate", "'optimizer.learning_rate'"),
        ("optimizer.wd", "'optimizer.weight_decay'"),
        (
            "optimizer.decay",
            "'optimizer.weight_decay' or 'optimizer.weight_decay_end' or 'optimizer.layer_decay'",
        ),
        ("data.bs", "'data.batch_size'"),
        ("data.batchsize", "'data.batch_size'"),
        ("model.dpth", "'model.depth'"),
        ("modl.depth", "'model.depth'"),
        ("modle.patchsize", "'model.patch_size'"),
        ("run.steps", "'run.total_steps'"),
        ("model.depth.x", "'model.depth'"),
        ("model.image_size[0]", "'model.image_size'"),
        ("optimizer.qqqq", "settings of optimizer: name, schedule"),
        ("qqqq", "sections: model, text, init_from"),
    ],
)
def test_the_nearest_setting_is_named(run_here, tmp_path, given, meant):
    assert_one_line(run_here("train", DIGITS, f"--workdir={tmp_path}", f"--config.{given}=1"), meant)


@pytest.mark.parametrize("program", ["train", "evaluate", "analyze"])
def test_all_misspelt_settings_are_named_at_once(run_here, program):
    wrong = ("model.dpth", "optimizer.lr", "data.bs")
    result = run_here(program, *(f"--config.{name}=1" for name in wrong))
    for name in wrong:
        assert_one_line(result, f"config.{name} is not a setting")


@pytest.mark.parametrize(
    ("card", "given", "left"),
    [
        ("total_steps", "total_epochs", {"total_steps": None, "total_epochs": 3}),
        ("total_epochs", "total_steps", {"total_steps": 3, "total_epochs": None}),
        ("eval_every_steps", "eval_every_epochs", {"eval_every_steps": None, "eval_every_epochs": 3}),
    ],
)
def test_an_override_unsets_the_alternative_of_the_card(card, given, left):
    run = override(to_dict(Config(run=Run(**{card: 7}))), {f"run.{given}": 3}).run
    assert {name: getattr(run, name) for name in left} == left
    both = override(to_dict(Config()), {f"run.{card}": 7, f"run.{given}": 3}).run
    assert getattr(both, card) == 7 and getattr(both, given) == 3


def test_an_override_on_the_command_line_unsets_the_alternative_of_the_card(run_here, tmp_path):
    arguments = (DIGITS, "--config.run.total_epochs=0.001", "--config.optimizer.warmup_epochs=0.002")
    assert_one_line(run_here("train", *arguments, f"--workdir={tmp_path}/run"), "total")


@pytest.mark.parametrize("program", ["vit_registers.train", "vit_registers.evaluate", "vit_registers.sweep"])
def test_misspelt_settings_are_named_before_the_slow_imports(program):
    code = f"""
import runpy, sys
sys.argv = ["x", "--config=configs/digits.py", "--config.optimizer.lr=1"]
try:
    runpy.run_module("{program}", run_name="__main__", alter_sys=True)
except SystemExit as stopped:
    assert stopped.code == 2
assert "jax" not in sys.modules
"""
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert "did you mean 'optimizer.learning_rate'?" in ended.stderr


DROPPED = """
import gc
from vit_registers import cli

def interrupt(phase, info):
    gc.callbacks.remove(interrupt)
    raise KeyboardInterrupt

def main():
    gc.callbacks.append(interrupt)
    gc.collect()
    print("went on")

cli.run(main)
"""


def test_ctrl_c_that_arrives_in_a_callback_ends_the_program():
    done = subprocess.run([sys.executable, "-c", DROPPED], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "error: interrupted\n")


@pytest.mark.slow
@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("moment", ["imports", "parameters"])
def test_ctrl_c_before_the_first_step_is_a_line_at_most(start, tmp_path, moment, times):
    program = start("train", DIGITS, f"--workdir={tmp_path}/run")
    if moment == "imports":
        maps = Path(f"/proc/{program.pid}/maps")
        while "jaxlib" not in maps.read_text():
            time.sleep(0.01)
    else:
        while not program.stdout.readline().startswith("parameters"):
            assert program.poll() is None
    for _ in range(times):
        program.send_signal(signal.SIGINT)
        time.sleep(0.2)
    _, err = program.communicate(timeout=60)
    assert (program.returncode, err) in ((0, ""), (130, "error: interrupted\n"))
    assert program.returncode == 130 or moment != "imports"


@pytest.mark.parametrize("name", ["config.json", "parameters.txt", "metrics.jsonl", "result.json"])
def test_folders_where_files_are_expected(run_here, tmp_path, name):
    (tmp_path / "run" / name / "inside").mkdir(parents=True)
    assert_one_line(
        run_here("train", "--config=configs/digits.py:steps=1", f"--workdir={tmp_path}/run"), name
    )


def test_a_file_where_a_folder_is_expected(run_here, tmp_path):
    (tmp_path / "checkpoints").write_text("")
    assert_one_line(
        run_here("train", "--config=configs/digits.py:steps=1", f"--workdir={tmp_path}"), "checkpoints"
    )


@pytest.mark.parametrize(
    ("setting", "what"),
    [
        ("model.width=1000000", "the parameters and their moments"),
        ("model.mlp_dim=2000000000", "the parameters and their moments"),
        ("data.batch_size=1000000000", "a training batch"),
        ("data.eval_batch_size=1000000000", "an evaluation batch"),
        ("model.num_registers=100000000", "an evaluation batch"),
    ],
)
def test_what_cannot_fit_into_memory_is_refused_at_once(run_here, tmp_path, setting, what):
    devices = "--config.mesh.data=8"
    result = run_here(
        "train", "--config=configs/digits.py:steps=1", f"--workdir={tmp_path}", devices, f"--config.{setting}"
    )
    assert_one_line(result, f"{what} alone would take ")
    assert not (tmp_path / "config.json").exists()


@pytest.mark.slow
def test_the_bound_on_memory_is_below_what_a_model_takes():
    for settings in (
        {},
        {"mlp": "swiglu"},
        {"use_cls": False, "pooling": "gap"},
        {"num_registers": 4, "summary_factor": 2},
        {"positions": "none", "use_qkv_bias": False, "use_patch_bias": False},
    ):
        model = Model(variant="Ti", **settings)
        leaves = jax.tree.leaves(abstract_model(model)[1])
        assert 0.9 < memory.least_parameters(model) / sum(leaf.size for leaf in leaves) <= 1.0


def test_memory_that_does_not_suffice_is_one_line():
    with pytest.raises((MemoryError, jax.errors.JaxRuntimeError)) as here:
        np.zeros(2**60, np.uint8)
    assert "out of memory (Unable to allocate 1.00 EiB" in user_line(here.value)
    with pytest.raises(jax.errors.JaxRuntimeError) as device:
        jnp.zeros((2**30, 2**15), jnp.uint8).block_until_ready()
    assert user_line(device.value).startswith("out of memory (Out of memory allocating")
    text = "INTERNAL: Error dispatching computation: Out of memory allocating 64000000000 bytes."
    assert user_line(jax.errors.JaxRuntimeError(text)).startswith("out of memory (INTERNAL")
    assert user_line(ValueError("x")) is None


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    ["analyze --list", "analyze --help", "sweep --list {}", "tabulate {}"],
    ids=lambda words: words.split(" {")[0],
)
def test_output_that_nobody_reads_ends_a_program_quietly(start, tmp_path, words):
    program = start(*words.format(f"--config=configs/digits.py --workdir={tmp_path}").split())
    program.stdout.close()
    assert program.wait(timeout=60) == 141
    assert program.stderr.read() == ""


@pytest.mark.slow
def test_a_run_whose_output_nobody_reads_is_trained_to_its_end(start, tmp_path):
    program = start("train", *flags("steps=2"), f"--workdir={tmp_path}/run")
    program.stdout.close()
    program.wait(timeout=100)
    assert program.stderr.read() == ""
    assert (tmp_path / "run" / "result.json").exists()
