"""Every setting and its default, as frozen dataclasses; strict conversion from and to ml_collections.

Config files build a `Config` and hand out `to_config_dict(config)`, so that every knob prints and
`--config.model.num_registers=8` works; programs read it back with `from_mapping`, which refuses
unknown keys and wrong types. No other file holds a default.
"""

import ast
import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping
from typing import Any

import ml_collections
from ml_collections import config_dict

from vit_registers.errors import ConfigError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Model:
    """The Vision Transformer. Sizes left at None come from `variant` (models/blocks.py: VARIANTS)."""

    variant: str = "S"
    width: int | None = None
    depth: int | None = None
    num_heads: int | None = None
    mlp_dim: int | None = None
    mlp: str | None = None  # mlp | swiglu
    patch_size: int = 16
    image_size: tuple[int, int] = (224, 224)  # height, width that the positions are made for
    channels: int = 3
    num_classes: int = 1000  # 0: no head, logits are None

    use_cls: bool = True
    num_registers: int = 0
    registers: str = "learned"  # learned | zeros (fixed)
    summary_factor: int | None = None  # k: summary grids by floor division of the patch grid by k
    summaries: str = "learned"  # learned | zeros (fixed)
    positions: str = "learned"  # sincos2d | learned | alibi2d | none
    has_cls_position: bool = True  # with positions=learned: cls has a row of its own
    # At another image size: bicubic_aa | bicubic | bicubic_offset | linear (models/resampling.py),
    # or none: a fixed table is made anew for that size.
    position_resampling: str = "bicubic_aa"
    # Of registers and summaries: none | learned | sincos2d (summaries by their grids; registers get none).
    extra_positions: str = "none"
    mask: str = "none"  # none | fractal | fractal_released | fractal_local
    use_mask_token: bool = False  # stands for the patches that a caller masks

    use_norm_pre: bool = False  # LayerNorm over all tokens before the first block (CLIP)
    layer_scale_init: float | None = None
    drop_path: float = 0.0
    drop_path_schedule: str = "linear"  # linear | constant
    activation: str = "gelu"  # gelu (exact) | gelu_tanh | quick_gelu; SwiGLU gates with SiLU
    norm_eps: float = 1e-6
    use_qkv_bias: bool = True
    use_patch_bias: bool = True
    # cls | gap (mean of patches) | map | cls_gap (both joined) | cls_registers (all of them joined)
    pooling: str = "cls"
    use_norm_after_pool: bool = False  # the final norm is of the pooled vector (CLIP, timm's fc_norm)
    use_pre_logits: bool = False  # Dense(width) + tanh between pooling and head
    use_head_bias: bool = True
    init: str = "big_vision"  # models/initializers.py: INITS
    dtype: str = "float32"  # of the computation: float32 | bfloat16; parameters are float32
    attention: str = "xla"  # xla | structured | cudnn (GPU) | splash (TPU) | auto (models/attention_auto.py)
    remat: str = "none"  # what is computed again in the backward pass: none | attention (weights) | block
    use_scan: bool = False  # the blocks as one loop of the program: compiles faster; goes with remat=block


@dataclasses.dataclass(frozen=True, kw_only=True)
class Data:
    """Where images come from and what is done to them. Images are 8-bit until they are on the device."""

    loader: str = "tfdata"  # tfdata | memory (resident on the accelerator, no TensorFlow)
    name: str = "imagenet2012"  # a TFDS name; digits (embedded); folder, images (data/folder.py)
    data_dir: str | None = None  # TFDS data_dir, or the root of the folder; None: TFDS's own default
    train_split: str = "train"
    eval_split: str = "validation"
    batch_size: int = 1024  # global
    eval_batch_size: int = 1024  # global; the last batch is padded
    image_size: tuple[int, int] | None = None  # None: model.image_size
    train_ops: str = "inception_crop | flip"  # data/ops.py: OPS; data/memory.py: MEMORY_OPS
    eval_ops: str = "resize_small(256) | central_crop"
    shuffle_buffer: int = 50_000  # only for TFRecord files; array_record and folders shuffle globally
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)  # of pixel values in [0, 1], per channel
    std: tuple[float, ...] = (0.5, 0.5, 0.5)
    also_eval: tuple[str, ...] = ()  # more to evaluate, "NAME SPLIT" each: "imagenet2012 train[99%:]"
    repeats: int = 1  # repeated augmentation: each image so many times in a row, in as many fewer images
    drop_last: bool = False  # an epoch is whole batches; what is left over is not shown in it
    mixup_alpha: float = 0.0  # 0: none; with cutmix too, each draw takes one of the two
    cutmix_alpha: float = 0.0
    use_mixup_folding: bool = False  # the larger share is always the image's own: lam = max(lam, 1 - lam)
    mix_partner: str = "roll"  # roll (the one before) | flip (the one as far from the other end)
    mix_groups: int = 1  # the batch is mixed within so many equal parts, as on so many devices
    mix_noise: str = "global"  # global (one draw for all groups) | per_group
    on_broken: str = "stop"  # stop | skip: an image that cannot be decoded


