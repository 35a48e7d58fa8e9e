"""All experiments by name: what each asks, which figures and tables it answers, what it needs."""

from collections.abc import Callable, Collection
from typing import NamedTuple

from vit_registers.analysis.experiments import (
    attention,
    cost,
    decoupling,
    design,
    discovery,
    local,
    norms,
    probes,
    severity,
    training,
)
from vit_registers.analysis.features import FEATURES
from vit_registers.analysis.section import Section
from vit_registers.analysis.subject import Options, Subject

REGISTERS, DECOUPLING = "arXiv:2309.16588", "arXiv:2505.05892"
SMALL = "Registers in Small Vision Transformers"


class Experiment(NamedTuple):
    """One question. `needs_any` are parts (Subject.parts) of which a model has to have one."""

    question: str
    answers: str
    features: tuple[str, ...]
    measure: Callable[[list[Subject], Options], Section]
    needs_any: tuple[str, ...] = ()

    def lacking(self, parts: Collection[str]) -> str | None:
        """What a model of these parts would have to have and has not, in words."""
        for name in self.features:
            needed = FEATURES[name].needs
            if needed is not None and needed not in parts:
                return needed
        if self.needs_any and not set(parts) & set(self.needs_any):
            return " and no ".join(self.needs_any)
        return None


NORMS = ("norms_LxT",)
EXPERIMENTS: dict[str, Experiment] = {
    "curves": Experiment("How did training go?", "the runs' own metrics", (), design.curves),
    "mask": Experiment("Who may attend to whom?", "arXiv:2601.15506, the fractal mask", (), design.masks),
    "norms": Experiment(
        "How large are the tokens that the last block leaves, and which are outliers?",
        f"{REGISTERS}, figures 3, 7 and 15; {SMALL}, figure 4",
        (*NORMS, "final_norms_T"),
        norms.distribution,
    ),
    "norms-by-layer": Experiment(
        "In which block do outliers appear?",
        f"{REGISTERS}, figure 4a; {SMALL}, figures 5 and 8",
        NORMS,
        norms.by_layer,
    ),
    "norms-by-position": Experiment(
        "Where in the image are outliers?", f"{REGISTERS}, figure 10", NORMS, norms.by_position
    ),
    "attention-maps": Experiment(
        "Where do cls and the registers look?",
        f"{REGISTERS}, figures 1, 2, 9, 18 and 19; {SMALL}, figures 1 and 7",
        ("attention_NxExT",),
        attention.maps,
        needs_any=("cls", "registers"),
    ),
    "positional-focus": Experiment(
        "Where do they look on average, and do registers look at different places?",
        f"{REGISTERS}, figure 16; {SMALL}, figures 10, 11 and 13",
        ("attention_NxExT",),
        attention.positional_focus,
        needs_any=("cls", "registers"),
    ),
    "attention-shares": Experiment(
        "How much of the attention of cls goes to registers, and how much to patches?",
        f"{DECOUPLING}, figure 2a",
        ("attention_NxExT", "cls_LxD"),
        attention.shares,
    ),
    "attention-by-layer": Experiment(
        "How is attention spread in each block, and onto which tokens?",
        "a question of the reviewers of arXiv:2309.16588: how severe are artifacts?",
        ("entropy_LxG", "mass_LxGxG"),
        severity.entropy,
    ),
    "neighbours": Experiment(
        "Do outliers appear where patches are like their neighbours?",
        f"{REGISTERS}, figure 5a; {SMALL}, figure 6",
        (*NORMS, "embed_cosine_4xP"),
        local.neighbours,
    ),
    "smoothness": Experiment(
        "How smooth are the features that come out?",
        "a question of the reviewers of arXiv:2309.16588: how severe are artifacts?",
        (*NORMS, "output_cosine_4xP"),
        local.smoothness,
    ),
    "variance": Experiment(
        "How much of the features' variance is the outliers'?",
        "a question of the reviewers of arXiv:2309.16588: how severe are artifacts?",
        (*NORMS, "patches_PxD"),
        severity.variance,
    ),
    "components": Experiment(
        "What do the principal components of the patches show?",
        f"{REGISTERS}, figures 17 and 20",
        ("patches_PxD",),
        local.components,
    ),
    "probe-position": Experiment(
        "Do patches know where they are, and outliers too?",
        f"{REGISTERS}, figure 5b and table 5",
        (*NORMS, "patches_PxD"),
        probes.position,
    ),
    "probe-reconstruction": Experiment(
        "Do patches know their pixels, and outliers too?",
        f"{REGISTERS}, figure 5b and table 5; {SMALL}, section 4.2.1",
        (*NORMS, "patches_PxD", "image_HxWxC"),
        probes.reconstruction,
    ),
    "probe-global": Experiment(
        "How much of the image's class does a single token hold?",
        f"{REGISTERS}, tables 1, 4 and 6; {SMALL}, tables 2, 4 and 5; arXiv:2506.08010, table 1",
        (*NORMS, "patches_PxD", "extras_ExD"),
        probes.global_information,
    ),
    "cls-terms": Experiment(
        "What is the output of cls made of: patches, registers, or what it was before?",
        f"{DECOUPLING}, figures 3a, 5a, 6 and 8",
        ("terms_ExD",),
        decoupling.terms,
    ),
    "cls-by-layer": Experiment(
        "When does cls become what it is at the end?",
        f"{DECOUPLING}, figures 5b, 7 and 9",
        ("cls_LxD",),
        decoupling.layers,
    ),
    "register-activations": Experiment(
        "Is one register large, and the same for every image?",
        f"{DECOUPLING}, figure 2b",
        ("register_hidden_2xRxD",),
        decoupling.registers,
    ),
    "lost": Experiment(
        "Can objects be found without labels?",
        f"{REGISTERS}, table 3, figures 13 and 14; {SMALL}, table 1; arXiv:2506.08010, table 5",
        (),
        discovery.discovery,
    ),
    "over-training": Experiment(
        "When in training do outliers appear, and do registers grow apart?",
        f"{REGISTERS}, figure 4b; {SMALL}, figures 8, 11 and 12",
        (*NORMS, "attention_NxExT"),
        training.over_training,
    ),
    "cost": Experiment("What do registers cost?", f"{REGISTERS}, figure 12", (), cost.registers),
}
