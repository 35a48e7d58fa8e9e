"""Every setting and its default, as frozen dataclasses; those of objectives are in objectives.py.

A setting also says when it may differ from what a run or its weights were made with (`may_change`).
"""

import dataclasses
import typing

from vit_registers.config.objectives import ObjectiveSettings

RESUME = "resume"  # a run is started again: the setting changes none of its results
READ = "read"  # a checkpoint is loaded, evaluated or analysed: the parameters mean the same
TRANSFER = "transfer"  # training starts from a checkpoint: the setting adds tokens, or is new with the task
_ALWAYS = (RESUME, READ, TRANSFER)  # how a model is computed, not what it is


def _may_change(*occasions: str) -> dict[str, tuple[str, ...]]:
    """Metadata of a field: RESUME, READ and TRANSFER where it may differ."""
    return {"may_change": occasions}


def _setting(default: typing.Any, *occasions: str) -> typing.Any:
    """A field with its default, which may differ on `occasions`."""
    return dataclasses.field(default=default, metadata=_may_change(*occasions))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Model:
    """The Vision Transformer. Sizes left at None come from `variant` (models/blocks.py: VARIANTS)."""

    variant: str = _setting("S", TRANSFER)
    width: int | None = None
    depth: int | None = None
    num_heads: int | None = None
    mlp_dim: int | None = None
    mlp: str | None = None  # mlp | swiglu
    patch_size: int = 16
    # Height, width that the positions are made for.
    image_size: tuple[int, int] = _setting((224, 224), READ, TRANSFER)
    channels: int = 3
    num_classes: int = _setting(1000, TRANSFER)  # 0: no head, logits are None

    use_cls: bool = True
    num_registers: int = _setting(0, TRANSFER)
    registers: str = _setting("learned", TRANSFER)  # learned | zeros (fixed)
    # k: summary grids by floor division of the patch grid by k.
    summary_factor: int | None = _setting(None, TRANSFER)
    summaries: str = _setting("learned", TRANSFER)  # learned | zeros (fixed)
    positions: str = "learned"  # sincos2d | learned | alibi2d | none
    has_cls_position: bool = True  # with positions=learned: cls has a row of its own
    # At another image size: bicubic_aa | bicubic | bicubic_offset | linear (models/resampling.py),
    # or none: a fixed table is made anew for that size.
    position_resampling: str = _setting("bicubic_aa", TRANSFER)
    # Of registers and summaries: none | learned | sincos2d (summaries by their grids; registers get none).
    extra_positions: str = _setting("none", TRANSFER)
    # none | fractal | fractal_released | fractal_local | shifted(offset=1) | one_way | window(radius=2) |
    # file(path='m.npy') (models/masks.py: MASKS).
    mask: str = _setting("none", TRANSFER)
    use_mask_token: bool = _setting(False, TRANSFER)  # stands for the patches that a caller masks

    use_norm_pre: bool = False  # LayerNorm over all tokens before the first block (CLIP)
    layer_scale_init: float | None = _setting(None, TRANSFER)
    drop_path: float = _setting(0.0, TRANSFER)
    drop_path_schedule: str = _setting("linear", TRANSFER)  # linear | constant
    activation: str = "gelu"  # gelu (exact) | gelu_tanh | quick_gelu; SwiGLU gates with SiLU
    norm_eps: float = 1e-6
    use_qkv_bias: bool = True
    use_patch_bias: bool = True
    # cls | gap (mean of patches) | map | cls_gap (both joined) | cls_registers (all of them joined) |
    # summary (the first summary token, of the coarsest level)
    pooling: str = _setting("cls", TRANSFER)
    # The final norm is of the pooled vector (CLIP, timm's fc_norm).
    use_norm_after_pool: bool = _setting(False, TRANSFER)
    use_pre_logits: bool = _setting(False, TRANSFER)  # Dense(width) + tanh between pooling and head
    use_head_bias: bool = _setting(True, TRANSFER)
    init: str = _setting("big_vision", TRANSFER)  # models/initializers.py: INITS
    # Of the computation: float32 | bfloat16; parameters are float32.
    dtype: str = _setting("float32", READ, TRANSFER)
    # xla | cudnn (GPU) | splash (TPU) | auto (models/attention/auto.py).
    attention: str = _setting("xla", *_ALWAYS)
    # What is computed again in the backward pass: none | attention (weights) | block.
    remat: str = _setting("none", *_ALWAYS)
    # The blocks as one loop of the program: compiles faster; goes with remat=block.
    use_scan: bool = _setting(False, *_ALWAYS)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Data:
    """Where images come from and what is done to them. Images are 8-bit until they are on the device."""

    loader: str = "tfdata"  # tfdata | memory (resident on the accelerator, no TensorFlow)
    # A TFDS name, or the path of a builder or of a prepared version; digits (embedded); folder, images
    # (data/sources/folder.py).
    name: str = "imagenet2012"
    # TFDS data_dir, or the folder of a prepared version; the root of the folder; None: TFDS's own default.
    data_dir: str | None = _setting(None, RESUME)
    # Keys of a TFDS data set, "a/b" for b in a dict a; None: image, and real_label or else label.
    image_key: str | None = None
    label_key: str | None = None
    train_split: str = "train"
    eval_split: str = "validation"
    batch_size: int = 1024  # global
    eval_batch_size: int = _setting(1024, RESUME)  # global; the last batch is padded
    image_size: tuple[int, int] | None = None  # None: model.image_size
    train_ops: str = "inception_crop | flip"  # data/ops/catalog.py: OPS; on_device.py: MEMORY_OPS
    eval_ops: str = "resize_small(256) | central_crop"
    shuffle_buffer: int = 50_000  # only for TFRecord files; array_record and folders shuffle globally
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)  # of pixel values in [0, 1], per channel
    std: tuple[float, ...] = (0.5, 0.5, 0.5)
    # More to evaluate, "NAME SPLIT" each: "imagenet2012 train[99%:]".
    also_eval: tuple[str, ...] = _setting((), RESUME)
    repeats: int = 1  # repeated augmentation: each image so many times in a row, in as many fewer images
    drop_last: bool = False  # an epoch is whole batches; what is left over is not shown in it
    on_broken: str = "stop"  # stop | skip: an image that cannot be decoded