@dataclasses.dataclass(frozen=True, kw_only=True)
class Optimizer:
    """What is minimised, and how."""

    loss: str = "softmax"  # training/losses.py: softmax | sigmoid | multi_hot
    name: str = "adamw"  # training/optimizer.py: adamw | lamb | schedule_free_adamw
    schedule: str = "cosine"  # training/schedules.py: cosine | cosine_per_epoch | constant
    learning_rate: float = 1e-3  # at its peak
    warmup_learning_rate: float = 0.0  # that the warm-up starts from
    min_learning_rate: float = 0.0  # that the cosine ends at
    warmup_steps: int | None = None
    warmup_epochs: float | None = None
    weight_decay: float = 0.1  # times the learning rate; kernels only
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    mu_dtype: str = "float32"  # of the first moment: float32 | bfloat16
    grad_clip_norm: float | None = 1.0
    accumulation_steps: int = 1  # micro-batches per step
    ema_decay: float | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mesh:
    """Devices along each axis; one axis may be -1 and takes what is left."""

    data: int = -1
    fsdp: int = 1
    tensor: int = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """When to save and what to keep."""

    every_steps: int = 1000
    keep_last: int = 3
    keep_best: int = 1  # by top-1 on the evaluation split
    max_failed_saves: int = 5  # in a row; fewer are reported, and the run goes on


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """Length, seed and reporting."""

    total_steps: int | None = None
    total_epochs: float | None = None
    seed: int = 0
    log_every_steps: int = 50
    eval_every_steps: int | None = None
    eval_every_epochs: float | None = None
    use_tensorboard: bool = True  # clu's writers, which import TensorFlow; metrics.jsonl is always written
    # Steps in a row whose loss or gradient is not finite: they change nothing, and one more ends the run.
    max_skipped_steps: int = 10
    profile_steps: str | None = None  # "first:last", as "10:15": traced into RUN/profile
    # With several processes: after a signal all stop at the same step, at most twice as many later.
    stop_every_steps: int = 5
    lost_timeout_s: float = 60.0  # a process that gives no sign of life for so long ends the others
    # No step has come back for so long: the process ends. None: 1800 with several processes, else 0, which is
    # no limit. Evaluations, saves and the first step may take ten times as long.
    hang_timeout_s: float | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class InitFrom:
    """The weights that training starts from; the head starts anew unless it is kept."""

    path: str | None = None  # a run folder, or other people's checkpoint; None: the initializers
    keep_head: bool = False
    # Of other people's checkpoints, what their tensors do not tell; None: inferred.
    source: str = "auto"  # interop/recognize.py: SOURCES
    num_heads: int | None = None
    hidden_act: str | None = None  # gelu | quick_gelu | gelu_tanh
    interpolation: str | None = None  # models/resampling.py: RESAMPLINGS
    pooling: str | None = None
    mask: str | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """One run."""

    model: Model = Model()
    init_from: InitFrom = InitFrom()
    data: Data = Data()
    optimizer: Optimizer = Optimizer()
    mesh: Mesh = Mesh()
    checkpoint: Checkpoint = Checkpoint()
    run: Run = Run()


def image_size(config: Config) -> tuple[int, int]:
    """(height, width) of the images that the loaders deliver."""
    return config.data.image_size or config.model.image_size


# --- conversion ------------------------------------------------------------------------------


def nearest(key: str, known: typing.Iterable[str]) -> str:
    """A hint for an error message: the nearest known name, or all of them."""
    known = sorted(known)
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
    return f"did you mean '{close[0]}'?" if close else f"known: {', '.join(known)}"


