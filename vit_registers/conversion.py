"""What convert reads: a checkpoint of a run or of another code base, and what is known of it."""

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax

from vit_registers import config as config_lib
from vit_registers import loading
from vit_registers.checkpoint_names import CheckpointName
from vit_registers.config import Config, Mesh
from vit_registers.interop import reading
from vit_registers.interop.class_names import class_names_of
from vit_registers.interop.hints import Hints
from vit_registers.interop.opened import OpenedWeights, describe_normalisation, describe_weights
from vit_registers.interop.preprocessing import preprocessing
from vit_registers.interop.values import check_leaves
from vit_registers.model_card import Facts
from vit_registers.models.paths import Leaf, leaves_of
from vit_registers.models.pixels import require_images
from vit_registers.runs.reading import RunCheckpoint
from vit_registers.runtime.mesh import make_mesh


@dataclasses.dataclass(frozen=True, kw_only=True)
class Input:
    """A checkpoint to convert: its config, and access to its parameters."""

    config: Config
    checkpoint: OpenedWeights | RunCheckpoint  # of another code base, or of a run folder
    params: str | None
    path: str
    normalisation: str | None  # the origin of its mean and deviation
    class_names: tuple[str, ...] | None

    def read(self) -> dict[str, Any]:
        """The parameters, nested. Raises CheckpointError if one is not finite."""
        if isinstance(self.checkpoint, OpenedWeights):
            return reading.read_leaves(self.checkpoint)
        params = read_run(self.checkpoint, self.params)
        check_leaves(leaves_of(params), f"{self.path}, step {self.checkpoint.step}")
        return params

    def facts(self) -> Facts:
        """What a model card says about it."""
        checkpoint = self.checkpoint
        if isinstance(checkpoint, OpenedWeights):
            return Facts(
                config=self.config,
                origin=f"{self.path}, read as {checkpoint.found.source}",
                class_names=self.class_names,
                trained_on=None,
                metrics={},
                normalisation=self.normalisation,
            )
        data, trained = self.config.data, checkpoint.trained_on
        return Facts(
            config=self.config,
            origin=f"{self.path}, step {checkpoint.step}",
            class_names=self.class_names,
            trained_on=f"{data.name}, {trained.num_examples:,} examples" if trained else None,
            metrics={f"{data.eval_split}/{key}": value for key, value in checkpoint.metrics.items()},
            normalisation=self.normalisation,
        )

    def leaves(self) -> Iterable[tuple[Leaf, Any]]:
        """The parameters by path. Those of another code base are read one by one."""
        if isinstance(self.checkpoint, OpenedWeights):
            return reading.iter_leaves(self.checkpoint)
        return leaves_of(self.read()).items()


def read_run(checkpoint: RunCheckpoint, params: str | None = None) -> dict[str, Any]:
    """The parameters of a run's checkpoint, nested, on one device."""
    mesh = make_mesh(Mesh(), devices=jax.local_devices()[:1])
    return loading.read_model(checkpoint, mesh, params=params)[1]


def open_input(name: CheckpointName, *, source: str, hints: Hints, params: str | None) -> Input:
    """The run folder, or the checkpoint of another code base. Prints a line that describes it."""
    path = name.path
    if loading.is_run(path):
        loading.refuse_hints(path, source, hints)
        checkpoint = loading.open_run(path, name.step)
        require_images(checkpoint.config.model, name=path, command="convert")
        print(f"{path}: a run folder, step {checkpoint.step}")
        return Input(
            config=checkpoint.config,
            checkpoint=checkpoint,
            params=params,
            path=path,
            normalisation=checkpoint.normalisation_origin,
            class_names=checkpoint.class_names,
        )
    local = loading.external_path(name)
    opened = reading.open_path(local, source=source, hints=dataclasses.replace(hints, params=params))
    data, origin = preprocessing(opened, Path(local).expanduser())
    print(describe_weights(opened))
    print(describe_normalisation(data, origin))
    config = config_lib.check_config(Config(model=opened.model, data=data), ("model", "data"))
    return Input(
        config=config,
        checkpoint=opened,
        params=params,
        path=path,
        normalisation=origin,
        class_names=class_names_of(opened, Path(local).expanduser()),
    )