@dataclasses.dataclass(frozen=True, kw_only=True)
class Optimizer:
    """How the parameters are updated."""

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


MESH_AXES = tuple(field.name for field in dataclasses.fields(Mesh))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """When to save and what to keep."""

    every_steps: int = 1000
    keep_last: int = 3
    keep_best: int = 1  # by the metric that the objective ranks checkpoints by, of the first evaluator
    keep_every_steps: int | None = None  # checkpoints of multiples are never removed; None: no such steps
    max_failed_saves: int = 5  # consecutive; fewer are reported, and the run continues


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """Length, seed and reporting."""

    total_steps: int | None = None
    total_epochs: float | None = None
    seed: int = 0
    log_every_steps: int = _setting(50, RESUME)
    eval_every_steps: int | None = None
    eval_every_epochs: float | None = None
    # clu's writers, which import TensorFlow; metrics.jsonl is always written.
    use_tensorboard: bool = _setting(True, RESUME)
    # Steps in a row whose loss, gradient or update is not finite: they change nothing; one more ends the run.
    max_skipped_steps: int = _setting(10, RESUME)
    profile_steps: str | None = _setting(None, RESUME)  # "first:last", as "10:15": traced into RUN/profile
    # With several processes: after a signal all stop at the same step, at most twice as many later.
    stop_every_steps: int = _setting(5, RESUME)
    # A process that gives no sign of life for so long ends the others.
    lost_timeout_s: float = _setting(60.0, RESUME)
    # No step has come back for so long: the process ends. None: 1800 with several processes, else 0, which is
    # no limit. Evaluations, saves and the first step may take ten times as long.
    hang_timeout_s: float | None = _setting(None, RESUME)


@dataclasses.dataclass(frozen=True, kw_only=True)
class InitFrom:
    """The weights that training starts from; the head starts anew unless it is kept."""

    path: str | None = None  # a run folder, or other people's checkpoint; None: the initializers
    keep_head: bool = False
    # Where the weights have registers, and another number: same (refused) | keep (of those that there are the
    # first; more start from the initializer) | fresh (all from the initializer, of the same number too).
    registers: str = "same"
    summaries: str = "same"  # where the weights have summaries, of another grid: same (refused) | fresh
    # Of other people's checkpoints, what their tensors do not tell; None: inferred.
    source: str = "auto"  # interop/recognize.py: SOURCES
    num_heads: int | None = None
    hidden_act: str | None = None  # gelu | quick_gelu | gelu_tanh
    interpolation: str | None = None  # models/resampling.py: RESAMPLINGS
    pooling: str | None = None
    mask: str | None = None
    architecture: str | None = None  # timm's name of the model
    leave_out: tuple[str, ...] = ()  # patterns of names in the file that are not read: ("head.*",)
    # params (trained) | ema (averaged); None: what counts of a run, or what the family evaluates
    params: str | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """One run."""

    model: Model = Model()
    init_from: InitFrom = InitFrom()
    data: Data = dataclasses.field(default=Data(), metadata=_may_change(READ))
    objective: ObjectiveSettings = dataclasses.field(default=ObjectiveSettings())
    optimizer: Optimizer = Optimizer()
    mesh: Mesh = dataclasses.field(default=Mesh(), metadata=_may_change(RESUME, READ))
    checkpoint: Checkpoint = dataclasses.field(default=Checkpoint(), metadata=_may_change(RESUME))
    run: Run = Run()


# Two settings for one length; of a card and the command line, the one that the command line sets counts.
ALTERNATIVES = (
    ("run.total_steps", "run.total_epochs"),
    ("run.eval_every_steps", "run.eval_every_epochs"),
    ("optimizer.warmup_steps", "optimizer.warmup_epochs"),
)


def image_size(config: Config) -> tuple[int, int]:
    """(height, width) of the images that the loaders deliver."""
    return config.data.image_size or config.model.image_size


def may_change(occasion: str) -> frozenset[str]:
    """The settings, as "data.data_dir", that may differ on an occasion: RESUME, READ or TRANSFER.

    What a section may, each of its settings may.
    """
    return frozenset(
        f"{section.name}.{field.name}"
        for section in dataclasses.fields(Config)
        for field in dataclasses.fields(getattr(Config, section.name))
        if occasion in (*section.metadata.get("may_change", ()), *field.metadata.get("may_change", ()))
    )
