"""Edited models: what changes in their output, the neurons that make outliers, and those neurons moved.

The neurons are those of arXiv:2506.08010, algorithms 1 and 2.
"""

import contextlib
import dataclasses
from typing import NamedTuple

import numpy as np

from vit_registers.analysis.features.finite import NotFiniteError
from vit_registers.analysis.features.interventions import Intervention, move_neurons, nothing
from vit_registers.analysis.features.store import Store
from vit_registers.analysis.measures.neurons import as_mask, first_block, highest, neuron_scores
from vit_registers.analysis.measures.severity import cosine_similarity, summarize_values
from vit_registers.analysis.options import Options
from vit_registers.analysis.report.result import Gap, number, percent
from vit_registers.analysis.subject import Subject
from vit_registers.models.blocks import dims
from vit_registers.models.masks import parse_mask
from vit_registers.models.tokens import TokenLayout

FROZEN = "frozen_2xD"  # the feature that tasks read
KEYS_VALUES = "register_kv_LxCxNxK"  # the feature that attention-bias reads, of the added register
_NEURONS = "neurons_2xLxF"
BASE = ("norms_LxT", "image_HxWxC")  # features that the store of a subject needs for its edited models
NO_CHOICE = -2  # neither a class nor a label: -1 is that of images without one
UNEDITED = "unedited"  # in tables: the model without an edit
GONE = 0.05  # the share of the outliers below which they count as gone
OUTCOME = (
    "patches above threshold, % | largest patch | norm of the target | attention of cls to it, %"
    " | cosine of cls | same choice, % | accuracy, %"
)
_COUNTS = (1, 2, 5, 10, 20, 50, 100, 200)  # neurons to try


class Change(NamedTuple):
    """Outputs compared with those of the unedited model; None where the model has no such output.

    Cosines are None as well where that output is zero in every image.
    """

    cls_cosine: float | None
    registers_cosine: float | None  # of its own registers, mean over them
    agreement: float | None  # the share of images whose first choice of the head stays
    accuracy: float | None  # of the head, where the images' classes are its own

    def cells(self) -> tuple[float | None, ...]:
        """The numbers, shares in %."""
        return self.cls_cosine, self.registers_cosine, percent(self.agreement), percent(self.accuracy)


def outputs_of(subject: Subject) -> tuple[str, ...]:
    """The features that `change` compares."""
    extras = ["extras_ExD"] if subject.layout.registers.stop else []
    return ("norms_LxT", *extras, *(["logits_Y"] if subject.model.num_classes else []))


def run_unedited(subject: Subject, names: tuple[str, ...], options: Options) -> Store:
    """The features `names` of the unedited model, on the images that edited models are shown.

    All that experiments read of it are computed together, as each program takes seconds to compile. Among
    these are the activations of neurons on the outliers by the rule of `options`.
    """
    rows = {"is_outlier_BxP": subject.outliers(options.rule).is_outlier_BxP[: options.num_edited]}
    unedited = Intervention(name="unedited", edits=nothing, values={}, rows=rows)
    of_cls = ("attention_NxExT", "cls_attention_L") if subject.layout.has_cls else ()
    together = (*outputs_of(subject), "middle_norms_LxT", FROZEN, _NEURONS, *of_cls)
    with contextlib.suppress(NotFiniteError):  # of features that this experiment may not read
        subject.rerun(unedited, together, options.num_edited)
    return subject.rerun(unedited, names, options.num_edited)


def change(subject: Subject, before: Store, after: Store, images: np.ndarray) -> Change:
    """The effect of an intervention on cls, registers and the head's choice, on images of those indices."""
    layout, own = subject.layout, subject.layout.registers.stop
    cls = registers = agreement = accuracy = None
    if own:
        old, new = (store.read("extras_ExD")[images][:, :own] for store in (before, after))
        cosine_BxE = cosine_similarity(old, new)
        cls = summarize_values(cosine_BxE[:, layout.cls]).mean
        registers = summarize_values(cosine_BxE[:, layout.registers]).mean
    if subject.model.num_classes:
        first, then = (choices(store.read("logits_Y")[images]) for store in (before, after))
        agreement = float(((first == then) & (then != NO_CHOICE)).mean())
        label_B = subject.head_labels()
        if label_B is not None and (is_labelled_B := label_B[images] >= 0).any():
            accuracy = float((then == label_B[images])[is_labelled_B].mean())
    return Change(cls, registers, agreement, accuracy)


