"""attention-bias: one more key and value instead of a register (arXiv:2506.08010, section A.2)."""

import numpy as np

from vit_registers.analysis.experiments import edited_models
from vit_registers.analysis.experiments.experiment import Experiment
from vit_registers.analysis.features.interventions import NO_INTERVENTION, Intervention, add_key
from vit_registers.analysis.measures.neurons import as_mask
from vit_registers.analysis.options import Options
from vit_registers.analysis.report.result import Gap, Rows, counted, percent
from vit_registers.analysis.subject import Subject

_BIASED = "and a key and value"  # a variant, as the table names it


def _measure(subject: Subject, options: Options) -> Rows | Gap:
    trial = edited_models.start_trial(subject, options)
    if isinstance(trial, Gap):
        return trial
    _, count = trial.sweep_counts()
    neuron_Ex2 = trial.found.neuron_Ex2[:count]
    register, silent = trial.moved(neuron_Ex2), trial.moved(neuron_Ex2, num_registers=0)
    store, with_register = trial.measure(register)
    mean_CxLxNxK = np.moveaxis(store.read(edited_models.KEYS_VALUES).mean(0, dtype=np.float64), 1, 0)
    key, value = mean_CxLxNxK.astype(np.float32)
    is_neuron_LxF = as_mask(neuron_Ex2, trial.found.score_LxF.shape)
    values = {"is_neuron_LxF": is_neuron_LxF, "key_LxNxK": key, "value_LxNxK": value}
    biased = Intervention(name="bias", edits=add_key, values=values, rows={})
    outputs = subject.rerun(biased, edited_models.outputs_of(subject), options.num_edited)
    found = {
        edited_models.UNEDITED: trial.outcome(trial.before, NO_INTERVENTION),
        "neurons silent": trial.measure(silent)[1],
        _BIASED: trial.outcome(outputs, biased),
        "test-time register": with_register,
    }
    what = f"a key and a value instead of {counted(count, 'neuron')}"
    return Rows(
        tables={"Attention bias": [(name, *one.cells()) for name, one in found.items()]},
        text=edited_models.outliers_clause(found[edited_models.UNEDITED], found[_BIASED], what),
        compared=percent(found[_BIASED].share),
        count=counted(trial.num_images, "image"),
    )


EXPERIMENT = Experiment(
    question="Does a key and a value do instead of a register?",
    answers="arXiv:2506.08010, section A.2 and table 7",
    definition=lambda options: (
        "The neurons that test-time-registers moves are silent, and every attention "
        "gets one more key and value for each head: the means, over images, of those of the test-time "
        f"register (section A.2 of the paper). On the first {options.num_edited} images."
    ),
    tables={"Attention bias": f"model | variant | {edited_models.OUTCOME}"},
    measure=_measure,
    runs_model=True,
    features=edited_models.BASE,
    compares="share of patches above the threshold with the key and value, %",
)
