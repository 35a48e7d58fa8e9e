"""All settings with their defaults, as frozen dataclasses. See also model.py and objectives.py.

The metadata of a setting says when it may differ from the config of a run or of weights (`may_change`).
"""

import dataclasses

from vit_registers.config.model import Model
from vit_registers.config.objectives import ObjectiveSettings
from vit_registers.config.occasions import READ, RESUME, differs_on, setting


@dataclasses.dataclass(frozen=True, kw_only=True)
class Data:
    """Where images come from, and how they are processed. Images are 8-bit until they are on the device."""

    loader: str = "tfdata"  # tfdata | memory (resident on the accelerator, no TensorFlow)
    # The name of a TFDS data set, or the path of a builder or of a prepared version; digits (embedded);
    # folder or images (data/sources/folder.py).
    name: str = "imagenet2012"
    # TFDS: its data_dir, or the folder of a prepared version; None is the default of TFDS. Folders: the root.
    data_dir: str | None = setting(None, RESUME)
    # Features of a TFDS data set, "a/b" for b in a dict a. None: image, and real_label or else label.
    image_key: str | None = None
    label_key: str | None = None
    train_split: str = "train"
    eval_split: str = "validation"
    batch_size: int = 1024  # global
    eval_batch_size: int = setting(1024, RESUME)  # global; the last batch is padded
    image_size: tuple[int, int] | None = None  # None: model.image_size
    train_ops: str = "inception_crop | flip"  # data/ops/catalog.py: OPS; on_device.py: MEMORY_OPS
    eval_ops: str = "resize_small(256) | central_crop"
    shuffle_buffer: int = 50_000  # only for TFRecord files; array_record and folders shuffle globally
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)  # of pixel values in [0, 1], per channel
    std: tuple[float, ...] = (0.5, 0.5, 0.5)
    # Further splits to evaluate, each as "NAME SPLIT", such as "imagenet2012 train[99%:]".
    also_eval: tuple[str, ...] = setting((), RESUME)
    repeats: int = 1  # repeated augmentation: copies of each image in a row; an epoch keeps its length
    drop_last: bool = False  # an epoch has whole batches only; the remaining images are left out
    on_broken: str = "stop"  # stop | skip, for an image that cannot be decoded


@dataclasses.dataclass(frozen=True, kw_only=True)
class Optimizer:
    """How the parameters are updated."""

    name: str = "adamw"  # training/optimizer.py: adamw | lamb | schedule_free_adamw
    schedule: str = "cosine"  # training/schedules.py: cosine | cosine_per_epoch | constant
    learning_rate: float = 1e-3  # the peak
    warmup_learning_rate: float = 0.0  # at the start of the warm-up
    min_learning_rate: float = 0.0  # at the end of the cosine
    warmup_steps: int | None = None
    warmup_epochs: float | None = None
    weight_decay: float = 0.1  # multiplied by the learning rate; kernels only
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    mu_dtype: str = "float32"  # of the first moment: float32 | bfloat16
    grad_clip_norm: float | None = 1.0
    accumulation_steps: int = 1  # micro-batches per step
    ema_decay: float | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mesh:
    """Numbers of devices along the axes of the mesh. One of them may be -1: all remaining devices."""

    data: int = -1
    fsdp: int = 1
    tensor: int = 1


