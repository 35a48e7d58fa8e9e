"""All settings with their defaults, as frozen dataclasses. See also model.py and objectives.py.

The metadata of a setting says when it may differ from the config of a run or of weights (`may_change`).
"""

import dataclasses
from collections.abc import Iterator

from vit_registers.config.captions import Captions
from vit_registers.config.model import Model
from vit_registers.config.objectives import ObjectiveSettings
from vit_registers.config.occasions import READ, RESUME, differs_on, setting
from vit_registers.config.tasks import Tasks
from vit_registers.config.text import Text


@dataclasses.dataclass(frozen=True, kw_only=True)
class Data:
    """Where images come from, and how they are processed. Images are 8-bit until they are on the device."""

    # tfdata | memory (resident on the accelerator, no TensorFlow) | pil (evaluation only, no TensorFlow)
    loader: str = "tfdata"
    # The name of a TFDS data set, or the path of a builder or of a prepared version; digits (embedded);
    # folder or images (data/sources/folder.py); image_text (docs/captions.md); python_docs (docs/text.md).
    name: str = "imagenet2012"
    # TFDS: its data_dir, or the folder of a prepared version; None is the default of TFDS. Folders: the root.
    data_dir: str | None = setting(None, RESUME)
    # Feature of a TFDS data set, "a/b" for b in a dict a; column or key of a list of image_text. None: image,
    # or path.
    image_key: str | None = None
    label_key: str | None = None  # feature of a TFDS data set. None: real_label, or else label
    train_split: str = "train"  # a split, or a part such as train[:99%] or train[::5]
    eval_split: str = "validation"  # the split that is evaluated during training and by evaluate
    batch_size: int = 1024  # global
    eval_batch_size: int = setting(1024, RESUME)  # global; the last batch is padded
    image_size: tuple[int, int] | None = None  # None: model.image_size
    train_ops: str = "inception_crop | flip"  # to train; docs: "Image operations"
    eval_ops: str = "resize_small(256) | central_crop"  # to evaluate; the result has image_size
    shuffle_buffer: int = 50_000  # only for TFRecord files; array_record and folders shuffle globally
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)  # of pixel values in [0, 1], per channel
    std: tuple[float, ...] = (0.5, 0.5, 0.5)  # of pixel values in [0, 1], per channel
    # Further splits to evaluate, each as "NAME SPLIT", such as "imagenet2012 train[99%:]".
    also_eval: tuple[str, ...] = setting((), RESUME)
    repeats: int = 1  # repeated augmentation: copies of each image in a row; an epoch keeps its length
    drop_last: bool = False  # an epoch has whole batches only; the remaining images are left out
    on_broken: str = "stop"  # stop | skip, for an image that cannot be decoded, or has no caption
    captions: Captions = dataclasses.field(default=Captions())


@dataclasses.dataclass(frozen=True, kw_only=True)
class Optimizer:
    """How the parameters are updated."""

    name: str = "adamw"  # adamw | lamb | schedule_free_adamw
    # cosine | cosine_from_peak (as DINOv2: the warm-up reaches the peak) | cosine_per_epoch | constant
    schedule: str = "cosine"
    learning_rate: float = 1e-3  # the peak
    warmup_learning_rate: float = 0.0  # at the start of the warm-up
    min_learning_rate: float = 0.0  # at the end of the cosine
    warmup_steps: int | None = None  # this one, warmup_epochs or warmup_share; all None: no warm-up
    warmup_epochs: float | None = None  # this one, warmup_steps or warmup_share
    warmup_share: float | None = None  # of the run; this one, warmup_steps or warmup_epochs
    weight_decay: float = 0.1  # multiplied by the learning rate
    weight_decay_end: float | None = None  # reached by half a cosine over the run; None: constant
    # kernels | matrices: also the table of text tokens (as OpenCLIP) | all_but_norms: also tokens, positions,
    # prototypes (as DINOv2).
    decayed: str = "kernels"
    b1: float = 0.9  # decay of the first moment
    b2: float = 0.999  # decay of the second moment
    eps: float = 1e-8  # added to the root of the second moment
    mu_dtype: str = "float32"  # of the first moment: float32 | bfloat16
    grad_clip_norm: float | None = 1.0  # gradients with a greater norm are scaled to it; None: never
    grad_clip_per: str = "all"  # all | module: the norm is that of the backbone, and of each head
    # The learning rate of block i of L is multiplied by layer_decay ** (L - i). The exponent of tokens and
    # patch embedding is L + 1, that of the final norm and heads 0.
    layer_decay: float = 1.0
    patch_embed_rate: float = 1.0  # a multiple of the learning rate for the patch embedding, in addition
    head_rate: float = 1.0  # the same for heads: classifier, pooling, prototypes
    frozen: tuple[str, ...] = ()  # patterns of parameters that are not trained, such as "vit/blocks/*"
    delayed: tuple[str, ...] = ()  # patterns of parameters whose rate is 0 for delay_share of the run
    delay_share: float = 0.01  # of the run
    accumulation_steps: int = 1  # micro-batches per step
    ema_decay: float | None = None  # of the exponential average of the parameters; None: no average


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mesh:
    """Numbers of devices along the axes of the mesh. One of them may be -1: all remaining devices."""

    data: int = -1  # parts of the batch; parameters are copied
    fsdp: int = 1  # parts of the batch; parameters and optimiser state are divided
    tensor: int = 1  # parts of heads and hidden layers


