"""One model whose register neurons are moved, and what comes of it (arXiv:2506.08010)."""

import dataclasses
from typing import NamedTuple

import numpy as np

from vit_registers.analysis.experiments import edited_models
from vit_registers.analysis.experiments.neuron_search import Found, find_neurons
from vit_registers.analysis.features.interventions import Intervention, move_neurons
from vit_registers.analysis.features.store import Store
from vit_registers.analysis.measures.neurons import as_mask
from vit_registers.analysis.subject import Options, Subject
from vit_registers.models.blocks import dims
from vit_registers.models.tokens import TokenLayout

GONE = 0.05  # outliers are gone when so few of them are left
OUTCOME = (
    "patches above threshold, %",
    "largest patch",
    "norm of the target",
    "attention of cls to it",
    "cosine of cls",
    "same choice, %",
    "accuracy, %",
)
_COUNTS = (1, 2, 5, 10, 20, 50, 100, 200)  # neurons to try


class Outcome(NamedTuple):
    """What a variant comes to, means over images; the target is the token that got the neurons."""

    share: float | None  # of patches above the model's own threshold but the target; None: no other patch
    largest: float  # norm of a patch
    target: float | None  # its norm
    attention: float | None  # of cls in the last block to it
    change: edited_models.Change

    def cells(self) -> tuple[float | None, ...]:
        """The columns OUTCOME."""
        shares = (edited_models.percent(self.change.agreement), edited_models.percent(self.change.accuracy))
        return (
            edited_models.percent(self.share),
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
    found: Found
    names: tuple[str, ...]  # of the features that are compared

    @property
    def num_images(self) -> int:
        """How many images edited models are shown."""
        return len(self.found.is_outlier_BxP)

    def layout(self, num_registers: int) -> TokenLayout:
        """The tokens with so many registers added."""
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
        """Its features."""
        return edited_models.run(self.subject, self.options, intervention, self.names)

    def outcome(self, store: Store, is_target_BxT: np.ndarray, num_registers: int) -> Outcome:
        """What a variant comes to."""
        patches = self.layout(num_registers).patches
        norm_BxT = np.asarray(store.read("norms_LxT")[:, -1], np.float64)
        is_other_BxP = ~is_target_BxT[:, patches]
        norm_BxP = np.where(is_other_BxP, norm_BxT[:, patches], 0.0)
        number, has_target = is_other_BxP.sum(), is_target_BxT.any()
        attention = None
        if has_target and self.subject.layout.has_cls:
            weights_BxT = store.read("attention_NxExT")[:, :, 0].mean(1, dtype=np.float64)
            attention = float((weights_BxT * is_target_BxT).sum(1).mean())
        before = edited_models.as_it_is(self.subject, self.options, self.names)
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


def begin(subject: Subject, options: Options) -> Trial | None:
    """A trial on a model, None where it has no outliers."""
    found = find_neurons(subject, options)
    if found is None:
        return None
    names = (*(["attention_NxExT"] if subject.layout.has_cls else []), *edited_models.outputs_of(subject))
    return Trial(subject=subject, options=options, found=found, names=names)


def sweep(trial: Trial) -> list[tuple[int, Outcome]]:
    """(count, outcome) of moving more and more neurons to a register, until outliers are gone."""
    original = trial.found.is_outlier_BxP.mean()
    outcomes = []
    for count in _COUNTS:
        if count > len(trial.found.neuron_Ex2):
            break
        _, outcome = trial.measure(trial.moved(trial.found.neuron_Ex2[:count]))
        outcomes.append((count, outcome))
        if outcome.share <= GONE * original:
            break
    return outcomes


def chosen_count(outcomes: list[tuple[int, Outcome]]) -> int:
    """The number of neurons that leaves fewest outliers, of equals the smallest."""
    return min(outcomes, key=lambda one: one[1].share)[0]
