"""Measures forward pass and train step, and compares them with matmuls and other libraries on this machine.

    python -m tools.bench.step                          # on a GPU: some minutes, mostly compilation
    python -m tools.bench.step --small                  # tiny sizes: under a minute on 2 CPU cores
    python -m tools.bench.step --sizes=S,B,L --masks=all --registers=0,4,16 --dtypes=bfloat16,float32
    python -m tools.bench.step --compare=timm,flax --steps=train --backends=xla
    python -m tools.bench.step --config=configs/vit_s16_i1k.py --config.model.dtype=bfloat16

The train step is that of training (vit_registers/training/setup.py) with its state donated, on a batch of
noise on the device. Each variant differs from --config in one setting; train steps also vary back end and
mask together. All programs are timed in turn in each round, and ratios are those within a round.
docs/performance.md defines the numbers.
"""

from vit_registers import startup

startup.begin(__name__)

import contextlib
import dataclasses
import math
import os
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # other programs use the memory too

import jax
from absl import flags
from ml_collections import ConfigDict

from tools.bench import models as bench_models
from tools.bench.programs import Other, Program, Variant, flops_per_image, matmul_peak, prepare_program
from vit_registers import cli
from vit_registers.config import Config, Data, Model, to_config_dict
from vit_registers.errors import ConfigError
from vit_registers.models.attention.api import BACKENDS
from vit_registers.models.blocks import DTYPES, VARIANTS
from vit_registers.models.masks import parse_mask
from vit_registers.runtime.mesh import make_mesh
from vit_registers.strict_json import dumps

SMALL = {"width": 64, "depth": 1, "num_heads": 2, "image_size": (64, 64), "num_classes": 10}
ALL_MASKS = (
    "fractal",
    "fractal_released",
    "fractal_local",
    "shifted(offset=1)",
    "one_way",
    "window(radius=2)",
)
SUMMARY_FACTOR = 2  # of the variants with a mask, where the config has no summaries

# The goals are those of one H200, a ViT-S/16 at 224 px in bfloat16: name -> (what, minimum).
GOALS = {
    "timm": ("train step against timm's under torch.compile, images/s", 1.3),
    "peak": ("train step's FLOP/s against the matmul peak of this call", 0.40),
    "mask": ("fractal mask against none at equal tokens, images/s", 1 / 1.03),
    "registers": ("4 registers against none, images/s", 1 / 1.025),
}


def get_config(arg: str | None = None) -> ConfigDict:
    """The default of --config: ViT-S/16 with cls and learned positions, 224 px, AdamW, no augmentation."""
    del arg
    return to_config_dict(Config(model=Model(dtype="bfloat16"), data=Data(batch_size=256)))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Choices:
    """The choices of the flags. Raises ConfigError for invalid values."""

    steps: tuple[str, ...] = ("train", "forward")
    sizes: tuple[str, ...] = ()
    dtypes: tuple[str, ...] = ()
    registers: tuple[str, ...] = ("4",)
    masks: tuple[str, ...] = ("fractal",)
    backends: tuple[str, ...] = ("all",)
    compare: tuple[str, ...] = ("timm",)
    torch_compile: str = "default"
    batch: int | None = None
    rounds: int = 5
    seconds: float = 0.6
    small: bool = False

    def __post_init__(self) -> None:
        known = {"steps": ("train", "forward"), "compare": ("timm", "flax"), "dtypes": tuple(DTYPES)}
        known |= {"backends": (*BACKENDS, "all"), "sizes": tuple(VARIANTS)}
        for flag, names in known.items():
            for value in getattr(self, flag):
                if value not in names:
                    raise ConfigError(f"--{flag}={value}: must be of {', '.join(names)}")
        for mask in self.masks if self.masks != ("all",) else ():
            parse_mask(mask)
        if not self.steps or self.rounds < 1:
            raise ConfigError("--steps is empty, or --rounds less than 1: there is nothing to measure")
        if not all(number.isdecimal() for number in self.registers):
            raise ConfigError(f"--registers={','.join(self.registers)}: must be numbers such as 0,4")


SMALL_CHOICES = {"steps": ("train",), "backends": (), "rounds": 2, "seconds": 0.1}


