"""Converts checkpoints of other code bases to run folders, and models to other formats.

    vit-registers convert --input=dinov2_vits14_reg4_pretrain.pth --output=runs/dinov2-s
    vit-registers convert --input=runs/mine --output=exported --to=transformers
    vit-registers convert --input=weights.safetensors --dry-run

Input formats: DINOv3, DINOv2, DeiT, DINO, iBOT, CLIP, OpenCLIP, EVA-02, Perception Encoder, timm,
transformers, big_vision and the fractal paper's code, as safetensors, npz or torch files, or as folders of
them. --to selects the output format: run (a folder for evaluate, analyze and init_from), transformers, timm,
big_vision, dinov3, dinov2, deit, dino, clip, open_clip, mup_vit, or stablehlo (the forward pass, which runs
without this package). With --text, a whole model of images and texts is converted, to run, transformers,
open_clip, clip or big_vision. An output that ends in .safetensors or .npz is one file of tensors; any other
is a folder, with a model card, the preprocessing and the names of classes. The output is read again and
compared. --dry-run prints which tensor becomes which parameter, and writes nothing.

`python -m vit_registers.convert` is the same command.
"""

from vit_registers import startup

if __name__ == "__main__":
    startup.end_on_interrupt()

from absl import flags


def define_flags() -> None:
    """Defines the flags of the program."""
    flags.DEFINE_string(
        "input", None, "Run folder, RUN@STEP, file or folder of another code base, or hf://ORG/NAME."
    )
    flags.DEFINE_string(
        "output", None, "Folder to write, or a file of tensors, which ends in .safetensors or .npz."
    )
    flags.DEFINE_string("to", "run", "run, or an output format of those above.")
    flags.DEFINE_string("source", "auto", "Family of the checkpoint, if it is not recognized.")
    flags.DEFINE_string("image_size", None, "Image size of the model in pixels, such as 518 or 392x518.")
    flags.DEFINE_integer(
        "num_heads", None, "Number of heads, if neither config.json nor the width determine it."
    )
    flags.DEFINE_string(
        "hidden_act", None, "gelu, quick_gelu or gelu_tanh, if the checkpoint does not determine it."
    )
    flags.DEFINE_string("interpolation", None, "Resampling of positions; that of the family if not given.")
    flags.DEFINE_string("pooling", None, "cls, gap, map ...; inferred if not given.")
    flags.DEFINE_string("mask", None, "Mask of the fractal paper's code, if it is not stored.")
    flags.DEFINE_string("architecture", None, "Name of a timm model, if no config.json has it.")
    flags.DEFINE_enum(
        "dtype",
        "float32",
        ["float32", "float16", "bfloat16"],
        "Dtype of exported tensors; for other formats than run.",
    )
    flags.DEFINE_integer("step", None, "Step of a run folder; the newest intact checkpoint if not given.")
    flags.DEFINE_enum(
        "params",
        None,
        ["params", "ema", "teacher", "student"],
        "Trained (params, student) or averaged (ema, teacher); those to evaluate if not given.",
    )
    flags.DEFINE_multi_string(
        "leave_out", [], "Pattern of names in the file that are not read, such as 'head.*'; may be repeated."
    )
    flags.DEFINE_integer(
        "channels",
        None,
        "Channels of the images, if other than those of the weights: 1 sums the patch kernel.",
        lower_bound=1,
    )
    flags.DEFINE_bool(
        "text", False, "Convert both towers of a model of images and texts, not only the image tower."
    )
    flags.DEFINE_string(
        "tokenizer", "clip", "With --text --to=run: the tokenizer, as data.captions.tokenizer of the run."
    )
    flags.DEFINE_integer("text_num_heads", None, "Number of heads of the text tower; as --num_heads.")
    flags.DEFINE_bool("dry-run", False, "Print the tensor map and write nothing.")
    flags.mark_flags_as_required(["input"])


startup.begin(__name__, define_flags)

