"""The settings of the tasks that judge frozen features, with a section for each task."""

import dataclasses
from typing import Any, TypeVar

IMAGE_TASKS = ("knn", "linear", "logistic")  # those that need one label for each image
DENSE_TASKS = ("segmentation", "depth")  # those that need a label for each pixel


@dataclasses.dataclass(frozen=True, kw_only=True)
class KnnSettings:
    """Weighted k-nearest-neighbour classification, by DINOv2's protocol."""

    neighbors: tuple[int, ...] = (10, 20, 100, 200)  # the numbers of neighbours that vote
    few_shot: int | None = None  # images of each class in the bank, drawn at random; None: all
    num_draws: int = 5  # of these images, with the seeds tasks.seed, tasks.seed + 1, ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class LinearSettings:
    """A grid of linear classifiers, trained at once, by DINOv2's protocol."""

    # None: 10 epochs of the training images without held-out ones, but at least 1,000 and at most 12,500
    # steps.
    num_steps: int | None = None
    batch_size: int = 1024  # global; at most the number of training images without held-out ones
    # Of the grid, as in the code of DINOv2; each is multiplied by batch_size / 256.
    learning_rates: tuple[float, ...] = (
        1e-5,
        2e-5,
        5e-5,
        1e-4,
        2e-4,
        5e-4,
        1e-3,
        2e-3,
        5e-3,
        1e-2,
        2e-2,
        5e-2,
        0.1,
    )
    num_blocks: tuple[int, ...] = (1, 4)  # the last blocks whose cls tokens are the input
    # As data.train_ops; features of images that are not random are computed once. None, as released:
    # random_resized_crop(0.08, 1.0) | flip; but data.eval_ops for images of less than 64 px, of which crops
    # show too little.
    train_ops: str | None = None
    # The images on which the best classifier of the grid is chosen: held_out (a part of the training split)
    # | test (those of the result, as released, which favours it).
    chosen_on: str = "held_out"
    held_out: float = 0.1  # the share of the training split that is held out, drawn from tasks.seed


@dataclasses.dataclass(frozen=True, kw_only=True)
class LogisticSettings:
    """Logistic regression with an L2 penalty, by DINOv2's protocol."""

    exponents: tuple[float, float] = (-6.0, 5.0)  # C is 10 to the power of numbers in this range
    num_c: int = 45  # values of C
    max_iterations: int = 1000  # for each value of C
    tolerance: float = 1e-12  # of the largest gradient
    chosen_on: str = "held_out"  # the images on which C is chosen: held_out | test, as tasks.linear.chosen_on
    held_out: float = 0.1  # the share of the training split that is held out


@dataclasses.dataclass(frozen=True, kw_only=True)
class SegmentationSettings:
    """A linear head for semantic segmentation, by DINOv2's protocol. None: that of the data set."""

    # The images of the result, NAME:SPLIT or FOLDER:SPLIT, such as "digit_scenes:test"; None: --data is
    # required. With --data, this setting and the next one are not read.
    data: str | None = None
    # The images that the head is trained on; None: the split train of the same data set. --train_data
    # overrides it.
    train_data: str | None = None
    num_steps: int | None = None  # of training
    batch_size: int = 16  # global
    learning_rate: float = 1e-3  # the peak
    weight_decay: float = 1e-4  # multiplied by the learning rate
    warmup_share: float = 0.0375  # of the steps
    num_blocks: int = 1  # the last blocks whose patches are the input, side by side
    short_side: int | None = None  # px, of test images, and of training images before they are scaled
    crop: int | None = None  # px, the side of training crops and of the windows that slide over test images
    stride: int | None = None  # px between windows
    augment: bool | None = None  # scales training images by 0.5 to 2, flips them, and distorts their colors
    # What the sum of the cross-entropy is divided by: all (pixels, as released) | valid (those with a label).
    divisor: str = "all"


@dataclasses.dataclass(frozen=True, kw_only=True)
class DepthSettings:
    """A linear head for depth from one image, by DINOv2's protocol. None: that of the data set."""

    data: str | None = None  # as tasks.segmentation.data
    train_data: str | None = None  # as tasks.segmentation.train_data
    num_steps: int | None = None  # of training
    batch_size: int = 16  # global
    learning_rate: float | None = None  # the peak
    weight_decay: float = 0.01  # multiplied by the learning rate
    warmup_share: float = 1 / 3  # of the steps
    grad_clip_norm: float = 35.0  # gradients with a greater norm are scaled to it
    mean_steps: int | None = None  # the first steps, whose loss is the mean difference alone
    # Of the gradient loss; 0 as the released heads were trained, whose code computes it as 0.
    gradient_weight: float = 0.0
    num_blocks: int = 1  # 1 (the last) or 4 (spread over the depth)
    num_bins: int | None = None  # depths between which the head interpolates
    range_m: tuple[float, float] | None = None  # least and largest depth
    # px, height and width of random crops of training images; of data sets without one: the whole images
    crop: tuple[int, int] | None = None
    augment: bool | None = None  # rotates, mirrors and recolors training images
    eval_crop: str | None = None  # the part of test images that counts: eigen | garg | all