def lookup(table: Mapping[str, Any], key: str, where: str) -> Any:
    """table[key], or a ConfigError that names the setting `where` and lists what there is."""
    if key not in table:
        raise ConfigError(f"{where}='{key}' is unknown: {nearest(key, table)}")
    return table[key]


def _convert(value: Any, hint: Any, where: str) -> Any:
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, Mapping):
            raise ConfigError(f"{where}={value!r}: want a section of settings")
        return _convert_section(hint, value, where)
    if isinstance(hint, types.UnionType):
        if value is None:
            return None
        hint = next(option for option in typing.get_args(hint) if option is not types.NoneType)
    if typing.get_origin(hint) is tuple:
        args = typing.get_args(hint)
        if not isinstance(value, (tuple, list)) or (args[-1] is not ... and len(value) != len(args)):
            raise ConfigError(f"{where}={value!r}: want a tuple such as (224, 224)")
        return tuple(_convert(item, args[0], f"{where}[{i}]") for i, item in enumerate(value))
    if hint is float and type(value) is int:
        return float(value)
    if type(value) is not hint:
        raise ConfigError(f"{where}={value!r} is of type {type(value).__name__}: want {hint.__name__}")
    return value


def _convert_section(cls: type, values: Mapping[str, Any], where: str) -> Any:
    hints = typing.get_type_hints(cls)
    for key in values:
        if key not in hints:
            raise ConfigError(f"{where}.{key} is not a setting: {nearest(key, hints)}")
    return cls(**{key: _convert(values[key], hints[key], f"{where}.{key}") for key in values})


def from_mapping(values: Mapping[str, Any]) -> Config:
    """The Config of a ConfigDict, or of a dict read from JSON. Raises ConfigError for a wrong key or type."""
    if isinstance(values, ml_collections.ConfigDict):
        values = values.to_dict()
    return _convert_section(Config, values, "config")


def to_dict(config: Config) -> dict[str, Any]:
    """The config as nested dicts of plain values, for JSON."""
    return dataclasses.asdict(config)


def to_config_dict(config: Config) -> ml_collections.ConfigDict:
    """The config as an ml_collections.ConfigDict, so that flags can override every setting."""

    def section(values: Any) -> ml_collections.ConfigDict:
        out = ml_collections.ConfigDict()
        for name, hint in typing.get_type_hints(type(values)).items():
            value = getattr(values, name)
            if dataclasses.is_dataclass(value):
                out[name] = section(value)
            elif isinstance(hint, types.UnionType):
                # Text is taken as it stands; the rest as a literal, so that None can be given too.
                out[name] = config_dict.placeholder(str if str in typing.get_args(hint) else object)
                out[name] = value
            else:
                out[name] = value
        return out

    return section(config)


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as {'model.num_registers': 4, ...}."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = value
    return flat


def override(values: Mapping[str, Any], overrides: Mapping[str, Any]) -> Config:
    """The Config of `values` with dotted `overrides` such as {'model.num_registers': 4} put in."""
    nested = to_dict(from_mapping(values))
    for path, value in overrides.items():
        *sections, key = path.split(".")
        node = nested
        for section in sections:
            if not isinstance(node.get(section), dict):
                raise ConfigError(f"config.{path} is not a setting: no section '{section}'")
            node = node[section]
        node[key] = value
    return from_mapping(nested)


def parse_arg(arg: str | None, **defaults: Any) -> Any:
    """The compact argument of a config file, `--config=configs/digits.py:registers=4,mask=fractal`.

    Returns a namespace with the keys of `defaults`; a value has the type of its default (int and
    float by literal, str as it stands, bool as True or False, or True when only the key is given).
    """
    values = dict(defaults)
    for item in filter(None, (arg or "").split(",")):
        key, equals, text = item.partition("=")
        if key not in defaults:
            raise ConfigError(f"config argument '{key}' is unknown: {nearest(key, defaults)}")
        kind = type(defaults[key])
        if kind is str:
            values[key] = text
            continue
        try:
            value = True if kind is bool and not equals else ast.literal_eval(text)
        except (ValueError, SyntaxError):
            value = text
        values[key] = _convert(value, kind, f"config argument '{key}'")
    return types.SimpleNamespace(**values)
