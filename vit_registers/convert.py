"""Other people's checkpoints into run folders, and models out to other people's formats.

    python -m vit_registers.convert --input=dinov2_vits14_reg4_pretrain.pth --output=runs/dinov2-s
    python -m vit_registers.convert --input=runs/mine --output=exported --to=transformers
    python -m vit_registers.convert --input=weights.safetensors --dry-run

In: DINOv2, DeiT, DINO, iBOT, CLIP, OpenCLIP, timm, transformers, big_vision and the fractal paper's code, as
safetensors, npz or torch files or as folders of them. Out (--to): run (a folder for evaluate, analyze and
init_from), or one of those formats. What was written is read again and compared. --dry-run prints which
tensor becomes which parameter, and writes nothing.
"""

from vit_registers import startup

startup.begin(__name__)

import contextlib
import ctypes
import dataclasses
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from vit_registers import cli, loading
from vit_registers import config as config_lib
from vit_registers.config import Config, Mesh, Model, lookup
from vit_registers.errors import CheckpointError, ConfigError
from vit_registers.interop import reading
from vit_registers.interop.export import targets
from vit_registers.interop.infer import Hints, make_hints
from vit_registers.interop.preprocessing import preprocessing
from vit_registers.interop.tensor_map import Entry
from vit_registers.interop.values import check_leaves
from vit_registers.models.params import abstract_model
from vit_registers.models.paths import Leaf, leaves_of, lookup_leaf, path_text
from vit_registers.objectives.base import BACKBONE
from vit_registers.runs.checkpoints import Checkpoints
from vit_registers.runs.output_folder import check_output, no_new_folders_on_failure, nothing_new_on_failure
from vit_registers.runs.run_lock import RunLock
from vit_registers.runs.writers import write_parameter_overview
from vit_registers.strict_json import dumps
from vit_registers.training import sharding
from vit_registers.training.state import TrainState

_M_MMAP_THRESHOLD = -3  # of malloc.h

DTYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": jnp.bfloat16}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """What is converted: its config, and a way to its parameters."""

    config: Config
    opened: reading.Opened | None  # None: a run folder
    step: int | None
    params: str | None
    path: str
    normalisation: str | None  # where its mean and deviation come from

    def read(self) -> dict[str, Any]:
        """The parameters, nested. Raises CheckpointError where one is not finite."""
        if self.opened is not None:
            return reading.read_leaves(self.opened)
        mesh = sharding.make_mesh(Mesh(), devices=jax.local_devices()[:1])
        _, params = loading.read_model(self.path, self.step, self.config, mesh, params=self.params)
        check_leaves(leaves_of(params), f"{self.path}, step {self.step}")
        return params

    def leaves(self) -> Iterable[tuple[Leaf, Any]]:
        """The parameters by path, read one by one where that can be."""
        return leaves_of(self.read()).items() if self.opened is None else reading.iter_leaves(self.opened)


def open_source(path: str, *, source: str, hints: Hints, step: int | None, params: str | None) -> Source:
    """The run folder, or other people's checkpoint, at `path`; a line says what it is."""
    if loading.is_run(path):
        loading.refuse_hints(path, source, hints)
        step, config = loading.read_config(path, step)
        print(f"{path}: a run folder, step {step}")
        origin = loading.normalisation_origin(path, step)
        return Source(config=config, opened=None, step=step, params=params, path=path, normalisation=origin)
    if step is not None:
        raise CheckpointError(f"{path} is no run folder, and --step is for those")
    opened = reading.open_path(path, source=source, hints=dataclasses.replace(hints, params=params))
    data, origin = preprocessing(opened, Path(path).expanduser())
    print(reading.describe(opened))
    print(loading.describe_normalisation(data, origin))
    config = config_lib.check(Config(model=opened.model, data=data), ("model", "data"))
    return Source(config=config, opened=opened, step=None, params=params, path=path, normalisation=origin)


