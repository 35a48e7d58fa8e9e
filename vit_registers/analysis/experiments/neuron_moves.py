"""Register neurons of a model moved to other tokens, and the outcome of it (arXiv:2506.08010)."""

import dataclasses
from typing import NamedTuple

import numpy as np

from vit_registers.analysis.experiments import edited_models
from vit_registers.analysis.experiments.neuron_search import RegisterNeurons, find_neurons
from vit_registers.analysis.features.interventions import Intervention, move_neurons
from vit_registers.analysis.features.store import Store
from vit_registers.analysis.measures.neurons import as_mask
from vit_registers.analysis.report.finding import number, percent
from vit_registers.analysis.report.result import Gap
from vit_registers.analysis.subject import Options, Subject
from vit_registers.models.blocks import dims
from vit_registers.models.masks import parse_mask
from vit_registers.models.tokens import TokenLayout

GONE = 0.05  # the share of the outliers below which they count as gone
OUTCOME = (
    "patches above threshold, % | largest patch | norm of the target | attention of cls to it | cosine of cls"
    " | same choice, % | accuracy, %"
)
_COUNTS = (1, 2, 5, 10, 20, 50, 100, 200)  # neurons to try


class Outcome(NamedTuple):
    """The outcome of a variant, means over images; the target is the token that got the neurons."""

    share: float | None  # of patches above the model's own threshold, without the target; None: no other
    largest: float  # norm of a patch
    target: float | None  # its norm
    attention: float | None  # of cls in the last block to it
    change: edited_models.Change

    def cells(self) -> tuple[float | None, ...]:
        """The columns OUTCOME."""
        shares = (percent(self.change.agreement), percent(self.change.accuracy))
        return (
            percent(self.share),
            self.largest,
            self.target,
            self.attention,
            self.change.cls_cosine,
            *shares,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trial:
    """One model whose neurons are moved, and what it is compared with."""

    subject: Subject
    options: Options
    found: RegisterNeurons
    names: tuple[str, ...]  # of the features that are compared

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
    ) -> tuple[Intervention, np.ndarray]:
        """The intervention, and is_target_BxT: the added registers, or patches if those are given."""
        layout = self.layout(num_registers)
        is_target_BxT = np.zeros((self.num_images, layout.num_tokens), bool)
        if is_target_BxP is not None:
            is_target_BxT[:, layout.patches] = is_target_BxP
        elif num_registers:
            is_target_BxT[:, layout.registers.stop - num_registers : layout.registers.stop] = True
        width = dims(self.subject.model).width
        intervention = Intervention(
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
        return intervention, is_target_BxT

    def run(self, intervention: Intervention) -> Store:
        """The features of the model under the intervention."""
        return edited_models.edited(self.subject, self.options, intervention, self.names)

    def outcome(self, store: Store, is_target_BxT: np.ndarray, num_registers: int) -> Outcome:
        """The outcome of a variant, from its features."""
        patches = self.layout(num_registers).patches
        norm_BxT = np.asarray(store.read("norms_LxT")[:, -1], np.float64)
        is_other_BxP = ~is_target_BxT[:, patches]
        norm_BxP = np.where(is_other_BxP, norm_BxT[:, patches], 0.0)
        number, has_target = is_other_BxP.sum(), is_target_BxT.any()
        attention = None
        if has_target and self.subject.layout.has_cls:
            weights_BxT = store.read("attention_NxExT")[:, :, 0].mean(1, dtype=np.float64)
            attention = float((weights_BxT * is_target_BxT).sum(1).mean())
        before = edited_models.unedited(self.subject, self.options, self.names)
        return Outcome(
            share=float((norm_BxP > self.found.threshold).sum() / number) if number else None,
            largest=float(norm_BxP.max(1).mean()),
            target=float(norm_BxT[is_target_BxT].mean()) if has_target else None,
            attention=attention,
            change=edited_models.change(self.subject, before, store, np.arange(self.num_images)),
        )

    def measure(self, moved: tuple[Intervention, np.ndarray]) -> tuple[Store, Outcome]:
        """The features and the outcome of what `moved` gave."""
        intervention, is_target_BxT = moved
        store = self.run(intervention)
        return store, self.outcome(store, is_target_BxT, intervention.num_registers)


def start_trial(subject: Subject, options: Options) -> Trial | Gap:
    """A trial on a model; a gap if it has no outliers, or no register can be added."""
    found = find_neurons(subject, options)
    if found is None:
        return Gap(f"{subject.name}: no outliers by {options.rule}")
    if subject.model.pooling == "cls_registers":
        return Gap(f"{subject.name}: its head reads the registers, so that none can be added")
    if parse_mask(subject.model.mask).name == "file":
        return Gap(f"{subject.name}: the matrix of its mask has no rows for more registers")
    names = (*(["attention_NxExT"] if subject.layout.has_cls else []), *edited_models.outputs_of(subject))
    return Trial(subject=subject, options=options, found=found, names=names)


def sweep_counts(trial: Trial) -> list[tuple[int, Outcome]]:
    """(count, outcome) of moving 1, 2, 5, ... neurons to a register, until the outliers are gone."""
    original = trial.found.is_outlier_BxP.mean()
    outcomes = []
    for count in _COUNTS:
        if count > len(trial.found.neuron_Ex2):
            break
        _, outcome = trial.measure(trial.moved(trial.found.neuron_Ex2[:count]))
        outcomes.append((count, outcome))
        if outcome.share is None or outcome.share <= GONE * original:
            break
    return outcomes


def chosen_count(outcomes: list[tuple[int, Outcome]]) -> int:
    """The number of neurons that leaves fewest outliers; the smallest of equals."""
    return min((np.inf if outcome.share is None else outcome.share, count) for count, outcome in outcomes)[1]


def outliers_clause(before: Outcome, after: Outcome, what: str) -> str:
    """The clause of a finding on the outliers and the largest patch norm before and after `what`."""
    return (
        f"{what} changes the share of patches above the threshold from {number(percent(before.share), '%')} "
        f"to {number(percent(after.share), '%')}, and the largest norm of a patch from "
        f"{number(before.largest)} to {number(after.largest)}"
    )