def variants(base: Config, choices: Choices) -> list[Variant]:
    """The config unchanged, then the variants by one of the flags, without duplicates."""
    model = base.model
    factor = model.summary_factor or SUMMARY_FACTOR
    masks = [m for m in (ALL_MASKS if choices.masks == ("all",) else choices.masks) if m != "none"]
    backends = BACKENDS if choices.backends == ("all",) else choices.backends
    backends = [b for b in backends if b != model.attention]
    changes: list[dict[str, Any]] = [{}]
    changes += [{"variant": size} for size in choices.sizes]
    changes += [{"dtype": dtype} for dtype in choices.dtypes]
    changes += [{"num_registers": int(number)} for number in choices.registers]
    changes += [{"attention": backend} for backend in backends]
    if masks:
        masked = [{"summary_factor": factor, "mask": mask} for mask in ("none", *masks)]
        changes += masked
        changes += [{"attention": backend} | change for backend in backends for change in masked]
    found: dict[tuple[str, Config], Variant] = {}
    for step in choices.steps:
        for change in changes:
            if step == "forward" and {"attention", "mask"} <= set(change):
                continue  # the train step measures these, and compilation is slow
            config = dataclasses.replace(base, model=dataclasses.replace(model, **change))
            other = (f"{name}={value}" for name, value in change.items() if getattr(model, name) != value)
            found.setdefault((step, config), Variant(step, " ".join([step, *other]), config))
    return list(found.values())


def _reason(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:160]


def start_programs(
    base: Config, choices: Choices, mesh: jax.sharding.Mesh, stack: contextlib.ExitStack
) -> Iterator[Program | Other]:
    """The programs that run here, compiled, and a printed line for each other. Raises if --config fails."""
    failed = set()  # back ends that do not run without a mask either
    for i, variant in enumerate(variants(base, choices)):
        model = variant.config.model
        if model.attention in failed:
            continue
        try:
            yield prepare_program(variant, mesh)
        except Exception as error:
            if i == 0:
                raise
            print(f"cannot run here: {variant.name}: {_reason(error)}", flush=True)
            if dataclasses.replace(model, attention=base.model.attention) == base.model:
                failed.add(model.attention)
    if "flax" in choices.compare:
        try:
            yield prepare_program(Variant("flax", "train flax", base), mesh)
        except Exception as error:
            print(f"cannot run here: flax: {_reason(error)}", flush=True)
    for step in choices.steps if "timm" in choices.compare else ():
        try:
            if jax.device_count() > 1:
                raise ConfigError("it runs on one device: leave one visible, as with CUDA_VISIBLE_DEVICES=0")
            process = bench_models.TimmProcess(base, step=step, compile_mode=choices.torch_compile)
            stack.callback(process.close)
            about = process.about
            memory = f"{about['peak_bytes'] / 2**30:7.3f} device" if "peak_bytes" in about else ""
            print(f"{step} timm: {', '.join(f'{key} {value}' for key, value in about.items())}", flush=True)
            yield Other(process, f"{step} timm", base, flops_per_image(base.model, step), memory)
        except Exception as error:
            print(f"cannot run here: {step} timm: {_reason(error)}", flush=True)


def ratios(programs: list[Program | Other], own: str, base: str) -> list[float] | None:
    """Images/s of one divided by the other, for each round; None if one of them did not run."""
    rates = {program.name: program.rates for program in programs}
    if own not in rates or base not in rates:
        return None
    return [a / b for a, b in zip(rates[own], rates[base], strict=True)]


def goals(programs: list[Program | Other], peaks: dict[str, float], num_devices: int) -> dict[str, Any]:
    """{name of the goal: ratio, or None if it was not measured}, for the train step of the config."""
    names = {program.name: program for program in programs}
    first = names.get("train")
    if first is None:
        return dict.fromkeys(GOALS)
    model = first.config.model
    masks = f"summary_factor={SUMMARY_FACTOR}" if model.summary_factor is None else ""
    pairs = {
        "timm": ("train", "train timm"),
        "mask": (" ".join(filter(None, ["train", masks, "mask=fractal"])), f"train {masks}".strip()),
        "registers": ("train num_registers=4", "train"),
    }
    found = {}
    for name, pair in pairs.items():
        each = ratios(programs, *pair)
        found[name] = None if each is None else statistics.median(each)
    share = statistics.median(first.rates) * first.flops / num_devices / peaks[model.dtype]
    return {name: share if name == "peak" else found[name] for name in GOALS}


def result_table(programs: list[Program | Other], peaks: dict[str, float], num_devices: int) -> list[str]:
    """The lines of the table; ratios are to the step of the config of the same kind."""
    width = max(len(program.name) for program in programs)
    lines = [f"{'':{width}}  images/s  +- %   TFLOP/s  of peak  ratio   GiB per device"]
    for program in programs:
        rate = statistics.median(program.rates)
        spread = 50 * (max(program.rates) - min(program.rates)) / rate
        flops = rate * program.flops / num_devices
        peak = f"{100 * flops / peaks[program.config.model.dtype]:6.1f} %"
        ratio = statistics.median(ratios(programs, program.name, program.name.split()[0]) or [math.nan])
        lines.append(
            f"{program.name:{width}}  {rate:8.1f}  {spread:4.1f}  {flops / 1e12:8.3f}  {peak}  {ratio:5.3f}"
            f"  {program.memory}"
        )
    return lines


