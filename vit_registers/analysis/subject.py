"""One model on one set of images: what experiments measure."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
from etils import epath

from vit_registers.analysis.features.interventions import Intervention
from vit_registers.analysis.features.store import Store
from vit_registers.analysis.measures.outliers import Outliers, find
from vit_registers.config import Model, Tasks
from vit_registers.data.class_names import match
from vit_registers.data.loaders import EvalSplit
from vit_registers.errors import ConfigError
from vit_registers.evaluation.task import FrozenModel
from vit_registers.models.tokens import Grid, TokenLayout

# {("q", block), ...} of the last blocks for one image of any size, uint8, heads joined, PxD each; the grid
Native = tuple[Mapping[tuple[str, int], np.ndarray], Grid]

FULL = "full"  # the name of the sum in `cls_parts`
_PART = 256


def in_parts(num_images: int) -> Iterator[slice]:
    """Slices that cover `num_images` images in order, each of a size that fits into memory."""
    for start in range(0, num_images, _PART):
        yield slice(start, min(start + _PART, num_images))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Subject:
    """The features of a model. Subjects of one report saw the same images."""

    name: str
    run: epath.Path | None  # the run folder, of one of ours
    step: int | None  # of the run
    params: str | None = None  # the copy of a run's parameters; None: those to evaluate
    params_name: str = "params"  # that copy by name, also for those to evaluate
    num_parameters: int
    num_not_finite: int = 0  # parameters that are NaN or infinite
    model: Model
    store: Store
    images: str = ""  # the number of the images and where they are from
    train: "Subject | None" = None  # the same model on the images that probes are trained on; None: a part
    layout: TokenLayout
    class_names: tuple[str, ...]  # of the images
    split: EvalSplit | None = None  # the images, of which the store has the first num_images
    tasks: Tasks = dataclasses.field(default_factory=Tasks)  # settings of what evaluation/ measures
    unread_texts: str = ""  # why the text tower of the model cannot be used
    head_names: Sequence[str] | None  # classes of the head; None: unknown, matched by number
    example_NxHxWxC: np.ndarray  # the first images, uint8
    mean: tuple[float, ...]  # of pixel values in [0, 1], per channel
    std: tuple[float, ...]
    native: Callable[[np.ndarray, int], Native]  # of an image and the number of blocks
    # prints progress: what is computed, images done, images in all
    progress: Callable[[str, int, int], None] = lambda what, done, total: None
    # features of the model under an intervention, on the first images; the last argument is their number;
    # requires image_HxWxC in the store
    rerun: Callable[[Intervention, tuple[str, ...], int], Store]
    # the model for tasks of evaluation/tasks.py, under an intervention whose rows are the same for all images
    frozen: Callable[[Intervention], FrozenModel] | None = None

    def patch_norms(self) -> np.ndarray:
        """norm_BxP after the last block, before the final norm."""
        return self.store.read("norms_LxT")[:, -1, self.layout.patches]

    def outliers(self, rule: str) -> Outliers:
        """The patches that `rule` flags by `patch_norms`."""
        return find(self.patch_norms(), rule)

    def tokens(self) -> dict[str, slice]:
        """The slices of cls, each register, all summaries and all patches; of those that the model has."""
        layout = self.layout
        tokens = {"cls": layout.cls} if layout.has_cls else {}
        start = layout.registers.start
        tokens |= {f"register {i}": slice(start + i, start + i + 1) for i in range(layout.num_registers)}
        if layout.num_summaries:
            tokens["summaries"] = layout.summaries
        return tokens | {"patches": layout.patches}

    def head_labels(self) -> np.ndarray | None:
        """The label_B of the images as classes of the model's own head; None where the classes differ."""
        label_B = np.asarray(self.store.read("label"))
        if label_B.ndim != 1 or self.other_classes() is not None:
            return None
        if self.head_names is None:
            return label_B
        table = match(self.class_names, self.head_names, where="the images")
        return label_B if table is None else np.where(label_B < 0, label_B, table[np.maximum(label_B, 0)])

    def other_classes(self) -> str | None:
        """Why the images' classes are not those of the model's own head; None where they are."""
        theirs, own = len(self.class_names), self.model.num_classes
        if not theirs:
            return "the images have no classes"
        if self.head_names is not None and len(self.head_names) == own > 0:
            try:
                match(self.class_names, self.head_names, where="the image set")
            except ConfigError as error:
                return str(error)
            return None
        if theirs != own or not own:
            return f"its head has {own} classes and the images have {theirs}, so its accuracy is not defined"
        return None

    def term_names(self) -> tuple[str, ...]:
        """The terms of terms_ExD: one for each token group, the bias, the skip connection."""
        return (*self.layout.groups, "bias", "skip")


def patches_first(subject: Subject) -> dict[str, slice]:
    """The slices of the token groups, with the patches first."""
    groups = subject.layout.groups
    return {"patches": groups.pop("patches"), **groups}


def queries(subject: Subject) -> list[str]:
    """The names of the E tokens that are no patches, the queries of attention_NxExT: cls, each register, each
    summary."""
    layout = subject.layout
    registers = (f"register {i}" for i in range(layout.num_registers))
    summaries = (f"summary {i}" for i in range(layout.num_summaries))
    return [*(["cls"] if layout.has_cls else []), *registers, *summaries]


def mean_maps(subject: Subject, images: slice | np.ndarray) -> np.ndarray:
    """Attention of each query to the patches in the last block, mean over heads: BxExHxW."""
    return head_maps(subject, images).mean(axis=1)


def head_maps(subject: Subject, images: slice | np.ndarray) -> np.ndarray:
    """Attention of each query to the patches in the last block, of each head: BxNxExHxW."""
    weights = subject.store.read("attention_NxExT")[images][..., subject.layout.patches]
    return weights.reshape(*weights.shape[:-1], *subject.layout.patch_grid)


def cls_parts(subject: Subject, images: slice | np.ndarray) -> dict[str, np.ndarray]:
    """What cls gets from each token group by the attention of the last block, and FULL, the sum: BxD each."""
    names = tuple(subject.layout.groups)
    terms_BxExD = subject.store.read("terms_ExD")[images][:, : len(names)].astype(np.float64)
    return {FULL: terms_BxExD.sum(axis=1)} | {name: terms_BxExD[:, i] for i, name in enumerate(names)}
