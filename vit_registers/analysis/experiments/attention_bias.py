"""attention-bias: one more key and value instead of a register (arXiv:2506.08010, section A.2)."""

import numpy as np

from vit_registers.analysis.experiments import edited_models
from vit_registers.analysis.experiments.experiment import Experiment
from vit_registers.analysis.experiments.neuron_moves import (
    OUTCOME,
    Outcome,
    Trial,
    chosen_count,
    outliers_clause,
    start_trial,
    sweep_counts,
)
from vit_registers.analysis.features.interventions import Intervention, add_key
from vit_registers.analysis.measures.neurons import as_mask
from vit_registers.analysis.report.finding import counted, percent
from vit_registers.analysis.report.result import Gap, Rows
from vit_registers.analysis.subject import Options, Subject

_UNEDITED, _BIASED = "as it is", "and a key and value"  # variants, as the table names them


def _measure(subject: Subject, options: Options) -> Rows | Gap:
    trial = start_trial(subject, options)
    if isinstance(trial, Gap):
        return trial
    count = chosen_count(sweep_counts(trial))
    found = _biased(trial, count)
    return Rows(
        tables={"Attention bias": [(subject.name, name, *one.cells()) for name, one in found.items()]},
        text=outliers_clause(
            found[_UNEDITED], found[_BIASED], f"a key and a value instead of {counted(count, 'neuron')}"
        ),
        compared=percent(found[_BIASED].share),
        count=counted(trial.num_images, "image"),
    )


def _biased(trial: Trial, count: int) -> dict[str, Outcome]:
    neuron_Ex2 = trial.found.neuron_Ex2[:count]
    register = trial.moved(neuron_Ex2)
    taken = edited_models.edited(trial.subject, trial.options, register[0], ("register_kv_LxCxNxK",))
    key, value = np.moveaxis(taken.read("register_kv_LxCxNxK").mean(0, dtype=np.float64), 1, 0)
    biased = Intervention(
        name="bias",
        edits=add_key,
        values={
            "is_neuron_LxF": as_mask(neuron_Ex2, trial.found.score_LxF.shape),
            "key_LxNxK": key.astype(np.float32),
            "value_LxNxK": value.astype(np.float32),
        },
        rows={},
    )
    nobody = np.zeros((trial.num_images, trial.subject.layout.num_tokens), bool)
    names = edited_models.outputs_of(trial.subject)
    stores = {
        _UNEDITED: edited_models.unedited(trial.subject, trial.options, trial.names),
        "neurons silent": trial.run(trial.moved(neuron_Ex2, num_registers=0)[0]),
        _BIASED: edited_models.edited(trial.subject, trial.options, biased, names),
    }
    outcomes = {name: trial.outcome(store, nobody, 0) for name, store in stores.items()}
    outcomes["test-time register"] = trial.measure(register)[1]
    return outcomes


EXPERIMENT = Experiment(
    question="Does a key and a value do instead of a register?",
    answers="arXiv:2506.08010, section A.2 and table 7",
    definition=lambda options: (
        "The neurons that test-time-registers moves are silent, and every attention "
        "gets one more key and value for each head: the means, over images, of those of the test-time "
        f"register (section A.2 of the paper). On the first {options.num_edited} images."
    ),
    tables={"Attention bias": f"model | variant | {OUTCOME}"},
    measure=_measure,
    features=edited_models.BASE,
    compares="share of patches above the threshold with the key and value, %",
)