def machine() -> str:
    """A description of the machine and the versions."""
    device, cores = jax.devices()[0], len(os.sched_getaffinity(0))
    kind = f"{cores} CPU cores" if device.platform == "cpu" else device.device_kind
    return f"{jax.device_count()} x {kind}, jax {jax.__version__}"


def read_choices() -> Choices:
    """The choices of the flags that are given."""
    given = {field.name: getattr(flags.FLAGS, field.name) for field in dataclasses.fields(Choices)}
    given = {name: tuple(v) if isinstance(v, list) else v for name, v in given.items() if v is not None}
    return Choices(**(SMALL_CHOICES | given if flags.FLAGS.small else given))


def chosen(base: Config, choices: Choices) -> Config:
    """The config to time: --config with --batch and --small applied."""
    model, batch = base.model, choices.batch or base.data.batch_size
    if choices.small:
        model = dataclasses.replace(model, dtype="float32", **SMALL)
        batch = choices.batch or 16
    data = dataclasses.replace(base.data, batch_size=batch, eval_batch_size=batch, image_size=None)
    return dataclasses.replace(base, model=model, data=data)


def main() -> None:
    """The command line."""
    choices = read_choices()
    base, seconds = chosen(cli.config_of_flags(), choices), choices.seconds
    mesh, num_devices = make_mesh(base.mesh), jax.device_count()
    is_cpu = jax.devices()[0].platform == "cpu"
    print(f"{machine()}; batch {base.data.batch_size}; {choices.rounds} rounds of {seconds} s", flush=True)
    with contextlib.ExitStack() as stack:
        stack.enter_context(jax.set_mesh(mesh))
        programs = list(start_programs(base, choices, mesh, stack))
        peaks = {}
        for dtype in sorted({program.config.model.dtype for program in programs}):
            sizes = (512, 1024) if is_cpu else (4096, 8192, 16384)
            peaks[dtype], side = matmul_peak(dtype, sizes, min(seconds, 0.5))
            print(f"matmul peak, {dtype}: {peaks[dtype] / 1e12:.3f} TFLOP/s, side {side}", flush=True)
        for _ in range(choices.rounds):
            for program in programs:
                program.rates.append(program.rate(seconds))
    print("\n".join(result_table(programs, peaks, num_devices)))
    reached = goals(programs, peaks, num_devices)
    print(f"goals for one H200 with the default config (this is {machine()}):")
    for name, (what, least) in GOALS.items():
        value = reached[name]
        verdict = "not measured" if value is None else "met" if value >= least else "NOT MET"
        verdict = "no verdict on a CPU" if is_cpu else verdict
        shown = "  -  " if value is None else f"{value:5.3f}"
        print(f"  {name:<10} {shown}  goal >= {least:.3f}  {verdict:<19}  {what}")
    if flags.FLAGS.json:
        rates = {program.name: program.rates for program in programs}
        record = {"machine": machine(), "peaks": peaks, "images_per_s": rates, "goals": reached}
        Path(flags.FLAGS.json).write_text(dumps(record))


def define_flags() -> None:
    """Defines the flags. None selects the default of Choices, or of SMALL_CHOICES."""
    cli.define_config(__file__)
    flags.DEFINE_list("steps", None, "Of train and forward; both if not given, train with --small.")
    flags.DEFINE_list("sizes", None, "More sizes, such as B,L (VARIANTS in vit_registers/models/blocks.py).")
    flags.DEFINE_list("dtypes", None, "More dtypes, such as float32.")
    flags.DEFINE_list("registers", None, "Numbers of registers; 4 if not given.")
    flags.DEFINE_list(
        "masks", None, "Masks, such as one_way,window(radius=2), or all; compared with none at equal tokens."
    )
    flags.DEFINE_list("backends", None, "Attention back ends, or all (default; the config's with --small).")
    flags.DEFINE_list("compare", None, "Other libraries, of timm and flax; timm if not given.")
    flags.DEFINE_string("torch_compile", None, "Mode of torch.compile, or off.")
    flags.DEFINE_integer("batch", None, "Images per step; that of the config if not given.")
    flags.DEFINE_integer("rounds", None, "Rounds, each of which times every program; 5, or 2 with --small.")
    flags.DEFINE_float("seconds", None, "Seconds of each measurement; 0.6, or 0.1 with --small.")
    flags.DEFINE_bool("small", False, "Tiny model and batch in float32, to try the tool.")
    flags.DEFINE_string("json", None, "File for the numbers of all rounds.")


if __name__ == "__main__":
    define_flags()
    cli.run(main)
