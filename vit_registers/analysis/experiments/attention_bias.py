"""One more key and value instead of a test-time register (arXiv:2506.08010, section A.2)."""

import numpy as np

from vit_registers.analysis.experiments import edited_models
from vit_registers.analysis.experiments.neuron_moves import (
    OUTCOME,
    Outcome,
    Trial,
    begin,
    chosen_count,
    sweep,
)
from vit_registers.analysis.features.interventions import Intervention, add_key
from vit_registers.analysis.measures.neurons import as_mask
from vit_registers.analysis.report.result import Result, Table
from vit_registers.analysis.subject import Options, Subject


def attention_bias(subjects: list[Subject], options: Options) -> Result:
    """One more key and value instead of the register."""
    result = Result(
        definition="The neurons that test-time-registers moves are silent, and every attention gets one more "
        "key and value for each head: the means, over images, of those of the test-time register (section "
        f"A.2 of the paper). On the first {options.num_edited} images."
    )
    rows = []
    for subject in subjects:
        trial = begin(subject, options)
        if trial is None or subject.model.pooling == "cls_registers":
            why = f"no outliers by {options.rule}" if trial is None else "its head reads the registers"
            result.gaps.append(f"{subject.name}: {why}")
            continue
        count = chosen_count(sweep(trial))
        for name, outcome in _biased(trial, count).items():
            rows.append((subject.name, name, *outcome.cells()))
    if rows:
        result.tables.append(Table(title="Attention bias", columns=("model", "variant", *OUTCOME), rows=rows))
    return result


def _biased(trial: Trial, count: int) -> dict[str, Outcome]:
    neuron_Ex2 = trial.found.neuron_Ex2[:count]
    register = trial.moved(neuron_Ex2)
    taken = edited_models.run(trial.subject, trial.options, register[0], ("register_kv_LxCxNxK",))
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
        "as it is": edited_models.as_it_is(trial.subject, trial.options, trial.names),
        "neurons silent": trial.run(trial.moved(neuron_Ex2, num_registers=0)[0]),
        "and a key and value": edited_models.run(trial.subject, trial.options, biased, names),
    }
    outcomes = {name: trial.outcome(store, nobody, 0) for name, store in stores.items()}
    outcomes["test-time register"] = trial.measure(register)[1]
    return outcomes
