"""All experiments by name: what each asks, which figures and tables it answers, what it needs."""

from vit_registers.analysis.experiments import (
    accuracy,
    attention_bias,
    attention_by_layer,
    attention_maps,
    attention_over_training,
    attention_shares,
    cls_by_layer,
    cls_patches_only,
    cls_terms,
    components,
    cost,
    curves,
    edited_models,
    lost,
    mask,
    neighbours,
    norms,
    norms_by_layer,
    norms_by_position,
    norms_by_size,
    one_shot,
    over_training,
    position_resampling,
    positional_focus,
    probe_global,
    probe_position,
    probe_reconstruction,
    register_activations,
    register_neurons,
    remove_outliers,
    smoothness,
    test_time_registers,
    variance,
)
from vit_registers.analysis.experiments.experiment import Experiment
from vit_registers.analysis.published import DECOUPLING, REGISTERS, SMALL

NORMS = ("norms_LxT",)
EXPERIMENTS: dict[str, Experiment] = {
    "curves": Experiment("How did training go?", "the runs' own metrics", (), curves.curves),
    "mask": Experiment("Who may attend to whom?", "arXiv:2601.15506, the fractal mask", (), mask.masks),
    "accuracy": Experiment(
        "How often is the model's own head right, and do registers cost accuracy?",
        f"{REGISTERS}, figure 8; {SMALL}, section 4.1; arXiv:2601.15506",
        ("logits_Y",),
        accuracy.own_head,
    ),
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
        norms_by_layer.by_layer,
    ),
    "norms-by-size": Experiment(
        "Do only large models have outliers?", f"{REGISTERS}, figure 4c", NORMS, norms_by_size.by_size
    ),
    "norms-by-position": Experiment(
        "Where in the image are outliers?", f"{REGISTERS}, figure 10", NORMS, norms_by_position.by_position
    ),
    "position-resampling": Experiment(
        "Do all positions count alike once the position table is resampled?",
        f"{REGISTERS}, figure 11",
        (),
        position_resampling.resampling,
    ),
    "attention-maps": Experiment(
        "Where do cls and the registers look?",
        f"{REGISTERS}, figures 1, 2, 9, 18 and 19; {SMALL}, figures 1 and 7",
        ("attention_NxExT",),
        attention_maps.maps,
        needs_any=("cls", "registers"),
    ),
    "positional-focus": Experiment(
        "Where do they look on average, and do registers look at different places?",
        f"{REGISTERS}, figure 16; {SMALL}, figures 10, 11 and 13",
        ("attention_NxExT", "center_T"),
        positional_focus.positional_focus,
        needs_any=("cls", "registers"),
    ),
    "attention-shares": Experiment(
        "How much of the attention of cls goes to registers, and how much to patches?",
        f"{DECOUPLING}, figure 2a",
        ("attention_NxExT", "cls_LxD"),
        attention_shares.shares,
    ),
    "attention-by-layer": Experiment(
        "How is attention spread in each block, and onto which tokens?",
        "what reviewers of arXiv:2309.16588 asked: how severe artifacts are",
        ("entropy_LxG", "mass_LxGxG"),
        attention_by_layer.entropy,
    ),
    "neighbours": Experiment(
        "Do outliers appear where patches are like their neighbours?",
        f"{REGISTERS}, figure 5a; {SMALL}, figure 6",
        (*NORMS, "embed_cosine_4xP"),
        neighbours.neighbours,
    ),
    "smoothness": Experiment(
        "How smooth are the features that come out?",
        "what reviewers of arXiv:2309.16588 asked: how severe artifacts are",
        (*NORMS, "output_cosine_4xP"),
        smoothness.smoothness,
    ),
    "variance": Experiment(
        "How much of the features' variance is the outliers'?",
        "what reviewers of arXiv:2309.16588 asked: how severe artifacts are",
        (*NORMS, "patches_PxD"),
        variance.variance,
    ),
    "components": Experiment(
        "What do the principal components of the patches show?",
        f"{REGISTERS}, figures 17 and 20",
        ("patches_PxD",),
        components.components,
    ),
    "probe-position": Experiment(
        "Do patches know where they are, and outliers too?",
        f"{REGISTERS}, figure 5b and table 5",
        (*NORMS, "patches_PxD"),
        probe_position.position,
    ),
    "probe-reconstruction": Experiment(
        "Do patches know their pixels, and outliers too?",
        f"{REGISTERS}, figure 5b and table 5; {SMALL}, section 4.2.1",
        (*NORMS, "patches_PxD", "image_HxWxC"),
        probe_reconstruction.reconstruction,
    ),
    "probe-global": Experiment(
        "How much of the image's class does a single token hold?",
        f"{REGISTERS}, tables 1, 4 and 6; {SMALL}, tables 2, 4 and 5; arXiv:2506.08010, table 1",
        (*NORMS, "patches_PxD", "extras_ExD"),
        probe_global.global_information,
    ),
    "remove-outliers": Experiment(
        "What is lost without the outliers: accuracy, cls, registers?",
        "what reviewers of arXiv:2309.16588 asked: what artifacts cause",
        edited_models.BASE,
        remove_outliers.removal,
    ),
    "register-neurons": Experiment(
        "Which neurons make outliers, and in which block?",
        "arXiv:2506.08010, figures 2, 3 and 19, algorithm 1",
        edited_models.BASE,
        register_neurons.register_neurons,
    ),
    "test-time-registers": Experiment(
        "Can outliers be moved to a register that was never trained?",
        "arXiv:2506.08010, figures 4 and 22 to 24, tables 7, 8 and 10, algorithm 2",
        edited_models.BASE,
        test_time_registers.test_time_registers,
    ),
    "attention-bias": Experiment(
        "Does a key and a value do instead of a register?",
        "arXiv:2506.08010, section A.2 and table 7",
        edited_models.BASE,
        attention_bias.attention_bias,
    ),
    "cls-terms": Experiment(
        "What is the output of cls made of: patches, registers, or what it was before?",
        f"{DECOUPLING}, figures 3a, 5a, 6 and 8",
        ("terms_ExD",),
        cls_terms.terms,
    ),
    "cls-by-layer": Experiment(
        "When does cls become what it is at the end?",
        f"{DECOUPLING}, figures 5b, 7 and 9",
        ("cls_LxD",),
        cls_by_layer.layers,
    ),
    "one-shot": Experiment(
        "What does a classifier of the output of cls make of its parts?",
        f"{DECOUPLING}, figure 3b",
        ("terms_ExD",),
        one_shot.one_shot,
    ),
    "cls-patches-only": Experiment(
        "Does what cls takes from the patches point where all that it takes does?",
        f"{DECOUPLING}, figure 4",
        ("terms_ExD", "attention_NxExT", "image_HxWxC"),
        cls_patches_only.patches_only,
    ),
    "register-activations": Experiment(
        "Is one register large, and the same for every image?",
        f"{DECOUPLING}, figure 2b",
        ("register_hidden_2xRxD",),
        register_activations.registers,
    ),
    "lost": Experiment(
        "Can objects be found without labels?",
        f"{REGISTERS}, table 3, figures 13 and 14; {SMALL}, table 1; arXiv:2506.08010, table 5",
        (),
        lost.discovery,
    ),
    "over-training": Experiment(
        "When in training do outliers appear, and do registers grow apart?",
        f"{REGISTERS}, figure 4b; {SMALL}, figures 8 and 11",
        (*NORMS, "attention_NxExT"),
        over_training.over_training,
    ),
    "attention-over-training": Experiment(
        "When in training do cls and the registers come to look where they do?",
        f"{SMALL}, figures 9 and 12",
        ("attention_NxExT",),
        attention_over_training.attention_over_training,
        needs_any=("cls", "registers"),
    ),
    "cost": Experiment(
        "What do registers cost?", f"{REGISTERS}, figure 12; {SMALL}, table 6", (), cost.registers
    ),
}