def choices(logits_BxY: np.ndarray) -> np.ndarray:
    """The class with the highest logit of each image; NO_CHOICE where a logit is not finite."""
    return np.where(np.isfinite(logits_BxY).all(1), logits_BxY.argmax(1), NO_CHOICE)


class RegisterNeurons(NamedTuple):
    """The neurons of one model that are most active on outliers. Blocks and neurons count from 0."""

    threshold: float
    is_outlier_BxP: np.ndarray
    num_images: int  # with outliers
    last_block: int  # where outliers begin; neurons after it are not looked at
    score_LxF: np.ndarray
    others_LxF: np.ndarray | None  # None: all patches are outliers
    neuron_Ex2: np.ndarray  # the highest score first


def find_neurons(subject: Subject, options: Options) -> RegisterNeurons | None:
    """The neurons, ranked by their activation on outliers; None where there are no outliers."""
    outliers = subject.outliers(options.rule)
    is_outlier_BxP = outliers.is_outlier_BxP[: options.num_edited]
    has_outlier_B, has_other_B = np.asarray(is_outlier_BxP.any(1)), np.asarray((~is_outlier_BxP).any(1))
    if outliers.threshold is None or not has_outlier_B.any():
        return None
    store = run_unedited(subject, (_NEURONS,), options)
    score_LxF, others_LxF = neuron_scores(store.read(_NEURONS), has_outlier_B, has_other_B)
    norm_BxLxP = subject.store.read("norms_LxT")[: options.num_edited, :, subject.layout.patches]
    last_block = first_block(norm_BxLxP, is_outlier_BxP, outliers.threshold)
    return RegisterNeurons(
        threshold=outliers.threshold,
        is_outlier_BxP=is_outlier_BxP,
        num_images=int(has_outlier_B.sum()),
        last_block=last_block,
        score_LxF=score_LxF,
        others_LxF=others_LxF,
        neuron_Ex2=highest(score_LxF, last_block),
    )