MESH_AXES = tuple(field.name for field in dataclasses.fields(Mesh))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """When checkpoints are saved, and which ones are kept."""

    every_steps: int = 1000  # steps between checkpoints; evaluations and the end save too
    keep_last: int = 3  # the newest ones
    keep_best: int = 1  # by the objective's metric (Objective.best) of the first evaluator
    keep_every_steps: int | None = None  # checkpoints of multiples of this step are never removed
    max_failed_saves: int = 5  # consecutive ones, which end the run; after fewer it continues


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """Length, seed, reports and limits of a run."""

    total_steps: int | None = None  # the length; this one or total_epochs
    total_epochs: float | None = None  # the length; this one or total_steps
    seed: int = 0  # of initial parameters, order of images, augmentation and mixing
    log_every_steps: int = setting(50, RESUME)  # interval of the records in metrics.jsonl
    log_every_s: float = setting(30.0, RESUME, READ)  # interval of lines in a log: step, loss, images/s, ETA
    eval_every_steps: int | None = None  # with eval_every_epochs=None; both None: at the end only
    eval_at_start: bool = False  # also evaluate before the first step; not stored with a checkpoint
    eval_every_epochs: float | None = None  # with eval_every_steps=None
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
    lost_timeout_s: float = setting(60.0, RESUME, READ)
    # If no step finishes within this time, the process ends. 0: no limit. None: 1800 with several processes,
    # else 0. Evaluations, saves and the first step may take ten times as long.
    hang_timeout_s: float | None = setting(None, RESUME)


@dataclasses.dataclass(frozen=True, kw_only=True)
class InitFrom:
    """The weights that training starts from."""

    path: str | None = None  # a run folder, or weights in another format; None: parameters are initialised
    # False: the head is initialised; so are the projection heads of self-distillation.
    keep_head: bool = False
    # If the weights have registers: same (another number is refused) | keep (the first ones are loaded, and
    # further ones initialised) | fresh (all are initialised).
    registers: str = "same"
    # If the weights have summaries: same (other grids are refused) | fresh (all are initialised).
    summaries: str = "same"
    # Settings of weights in another format that their tensors do not determine; None: inferred.
    # auto | dinov3 | dinov2 | deit | dino | clip | open_clip | timm | transformers | big_vision | mup_vit |
    # eva02 | pe | radio
    source: str = "auto"
    num_heads: int | None = None  # if the width does not determine it
    hidden_act: str | None = None  # gelu | quick_gelu | gelu_tanh
    interpolation: str | None = None  # as model.position_resampling
    pooling: str | None = None  # as model.pooling
    mask: str | None = None  # as model.mask
    architecture: str | None = None  # timm's name of the model
    leave_out: tuple[str, ...] = ()  # patterns of names of tensors that are not read: ("head.*",)
    # params (trained) | ema (averaged) | student | teacher, of self-distillation. None: what the objective of
    # the run, or the family, evaluates.
    params: str | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """One run."""

    model: Model = dataclasses.field(default=Model())
    text: Text = dataclasses.field(default=Text())
    init_from: InitFrom = InitFrom()
    data: Data = dataclasses.field(default=Data(), metadata=differs_on(READ))
    objective: ObjectiveSettings = dataclasses.field(default=ObjectiveSettings())
    optimizer: Optimizer = Optimizer()
    mesh: Mesh = dataclasses.field(default=Mesh(), metadata=differs_on(RESUME, READ))
    checkpoint: Checkpoint = dataclasses.field(default=Checkpoint(), metadata=differs_on(RESUME))
    tasks: Tasks = dataclasses.field(default=Tasks(), metadata=differs_on(RESUME, READ))
    run: Run = Run()


# Settings for one length. If the command line sets one of them, the others are unset.
ALTERNATIVES = (
    ("run.total_steps", "run.total_epochs"),
    ("run.eval_every_steps", "run.eval_every_epochs"),
    ("optimizer.warmup_steps", "optimizer.warmup_epochs", "optimizer.warmup_share"),
)


def image_size(config: Config) -> tuple[int, int]:
    """(height, width) of the images that the loaders return, in pixels."""
    return config.data.image_size or config.model.image_size


def may_change(occasion: str) -> frozenset[str]:
    """The settings, such as "data.data_dir", that may differ on an occasion: RESUME, READ or TRANSFER.

    If a section may differ, so may each of its settings.
    """
    return frozenset(_may_change(Config(), "", (), occasion))


def _may_change(section: object, prefix: str, outer: tuple[str, ...], occasion: str) -> Iterator[str]:
    assert dataclasses.is_dataclass(section)
    for field in dataclasses.fields(section):
        value, name = getattr(section, field.name), f"{prefix}{field.name}"
        occasions = (*outer, *field.metadata.get("may_change", ()))
        if dataclasses.is_dataclass(value):
            yield from _may_change(value, f"{name}.", occasions, occasion)
        elif occasion in occasions:
            yield name
