"""A checkpoint of a run folder: its origin, its training data and its parameters."""

import dataclasses
import functools
from typing import Any

import jax

from vit_registers.config import Config, from_saved
from vit_registers.errors import CheckpointError
from vit_registers.objectives.base import BACKBONE, TEACHER, Objective
from vit_registers.objectives.catalog import make_objective
from vit_registers.runs import checkpoint_folder
from vit_registers.training import averages, sharding

INITIAL = "initial"  # the parameters before training, which no checkpoint needs to hold
_PAIR = {"teacher": "eval", "student": "params"}  # names in self-distillation


def trained_config(run: str, step: int) -> Config:
    """The config with which a checkpoint was trained."""
    return from_saved(checkpoint_folder.read_meta(run, step)["config"])


def initial_params(objective: Objective, seed: int, mesh: jax.sharding.Mesh) -> Any:
    """The parameters over `mesh` that the objective evaluates before the first step of a new run.

    They are those of run.seed, also where the run started from other weights.
    """
    params, extra = jax.jit(objective.init)(jax.random.key(seed))
    params = objective.eval_params(params, extra)
    return sharding.put_same(params, sharding.parameter_shardings(params, mesh))


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunCheckpoint:
    """A checkpoint of a run folder, and the config to read it with. See loading.open_run."""

    run: str
    step: int
    config: Config  # its mask file exists, unlike that of the trained config

    @functools.cached_property
    def _meta(self) -> dict[str, Any]:
        return checkpoint_folder.read_meta(self.run, self.step)

    @functools.cached_property
    def _objective(self) -> Objective:
        return make_objective(self.config)

    @functools.cached_property
    def _shapes(self) -> tuple[Any, Any]:
        return jax.eval_shape(self._objective.init, jax.random.key(0))

    @property
    def is_converted(self) -> bool:
        """Whether its weights were converted from another format, not trained by a run."""
        return self._meta["origin"] is not None

    @property
    def trained_on(self) -> checkpoint_folder.TrainedOn | None:
        """Its training data; None if they are not recorded, as for converted weights."""
        return checkpoint_folder.trained_on(self._meta)

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """The class names of its head; None if they are not recorded."""
        if self.trained_on is not None:
            return self.trained_on.class_names
        names = self._meta.get("class_names")  # of converted weights; early checkpoints lack it
        return None if names is None else tuple(names)

    @property
    def metrics(self) -> dict[str, float]:
        """The metrics of the first evaluator at its step; empty if it was not evaluated there."""
        return dict(self._meta.get("metrics") or {})

    @property
    def normalisation_origin(self) -> str | None:
        """The origin of the mean and deviation of converted weights; None for a trained run, or unknown."""
        return self._meta.get("normalisation")

    @property
    def eval_params_name(self) -> str:
        """The name of the parameters to evaluate.

        "params" are the trained ones; "ema" is the average, for schedule-free training; "teacher" is that of
        self-distillation; "eval" are computed by another objective that has more state than parameters.
        """
        if self.is_converted:
            return "params"
        extra = self._shapes[1]
        if not extra:
            return averages.eval_field(self.config.optimizer)
        return "teacher" if TEACHER in extra else "eval"

    def read_params(self, mesh: jax.sharding.Mesh, name: str | None = None) -> Any:
        """The parameters over `mesh`, with the backbone under BACKBONE.

        `name` is "params", "ema", "teacher", "student", INITIAL, or None for those to evaluate. Raises
        CheckpointError if they are missing.
        """
        name = name or self.eval_params_name
        shapes, extra = self._shapes
        if name == INITIAL:
            return initial_params(self._objective, self.config.run.seed, mesh)
        if name in _PAIR:
            if self.is_converted or TEACHER not in extra:
                raise CheckpointError(
                    f"{self.run} has no {name}, which runs of self-distillation have: "
                    f"leave params='{name}' out"
                )
            name = _PAIR[name]
        if (
            self.is_converted and self.config.objective.name != "image_text"
        ):  # whose both towers are converted
            shapes = {BACKBONE: shapes[BACKBONE]}

        def read(targets: dict[str, Any]) -> Any:
            placed = {
                key: jax.tree.map(sharding.place, tree, sharding.parameter_shardings(tree, mesh))
                for key, tree in targets.items()
            }
            return checkpoint_folder.read_state(self.run, self.step, placed)

        if name != "eval":
            return read({name: shapes})[name]
        field = averages.eval_field(self.config.optimizer)
        state = read({field: shapes, "extra": extra})
        return self._objective.eval_params(state[field], state["extra"])
