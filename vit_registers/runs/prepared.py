"""What a run requires before its folder is opened: data, lengths and the train step."""

import dataclasses
from typing import NamedTuple

import jax

from vit_registers.config import Config, Data
from vit_registers.data.batch import Training
from vit_registers.data.loaders import EvalSplit, Loader, open_also_eval, open_data
from vit_registers.digests import text_digest
from vit_registers.errors import ConfigError
from vit_registers.objectives.base import HasTexts, Objective
from vit_registers.objectives.catalog import make_objective
from vit_registers.runs.checkpoint_folder import TrainedOn
from vit_registers.runtime import rendezvous
from vit_registers.runtime.mesh import make_mesh
from vit_registers.status import say, waiting
from vit_registers.training import sharding
from vit_registers.training.durations import Durations
from vit_registers.training.durations import durations as make_durations
from vit_registers.training.memory import check_memory
from vit_registers.training.setup import Setup, agree_on_attention, set_up


class Prepared(NamedTuple):
    """What a run requires before its folder is opened."""

    mesh: jax.sharding.Mesh
    loader: Loader
    splits: dict[str, EvalSplit]
    data: TrainedOn
    computed: Config  # with the attention back end that is used
    durations: Durations
    setup: Setup


def prepare(config: Config) -> Prepared:
    """Opens the data and builds the train step. Raises ConfigError or DataError; writes nothing."""
    mesh = make_mesh(config.mesh)
    sharding.check_divisible(config.model, config.data, config.optimizer, mesh)
    objective = make_objective(config)
    objective.check()
    with waiting("opening the data", is_quiet=jax.process_index() != 0):
        texts = objective.texts if isinstance(objective, HasTexts) else None
        training = Training(objective.views, objective.host_targets, texts)
        loader = open_data(config, training, needs_labels=texts is None)
        others = open_also_eval(config, loader)
        data = _check_data(loader, config.data, config.model.mask, objective)
    splits = {config.data.eval_split: EvalSplit(loader, config.data.eval_split), **others}
    model, obstacle = agree_on_attention(config.model)
    if obstacle is not None:
        say(f"model.attention='auto' is {model.attention}: {obstacle}")
    computed = dataclasses.replace(config, model=model)
    check_memory(model, config.data, mesh, training=config.optimizer)
    durations = make_durations(config.run, config.optimizer, config.data, data.num_examples)
    return Prepared(mesh, loader, splits, data, computed, durations, set_up(computed, durations, mesh))


def _check_data(loader: Loader, data: Data, mask: str, objective: Objective) -> TrainedOn:
    """The description of the training data.

    Raises ConfigError or DataError for a split that is missing or empty, or if the processes of a job have
    different data or masks.
    """
    loader.num_examples(data.eval_split)
    number = loader.num_examples(data.train_split)
    if number < data.batch_size and not objective.is_additive:
        raise ConfigError(
            f"data.batch_size={data.batch_size} is more than the {number:,} training examples: "
            "the objective compares the images of a batch, so all must differ"
        )
    names = loader.class_names
    digest = text_digest("\n".join(names))[:8]
    classes = f"{len(names)}, {names[0]} to {names[-1]}, SHA-256 {digest}" if names else "none"
    rendezvous.require_same({"classes of the data": classes, "training examples": number, "model.mask": mask})
    return TrainedOn(class_names=names, num_examples=number)