def print_table(entries: tuple[Entry, ...], model: Model, in_file: Callable[[str], str]) -> None:
    """Prints which of their tensors are which parameters, with shapes."""
    _, abstract = abstract_model(model)
    for entry in entries:
        leaf_shapes = [lookup_leaf(abstract, leaf).shape for leaf in entry.leaves]
        theirs = zip(entry.names, entry.shapes(leaf_shapes), strict=True)
        ours = zip(map(path_text, entry.leaves), leaf_shapes, strict=True)
        left = " + ".join(f"{in_file(name)} {list(shape)}" for name, shape in theirs)
        right = " + ".join(f"{name} {list(shape)}" for name, shape in ours) or "fixed"
        print(f"{left}  =  {right}")


def to_run(source: Source, output: str) -> None:
    """Writes a run folder with one checkpoint, of step 0."""
    run = cli.writable_folder(output, "--output")
    params = source.read()
    origin = f"from {source.path}"
    if source.opened is not None:
        origin += f", read as {source.opened.found.source}"
    write_parameter_overview({BACKBONE: params}, run / "parameters.txt")
    (run / "config.json").write_text(dumps(config_lib.to_dict(source.config)) + "\n")
    data = None if source.opened is not None else loading.trained_on(source.path, source.step)
    with Checkpoints(output, source.config, data=data) as written:
        state = TrainState(step=jnp.zeros((), jnp.int32), params={BACKBONE: params}, opt_state=None, ema=None)
        written.save(state, None, origin=origin, normalisation=source.normalisation)


def to_family(source: Source, output: str, target: str, dtype: str) -> targets.Export:
    """Writes the model in another family's format; returns what was written."""
    cli.writable_folder(str(Path(output).expanduser().parent), "--output")
    exported = targets.export(source.config.model, source.read(), target)
    for note in exported.notes:
        print(f"note: {note}")
    for path in targets.write(exported, output, DTYPES[dtype], source.config.data):
        print(f"written: {path} ({path.stat().st_size:,} bytes)")
    if target == "timm":
        print(f"timm.models.vision_transformer.VisionTransformer(**{targets.timm_arguments(exported.model)})")
    return exported


def compare(leaves: Iterable[tuple[Leaf, Any]], others: Mapping[Leaf, Any], dtype: Any, where: str) -> int:
    """The number of parameters that were compared. Raises CheckpointError where one differs in a bit.

    `leaves` may be read as they are asked for; `others` are rounded to `dtype` before.
    """
    left = dict(others)
    for leaf, value in leaves:
        other = left.pop(leaf, None)
        if other is None or not np.array_equal(np.asarray(other).astype(dtype).astype(np.float32), value):
            raise CheckpointError(f"{where}: {path_text(leaf)} is not what was written")
    if left:
        raise CheckpointError(f"{where}: {path_text(next(iter(left)))} was not written")
    return len(others)


def check(source: Source, output: str, exported: targets.Export | None, dtype: str) -> int:
    """Reads what was written and compares every parameter; returns their number."""
    if exported is None:
        step, config = loading.read_config(output)
        mesh = sharding.make_mesh(Mesh(), devices=jax.local_devices()[:1])
        _, there = loading.read_model(output, step, config, mesh)
        others = leaves_of(there)
        leaves = reading.iter_leaves(source.opened) if source.opened else leaves_of(source.read()).items()
        return compare(leaves, others, np.float32, output)
    model = exported.model
    hints = Hints(
        image_size=model.image_size,
        num_heads=reading.dims(model).num_heads,
        hidden_act=model.activation,
        pooling=model.pooling,
        mask=model.mask if model.summary_factor else None,
    )
    family = exported.target.split("/")[0]
    opened = reading.open_path(output, source=family, hints=hints)
    expected = leaves_of(exported.params)
    return compare(reading.iter_leaves(opened), expected, DTYPES[dtype], output)