import contextlib
import ctypes
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from vit_registers import cli, image_text, loading
from vit_registers.checkpoint_names import parse_checkpoint
from vit_registers.config import image_size, lookup
from vit_registers.conversion import Input, open_input, read_run
from vit_registers.errors import ConfigError
from vit_registers.interop import reading
from vit_registers.interop.class_names import CLASS_NAMES_FILE
from vit_registers.interop.export import json_configs, stablehlo, targets
from vit_registers.interop.export.files import check_name
from vit_registers.interop.export.preprocessing_files import own_json
from vit_registers.interop.hints import Hints, make_hints
from vit_registers.interop.opened import OpenedWeights
from vit_registers.interop.preprocessing import PREPROCESSING_FILE
from vit_registers.interop.tensor_map import table_text
from vit_registers.interop.values import compare_parameters
from vit_registers.model_card import write_family_card, write_stablehlo_card
from vit_registers.models.blocks import dims
from vit_registers.models.params import abstract_model
from vit_registers.models.paths import leaves_of
from vit_registers.run_conversion import convert_to_text_run, to_run
from vit_registers.runs.output_folder import (
    check_output,
    no_new_folders_on_failure,
    nothing_new_on_failure,
    reported_errors,
)
from vit_registers.storage import paths
from vit_registers.storage.run_lock import lock_run
from vit_registers.strict_json import dumps

STABLEHLO = "stablehlo"
_M_MMAP_THRESHOLD = -3  # of malloc.h


def to_family(source: Input, output: str, target: str, dtype: str) -> targets.Export:
    """Exports the model to another format; returns the export. A folder gets a model card too."""
    cli.writable_folder(str(Path(output).expanduser().parent), "--output")
    exported, facts = targets.export(source.config.model, source.read(), target), source.facts()
    for note in exported.notes:
        print(f"note: {note}")
    written = targets.write(exported, output, jnp.dtype(dtype), source.config.data, facts.class_names)
    folder = Path(output).expanduser()
    if folder.is_dir():
        written.append(write_family_card(folder, facts, exported, dtype))
    _say_written(written)
    if target == "timm" and not folder.is_dir():
        print(json_configs.timm_call(exported.model))
    return exported


def to_stablehlo(source: Input, output: str) -> str:
    """Exports the forward pass as a folder; returns how its outputs compare with those of the model."""
    folder, facts, model = cli.local_folder(output, "--output"), source.facts(), source.config.model
    params = source.read()
    file = folder / stablehlo.STABLEHLO_FILE
    signature = stablehlo.write_stablehlo(model, params, image_size(source.config), file)
    files: dict[str, Any] = {PREPROCESSING_FILE: own_json(facts.preprocessing)}
    if facts.class_names is not None and model.num_classes:
        files[CLASS_NAMES_FILE] = list(facts.class_names)
    for name, values in files.items():
        (folder / name).write_text(dumps(values) + "\n")
    card = write_stablehlo_card(folder, facts, signature)
    _say_written([file, *(folder / name for name in files), card])
    difference = stablehlo.check_stablehlo(model, params, file, signature)
    return f"read again: outputs of 2 images, equal to {difference:.1g} of the largest; {output}"


def _say_written(paths: Iterable[Path]) -> None:
    for path in paths:
        print(f"written: {path} ({path.stat().st_size:,} bytes)")


def check_written(source: Input, output: str, exported: targets.Export | None, dtype: str) -> int:
    """Reads the output and compares every parameter; returns their number."""
    if exported is None:
        written = leaves_of(read_run(loading.open_run(output)))
        return compare_parameters(source.leaves(), written, np.float32, output)
    model = exported.model
    hints = Hints(
        image_size=model.image_size,
        num_heads=dims(model).num_heads,
        hidden_act=model.activation,
        pooling=model.pooling,
        mask=model.mask if model.summary_factor else None,
    )
    opened = reading.open_path(output, source=exported.target.split("/")[0], hints=hints)
    expected = leaves_of(exported.params)
    return compare_parameters(reading.iter_leaves(opened), expected, jnp.dtype(dtype), output)