# For fields that are None: the settings of each data set, by its protocol (data/sources/dense.py). Sizes that
# are None here too depend on the model: digit_scenes is as small as the images of digits models.
_RELEASED = {"num_steps": 40_000, "short_side": 512, "crop": 512, "stride": 341, "augment": True}
SEGMENTATION: dict[str, dict[str, Any]] = {
    "digit_scenes": {"num_steps": 2000, "short_side": None, "crop": None, "stride": None, "augment": False},
    "ade20k": _RELEASED,
    "voc2012": _RELEASED,
    "oxford_iiit_pet": {"num_steps": 4000, "short_side": 224, "crop": 224, "stride": 149, "augment": True},
    "folder": _RELEASED,
}
_RELEASED_DEPTH = {
    "num_steps": 38_400,
    "learning_rate": 1e-4,
    "mean_steps": 100,
    "num_bins": 256,
    "augment": True,
}
DEPTH: dict[str, dict[str, Any]] = {
    "digit_scenes": {
        "num_steps": 600,
        "learning_rate": 0.01,
        "mean_steps": 0,
        "num_bins": 64,
        "range_m": (1.0, 5.0),
        "augment": False,
        "eval_crop": "all",
    },
    "nyu": _RELEASED_DEPTH | {"range_m": (0.001, 10.0), "crop": (416, 544), "eval_crop": "eigen"},
    "kitti": _RELEASED_DEPTH | {"range_m": (0.001, 80.0), "crop": (352, 704), "eval_crop": "garg"},
    "folder": _RELEASED_DEPTH | {"range_m": (0.001, 10.0), "eval_crop": "all"},
}
DenseSettings = TypeVar("DenseSettings", SegmentationSettings, DepthSettings)


def for_data(settings: DenseSettings, protocol: str) -> DenseSettings:
    """The settings, with those of the data set instead of None."""
    table = SEGMENTATION if isinstance(settings, SegmentationSettings) else DEPTH
    own = {name: value for name, value in table[protocol].items() if getattr(settings, name) is None}
    return dataclasses.replace(settings, **own)


def head_settings(settings: Any) -> dict[str, Any]:
    """The settings of a task by name, without those that say which data: a result has these elsewhere."""
    values = dataclasses.asdict(settings)
    return {name: value for name, value in values.items() if name not in ("data", "train_data")}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ZeroShotSettings:
    """Zero-shot classification by models of images and texts: an image has the class of the nearest text."""

    # The texts of a class, templates that are filled with its name: captions (those of data.captions; without
    # any, as simple) | simple (a photo of a CLASS.) | package(data='imagenet1k') (of an installed
    # open_clip_torch or clip-benchmark) | file(path='FILE.json'); docs/image_text.md.
    prompts: str = "captions"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ZeroShotSegmentationSettings:
    """Segmentation by models of images and texts: a pixel has the class of the text nearest to its patch.

    Sizes of images and windows are those of tasks.segmentation.
    """

    data: str | None = None  # as tasks.segmentation.data
    prompts: str = "captions"  # as tasks.zero_shot.prompts


@dataclasses.dataclass(frozen=True, kw_only=True)
class RetrievalSettings:
    """Retrieval of texts by images, and of images by texts, by models of images and texts."""

    tops: tuple[int, ...] = (1, 5, 10)  # k: whether a right one is among the k nearest


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tasks:
    """What frozen features are good for: `vit-registers evaluate --task=NAME`."""

    seed: int = 0  # of what tasks draw: held-out images, the order of images, crops, initial heads
    # Tasks that each evaluation of a run computes too: knn, linear, logistic, segmentation, depth. The last
    # two require tasks.segmentation.data and tasks.depth.data.
    while_training: tuple[str, ...] = ()
    knn: KnnSettings = KnnSettings()
    linear: LinearSettings = LinearSettings()
    logistic: LogisticSettings = LogisticSettings()
    segmentation: SegmentationSettings = SegmentationSettings()
    depth: DepthSettings = DepthSettings()
    zero_shot: ZeroShotSettings = ZeroShotSettings()
    zero_shot_segmentation: ZeroShotSegmentationSettings = ZeroShotSegmentationSettings()
    retrieval: RetrievalSettings = RetrievalSettings()