def convert_to(source: Source, output: str, target: str, dtype: str) -> int:
    """Writes `output` and compares what was written; returns the number of parameters.

    Where that fails, nothing is left of what was written.
    """
    path = Path(output).expanduser()
    with contextlib.ExitStack() as stack:
        stack.enter_context(no_new_folders_on_failure(path))
        if target == "run":
            stack.enter_context(RunLock(cli.writable_folder(output, "--output")))
            check_output(output, source.path, target=target)  # once more, now that nobody else writes there
        stack.enter_context(nothing_new_on_failure(path))
        exported = None
        if target == "run":
            to_run(source, output)
        else:
            exported = to_family(source, output, target, dtype)
        return check(source, output, exported, dtype)


def return_freed_memory() -> None:
    """Has glibc give back tensors when they are freed; by default it keeps all below 32 MB for later."""
    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, 1 << 20)


def main() -> None:
    """The command line."""
    values = flags.FLAGS
    return_freed_memory()
    lookup(dict.fromkeys(("run", *targets.TARGETS)), values.to, "--to")
    if values.to == "run" and values.dtype != "float32":
        raise ConfigError(
            f"--dtype={values.dtype}: parameters of a run are float32; --dtype is for other formats"
        )
    if not values.output and not values["dry-run"].value:
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
    if not values["dry-run"].value:
        check_output(values.output, values.input, target=values.to)
    source = open_source(
        values.input, source=values.source, hints=hints, step=values.step, params=values.params
    )
    if values["dry-run"].value:
        if source.opened is not None:
            print_table(source.opened.entries, source.opened.native, source.opened.found.in_file)
        if values.to != "run":
            exported = targets.export(source.config.model, source.read(), values.to)
            print_table(exported.entries, exported.model, exported.in_file)
        return
    count = convert_to(source, values.output, values.to, values.dtype)
    print(f"read again: {count} parameters, equal bit for bit; {values.output}")


def parse_size(text: str | None) -> tuple[int, int] | None:
    """The (height, width) of "518" or "392x518". Raises ConfigError for anything else."""
    if text is None:
        return None
    parts = text.split("x")
    if len(parts) > 2 or not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise ConfigError(f"--image_size={text}: want pixels such as 518, or height x width such as 392x518")
    return int(parts[0]), int(parts[-1])


if __name__ == "__main__":
    flags.DEFINE_string("input", None, "Run folder, or other people's file or folder.")
    flags.DEFINE_string("output", None, "Run folder, file, or folder (transformers) to write.")
    flags.DEFINE_string("to", "run", f"run, or {', '.join(targets.TARGETS)}.")
    flags.DEFINE_string("source", "auto", "Whose checkpoint it is, where it is not recognised.")
    flags.DEFINE_string("image_size", None, "Pixels, such as 518 or 392x518, that the model is made for.")
    flags.DEFINE_integer("num_heads", None, "Heads, where config.json or the width do not tell.")
    flags.DEFINE_string("hidden_act", None, "gelu, quick_gelu or gelu_tanh, where nothing tells.")
    flags.DEFINE_string("interpolation", None, "How positions are resampled, if not as the family does.")
    flags.DEFINE_string("pooling", None, "cls, gap, map ..., if not as inferred.")
    flags.DEFINE_string("mask", None, "Of the fractal paper's code, where its mask is not stored.")
    flags.DEFINE_string("architecture", None, "timm's name of the model, where no config.json says it.")
    flags.DEFINE_enum("dtype", "float32", list(DTYPES), "Of the tensors written, to other formats.")
    flags.DEFINE_integer("step", None, "Of a run folder; the newest intact checkpoint if not given.")
    flags.DEFINE_enum(
        "params", None, loading.PARAMS, "Trained, or averaged; by default what counts, or is evaluated."
    )
    flags.DEFINE_multi_string(
        "leave_out", [], "Pattern of names in the file that are not read, such as 'head.*'; may be repeated."
    )
    flags.DEFINE_integer(
        "channels",
        None,
        "Of the images, if not those of the weights: 1 sums the patch kernel.",
        lower_bound=1,
    )
    flags.DEFINE_bool("dry-run", False, "Print the name table and write nothing.")
    flags.mark_flags_as_required(["input"])
    cli.run(main)