MESH_AXES = tuple(field.name for field in dataclasses.fields(Mesh))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """When checkpoints are saved, and which ones are kept."""

    every_steps: int = 1000
    keep_last: int = 3
    keep_best: int = 1  # by the objective's metric (Objective.best) of the first evaluator
    keep_every_steps: int | None = None  # checkpoints of multiples of this step are never removed
    max_failed_saves: int = 5  # consecutive ones, which end the run; after fewer it continues


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """Length, seed, reports and limits of a run."""

    total_steps: int | None = None
    total_epochs: float | None = None
    seed: int = 0
    log_every_steps: int = setting(50, RESUME)  # interval of the records in metrics.jsonl
    log_every_s: float = setting(30.0, RESUME, READ)  # interval of lines in a log: step, loss, images/s, ETA
    eval_every_steps: int | None = None
    eval_every_epochs: float | None = None
    # TensorBoard files, which import TensorFlow. metrics.jsonl is always written.
    use_tensorboard: bool = setting(True, RESUME)
    # Experiment trackers that get the metrics too, with a comma between them: wandb, mlflow.
    writers: str = setting("", RESUME)
    # What a program compiles, for the next one: auto (in the user's cache folder) | off | a folder.
    compile_cache: str = setting("auto", RESUME, READ)
    # Consecutive steps whose loss, gradient or update is not finite: they change nothing. One more ends the
    # run.
    max_skipped_steps: int = setting(10, RESUME)
    profile_steps: str | None = setting(None, RESUME)  # "first:last", such as "10:15": traced to RUN/profile
    # With several processes: interval at which they agree to stop. After a signal, all stop at the same step,
    # at most two intervals later.
    stop_every_steps: int = setting(5, RESUME)
    # If one of several processes sends no heartbeat for this time, the others end.
    lost_timeout_s: float = setting(60.0, RESUME)
    # If no step finishes within this time, the process ends. 0: no limit. None: 1800 with several processes,
    # else 0. Evaluations, saves and the first step may take ten times as long.
    hang_timeout_s: float | None = setting(None, RESUME)


@dataclasses.dataclass(frozen=True, kw_only=True)
class InitFrom:
    """The weights that training starts from."""

    path: str | None = None  # a run folder, or weights in another format; None: parameters are initialised
    keep_head: bool = False  # False: the head is initialised
    # If the weights have registers: same (another number is refused) | keep (the first ones are loaded, and
    # further ones initialised) | fresh (all are initialised).
    registers: str = "same"
    # If the weights have summaries: same (other grids are refused) | fresh (all are initialised).
    summaries: str = "same"
    # Settings of weights in another format that their tensors do not determine; None: inferred.
    source: str = "auto"  # interop/unwrap.py: SOURCES
    num_heads: int | None = None
    hidden_act: str | None = None  # gelu | quick_gelu | gelu_tanh
    interpolation: str | None = None  # models/resampling.py: RESAMPLINGS
    pooling: str | None = None
    mask: str | None = None
    architecture: str | None = None  # timm's name of the model
    leave_out: tuple[str, ...] = ()  # patterns of names of tensors that are not read: ("head.*",)
    # params (trained) | ema (averaged). None: what the objective of the run, or the family, evaluates.
    params: str | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """One run."""

    model: Model = dataclasses.field(default=Model())
    init_from: InitFrom = InitFrom()
    data: Data = dataclasses.field(default=Data(), metadata=differs_on(READ))
    objective: ObjectiveSettings = dataclasses.field(default=ObjectiveSettings())
    optimizer: Optimizer = Optimizer()
    mesh: Mesh = dataclasses.field(default=Mesh(), metadata=differs_on(RESUME, READ))
    checkpoint: Checkpoint = dataclasses.field(default=Checkpoint(), metadata=differs_on(RESUME))
    run: Run = Run()


# Pairs of settings for one length. If the command line sets one of them, the other one is unset.
ALTERNATIVES = (
    ("run.total_steps", "run.total_epochs"),
    ("run.eval_every_steps", "run.eval_every_epochs"),
    ("optimizer.warmup_steps", "optimizer.warmup_epochs"),
)


def image_size(config: Config) -> tuple[int, int]:
    """(height, width) of the images that the loaders return, in pixels."""
    return config.data.image_size or config.model.image_size


def may_change(occasion: str) -> frozenset[str]:
    """The settings, such as "data.data_dir", that may differ on an occasion: RESUME, READ or TRANSFER.

    If a section may differ, so may each of its settings.
    """
    return frozenset(
        f"{section.name}.{field.name}"
        for section in dataclasses.fields(Config)
        for field in dataclasses.fields(getattr(Config, section.name))
        if occasion in (*section.metadata.get("may_change", ()), *field.metadata.get("may_change", ()))
    )