class Outcome(NamedTuple):
    """The outcome of a variant, means over images; the target is the token that got the neurons."""

    share: float | None  # of patches above the model's own threshold, without the target; None: no other
    largest: float  # norm of a patch
    target: float | None  # its norm
    attention: float | None  # of cls in the last block to it
    change: Change

    def cells(self) -> tuple[float | None, ...]:
        """The columns OUTCOME."""
        cosine, _, *shares = self.change.cells()
        attention = percent(self.attention)
        return percent(self.share), self.largest, self.target, attention, cosine, *shares


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trial:
    """One model whose neurons are moved, and the unedited model that it is compared with."""

    subject: Subject
    options: Options
    found: RegisterNeurons
    names: tuple[str, ...]  # of the features that are compared
    before: Store  # of the unedited model

    @property
    def num_images(self) -> int:
        """The number of images that edited models are shown."""
        return len(self.found.is_outlier_BxP)

    def layout(self, num_registers: int) -> TokenLayout:
        """The tokens with `num_registers` registers added."""
        own = self.subject.layout
        return dataclasses.replace(own, num_registers=own.num_registers + num_registers)

    def moved(
        self,
        neuron_Ex2: np.ndarray,
        *,
        num_registers: int = 1,
        is_target_BxP: np.ndarray | None = None,
        use_layer_max: bool = False,
        start_D: np.ndarray | None = None,
        use_mean_start: bool = False,
    ) -> Intervention:
        """The neurons moved to the added registers, or to the patches `is_target_BxP`."""
        layout = self.layout(num_registers)
        is_target_BxT = np.zeros((self.num_images, layout.num_tokens), bool)
        if is_target_BxP is not None:
            is_target_BxT[:, layout.patches] = is_target_BxP
        else:
            is_target_BxT[:, layout.registers.stop - num_registers : layout.registers.stop] = True
        width = dims(self.subject.model).width
        return Intervention(
            name="move",
            edits=move_neurons,
            values={
                "is_neuron_LxF": as_mask(neuron_Ex2, self.found.score_LxF.shape),
                "use_layer_max": np.bool_(use_layer_max),
                "num_added": np.int32(num_registers),
                "start_D": np.zeros(width, np.float32) if start_D is None else start_D.astype(np.float32),
                "use_mean_start": np.bool_(use_mean_start),
            },
            rows={"is_target_BxT": is_target_BxT},
            num_registers=num_registers,
        )

    def measure(self, intervention: Intervention) -> tuple[Store, Outcome]:
        """The features and the outcome of the model under the intervention."""
        names = (*self.names, KEYS_VALUES) if intervention.num_registers else self.names
        store = self.subject.rerun(intervention, names, self.options.num_edited)
        return store, self.outcome(store, intervention)

    def outcome(self, store: Store, intervention: Intervention) -> Outcome:
        """The outcome of a variant, from its features."""
        patches = self.layout(intervention.num_registers).patches
        norm_BxT = np.asarray(store.read("norms_LxT")[:, -1], np.float64)
        is_target_BxT = intervention.rows.get("is_target_BxT", np.zeros(norm_BxT.shape, bool))
        is_other_BxP = ~is_target_BxT[:, patches]
        norm_BxP = np.where(is_other_BxP, norm_BxT[:, patches], 0.0)
        num_others, has_target = is_other_BxP.sum(), is_target_BxT.any()
        attention = None
        if has_target and self.subject.layout.has_cls:
            weights_BxT = store.read("attention_NxExT")[:, :, 0].mean(1, dtype=np.float64)
            attention = float((weights_BxT * is_target_BxT).sum(1).mean())
        return Outcome(
            share=float((norm_BxP > self.found.threshold).sum() / num_others) if num_others else None,
            largest=float(norm_BxP.max(1).mean()),
            target=float(norm_BxT[is_target_BxT].mean()) if has_target else None,
            attention=attention,
            change=change(self.subject, self.before, store, np.arange(self.num_images)),
        )

    def sweep_counts(self) -> tuple[dict[int, Outcome], int]:
        """The outcomes of moving 1, 2, 5, ... neurons to a register, until the outliers are gone.

        Also the number of neurons that leaves fewest outliers; the smallest of equals.
        """
        outcomes: dict[int, Outcome] = {}
        for count in _COUNTS:
            if count > len(self.found.neuron_Ex2):
                break
            _, outcomes[count] = self.measure(self.moved(self.found.neuron_Ex2[:count]))
            share = outcomes[count].share
            if share is None or share <= GONE * self.found.is_outlier_BxP.mean():
                break
        left = {count: np.inf if one.share is None else one.share for count, one in outcomes.items()}
        return outcomes, min(left, key=lambda count: (left[count], count))


def start_trial(subject: Subject, options: Options) -> Trial | Gap:
    """A trial on a model; a gap if it has no outliers, or no register can be added."""
    found = find_neurons(subject, options)
    if found is None:
        return Gap(f"{subject.name}: no outliers by {options.rule}")
    if subject.model.pooling == "cls_registers":
        return Gap(f"{subject.name}: its head reads the registers, so that none can be added")
    if parse_mask(subject.model.mask).name == "file":
        return Gap(f"{subject.name}: the matrix of its mask has no rows for more registers")
    of_cls = ("attention_NxExT",) if subject.layout.has_cls else ()
    names = (*of_cls, *outputs_of(subject), FROZEN)  # one program computes what several experiments read
    before = run_unedited(subject, names, options)
    return Trial(subject=subject, options=options, found=found, names=names, before=before)


def outliers_clause(before: Outcome, after: Outcome, what: str) -> str:
    """The clause of a finding on the outliers and the largest patch norm before and after `what`."""
    return (
        f"{what} changes the share of patches above the threshold from {number(percent(before.share), '%')} "
        f"to {number(percent(after.share), '%')}, and the largest norm of a patch from "
        f"{number(before.largest)} to {number(after.largest)}"
    )