def convert_to(source: Input, output: str, target: str, dtype: str) -> str:
    """Writes `output` and compares it with `source`; returns what was compared, in a line.

    If this fails, everything that it wrote is deleted.
    """
    path = paths.folder(output)
    with contextlib.ExitStack() as stack:
        stack.enter_context(no_new_folders_on_failure(path))
        if target == "run":
            stack.enter_context(lock_run(cli.writable_folder(output, "--output")))
            check_output(output, source.path, target=target)  # again: the lock now excludes other writers
        stack.enter_context(nothing_new_on_failure(path))
        stack.enter_context(reported_errors(output))
        if target == STABLEHLO:
            return to_stablehlo(source, output)
        exported = None
        if target == "run":
            to_run(source, output)
        else:
            exported = to_family(source, output, target, dtype)
        count = check_written(source, output, exported, dtype)
        return f"read again: {count} parameters, equal bit for bit; {output}"


def return_freed_memory() -> None:
    """Makes glibc return freed tensors to the system; by default it keeps those below 32 MB."""
    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, 1 << 20)


def main() -> None:
    """The command line."""
    values = flags.FLAGS
    is_dry_run = values["dry-run"].value
    return_freed_memory()
    lookup(dict.fromkeys(("run", *targets.TARGETS, STABLEHLO)), values.to, "--to")
    if values.to in ("run", STABLEHLO) and values.dtype != "float32":
        raise ConfigError(
            f"--dtype={values.dtype}: parameters of a {values.to} are float32; --dtype is for other formats"
        )
    if not values.output and not is_dry_run:
        raise ConfigError("--output: give the folder or file to write, or --dry-run")
    hints = make_hints(
        parse_size(values.image_size),
        values.num_heads,
        values.hidden_act,
        values.interpolation,
        values.pooling,
        values.mask,
        values.architecture,
        values.leave_out,
        values.channels,
    )
    name = parse_checkpoint(values.input, values.step, where="--input")
    if values.text and values.to != "run":
        image_text.check_target(values.to, "--text --to", others=("run",))
    if not is_dry_run:
        if values.to != "run":
            cli.check_local(values.output, "--output")
        is_folder = values.to in ("run", STABLEHLO, "transformers")
        check_name(values.output, values.to, is_folder=is_folder)
        check_output(values.output, name.path, target=values.to)
    if values.text:
        how = {"source": values.source, "hints": hints, "text_num_heads": values.text_num_heads}
        how["params"] = values.params
        if is_dry_run:
            print(image_text.image_text_table(name, **how))
            return
        if values.to == "run":
            print(convert_to_text_run(name, values.output, tokenizer=values.tokenizer, **how))
            return
        print(image_text.convert_image_text(name, values.output, to=values.to, dtype=values.dtype, **how))
        return
    source = open_input(name, source=values.source, hints=hints, params=values.params)
    if is_dry_run:
        if isinstance(opened := source.checkpoint, OpenedWeights):
            leaves = leaves_of(abstract_model(opened.native)[1])
            print(table_text(opened.tensor_map, leaves, opened.found.in_file))
        if values.to in targets.TARGETS:
            exported = targets.export(source.config.model, source.read(), values.to)
            leaves = leaves_of(abstract_model(exported.model)[1])
            print(table_text(exported.tensor_map, leaves, exported.in_file))
        return
    print(convert_to(source, values.output, values.to, values.dtype))


def parse_size(text: str | None) -> tuple[int, int] | None:
    """The (height, width) of "518" or "392x518". Raises ConfigError for anything else."""
    if text is None:
        return None
    parts = text.split("x")
    if len(parts) > 2 or not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise ConfigError(f"--image_size={text}: give pixels such as 518, or height x width such as 392x518")
    return int(parts[0]), int(parts[-1])


if __name__ == "__main__":
    cli.run(main)
