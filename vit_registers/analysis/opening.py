"""Checkpoints with the images that they are shown."""

import dataclasses
import importlib.metadata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

import vit_registers
from vit_registers import loading
from vit_registers.analysis import given_images
from vit_registers.analysis.features.table import TEXT_TOWER
from vit_registers.analysis.run_patterns import matching_runs
from vit_registers.analysis.text_tower import open_whole, read_text_tower
from vit_registers.checkpoint_names import CheckpointName, parse_checkpoint
from vit_registers.config import Config, Mesh, image_size
from vit_registers.data.class_names import names_to_match
from vit_registers.data.loaders import EvalSplit, Loader, loader_to_evaluate, open_data, require_random_access
from vit_registers.digests import files_digest, files_in
from vit_registers.errors import CheckpointError, ConfigError
from vit_registers.evaluation.task import FrozenTexts
from vit_registers.interop.opened import describe_normalisation
from vit_registers.interop.shown import Shown, shown_part
from vit_registers.models.blocks import dims
from vit_registers.models.pixels import require_images
from vit_registers.models.tokens import TokenLayout
from vit_registers.models.vit import ViT
from vit_registers.runs.checkpoint_folder import checkpoint_root, find_step_damage, list_steps
from vit_registers.runs.manifest import MANIFEST
from vit_registers.runtime.mesh import make_mesh
from vit_registers.storage.paths import is_remote
from vit_registers.training.memory import check_memory

_SAME_SHARE = 0.01  # sizes in whole pixels do not keep a share exactly
_PUBLISHED_WIDTH = 384  # of ViT-S, the smallest model of published numbers
_FEATURES = 2  # raised when a feature of the same name has other values or another shape
_LIBRARIES = ("jax", "flax", "numpy")


@dataclasses.dataclass(frozen=True, kw_only=True)
class OpenedModel:
    """A checkpoint with its model, and the images that it is shown."""

    name: str
    path: str
    step: int | None  # None: not a run
    sha256: str
    model: ViT
    config: Config
    loader: Loader
    num_images: int
    normalisation: str | None = None  # where the mean and deviation come from; None: given, or the config's
    params: str | None = None  # trained or averaged; None: those to evaluate
    params_name: str = "params"  # their name, also of those to evaluate
    head_names: Sequence[str] | None = None  # the classes that its head was trained on; None: not known
    train: "OpenedModel | None" = None  # the same model with the images that probes are trained on
    texts: FrozenTexts | None = None  # the modules beside the ViT, of a model with a text tower
    unread_texts: str = ""  # why its text tower cannot be used

    @property
    def layout(self) -> TokenLayout:
        """The tokens at the size of the images."""
        return self.model.layout_for(image_size(self.config))

    @property
    def parts(self) -> tuple[str, ...]:
        """The token groups that the model has, its head and its text tower."""
        has_texts = self.texts is not None or bool(self.unread_texts)
        is_there = {"head": self.config.model.num_classes > 0, TEXT_TOWER: has_texts}
        return (*self.layout.groups, *(name for name, is_part in is_there.items() if is_part))

    def describe(self) -> str:
        """What it is, with its tokens, in a line."""
        step = "" if self.step is None else f", step {self.step}"
        step += "" if self.params is None else f", {self.params}"
        groups = {name: one.stop - one.start for name, one in self.layout.groups.items()}
        tokens = ", ".join(name if name == "cls" else f"{name} ({number})" for name, number in groups.items())
        trained = "" if self.train is None else f"; probes are trained on {self.train.describe_data()}"
        return f"{self.path}{step}; tokens: {tokens}; {self.describe_data()}{trained}"

    def describe_data(self) -> str:
        """The number of its images, and where they are from."""
        data = self.config.data
        where = data.data_dir if data.name == "images" else f"{data.name}, split '{data.eval_split}'"
        where = f"{data.data_dir}, split '{data.eval_split}'" if data.name == "folder" else where
        return f"{self.num_images} images of {where}"

    @property
    def shown(self) -> Shown:
        """The part of each image that the model is shown."""
        return shown_part(self.config.data.eval_ops, image_size(self.config))

    def describe_images(self) -> str:
        """How the images are prepared, in a line."""
        data, (height, width) = self.config.data, image_size(self.config)
        parts = (f"{self.shown.text}, at {height} x {width} px", self.shown.method)
        parts += (describe_normalisation(data, self.normalisation),)
        return "sees " + ", ".join(part for part in parts if part)

    def provenance(self) -> dict[str, Any]:
        """All that its features depend on."""
        data, model = self.config.data, self.config.model
        libraries = {name: importlib.metadata.version(name) for name in _LIBRARIES}
        return {
            "checkpoint": {"path": self.path, "step": self.step, "sha256": self.sha256}
            | ({} if self.params is None else {"params": self.params}),
            "model": {"dtype": model.dtype, "attention": model.attention},
            "data": {
                "name": data.name,
                "data_dir": data.data_dir,
                "split": data.eval_split,
                "num_examples": self.loader.num_examples(data.eval_split),
            },
            "preprocessing": {
                "loader": data.loader,
                "image_size": list(image_size(self.config)),
                "eval_ops": data.eval_ops,
                "mean": list(data.mean),
                "std": list(data.std),
            },
            "num_images": self.num_images,
            "features": _FEATURES,
            "versions": {"vit_registers": vit_registers.__version__, **libraries},
        }


def default_out(checkpoint: str) -> str:
    """The default folder for results: in the run folder, or for other weights in the working folder.

    Raises ConfigError for a run in gs://, as features are mapped into memory from local files.
    """
    path = _parse(checkpoint).path
    if is_remote(path):
        raise ConfigError(f"--checkpoint={checkpoint}: give --out=FOLDER on this machine")
    return f"{path}/analysis" if loading.is_run(path) else "analysis"


def _parse(checkpoint: str) -> CheckpointName:
    return parse_checkpoint(checkpoint, where="--checkpoint", is_all_allowed=True)


def open_all(
    given: Sequence[str],
    data: str | None,
    overrides: Mapping[str, Any],
    *,
    num_images: int | None,
    params: str | None = None,
    train_data: str | None = None,
    has_texts: bool = False,
) -> list[OpenedModel]:
    """All checkpoints, in order, on the same images, and with those of `train_data` to train probes on.

    With `has_texts`, the text towers of weights of other code bases are read too; those of runs always are.
    Raises ConfigError, DataError or CheckpointError.
    """
    if meshes := [f"--config.{key}" for key in overrides if key.startswith("mesh.")]:
        raise ConfigError(f"{', '.join(meshes)}: analyze spreads images over all devices: leave it out")
    given = [one for name in given for run in matching_runs(name) for one in _steps(run)]
    names = _short_names(given)
    opened = [
        _open(name, checkpoint, data, overrides, num_images, params, has_texts)
        for name, checkpoint in zip(names, given, strict=True)
    ]
    first = opened[0].config.data
    for other in opened[1:]:
        theirs = other.config.data
        if (theirs.name, theirs.data_dir, theirs.eval_split) != (
            first.name,
            first.data_dir,
            first.eval_split,
        ):
            raise ConfigError(
                f"{opened[0].path} was trained on {first.name}, {other.path} on {theirs.name}: "
                "say with --data which images to show to both"
            )
    if train_data is None:
        return opened
    return [_with_train_images(one, train_data, overrides, num_images) for one in opened]


def _with_train_images(
    one: OpenedModel, given: str, overrides: Mapping[str, Any], limit: int | None
) -> OpenedModel:
    """The model with the images to train probes on, which are prepared as those to test on."""
    data = given_images.shown(one.config.data, given, overrides, flag="--train_data")
    config = dataclasses.replace(one.config, data=data)
    loader = open_data(config, needs_labels=False)
    _check_shared(loader, data.eval_split)
    number = loader.num_examples(data.eval_split)
    given_images.check_apart(one.config.data, data, loader, given)
    train = dataclasses.replace(one, config=config, loader=loader, num_images=min(number, limit or number))
    return dataclasses.replace(one, train=train)


def _open(
    name: str,
    checkpoint: str,
    data: str | None,
    overrides: Mapping[str, Any],
    limit: int | None,
    params: str | None,
    has_texts: bool,
) -> OpenedModel:
    parsed, unread = _parse(checkpoint), ""
    path, step = parsed.path, parsed.step
    if loading.is_run(path):
        opened = loading.open_run(path, step, overrides)
        require_images(opened.config.model, name=path, command="analyze")
        step, config, origin = opened.step, opened.config, opened.normalisation_origin
        model, texts = loading.load_run(opened, params=params), read_text_tower(opened, params)
        digest = files_digest([checkpoint_root(path) / str(step) / MANIFEST])
        head_names, is_converted = opened.class_names, opened.is_converted
        params_name = params or opened.eval_params_name
    else:
        local = loading.external_path(parsed)
        if not Path(local).expanduser().exists():
            raise CheckpointError(f"--checkpoint={path}: there is no such run folder, file or folder")
        if has_texts:
            external, texts, unread = open_whole(local, overrides, params)
        else:
            external, texts = loading.open_external(local, overrides, params=params), None
        model, config, origin = external.build(), external.config, external.normalisation_origin
        digest = files_digest(files_in(Path(local).expanduser()))
        head_names, is_converted, params_name = external.class_names, True, external.eval_params_name
    config = dataclasses.replace(config, data=given_images.shown(config.data, data, overrides))
    check_memory(config.model, config.data, make_mesh(Mesh()), training=None)
    config = dataclasses.replace(config, data=loader_to_evaluate(config.data))
    loader = open_data(config, needs_labels=False)
    _check_shared(loader, config.data.eval_split)
    number = loader.num_examples(config.data.eval_split)
    return OpenedModel(
        name=name,
        path=path,
        step=step,
        sha256=digest,
        model=model,
        config=config,
        loader=loader,
        num_images=min(number, limit or number),
        normalisation=None if overrides.keys() & {"data.mean", "data.std"} else origin,
        params=params,
        params_name=params_name,
        head_names=names_to_match(loader.class_names, head_names, is_converted=is_converted),
        texts=texts,
        unread_texts=unread,
    )


def _check_shared(loader: Loader, split: str) -> None:
    """Raises DataError if several processes cannot share the images."""
    if jax.process_count() > 1:
        require_random_access([EvalSplit(loader, split)])


def _steps(checkpoint: str) -> list[str]:
    """RUN@step for each step of RUN@all, the oldest first; other checkpoints unchanged."""
    parsed = _parse(checkpoint)
    if not parsed.is_all:
        return [checkpoint]
    path, intact = parsed.path, []
    for step in sorted(list_steps(path)):
        if damage := find_step_damage(path, step):
            if jax.process_index() == 0:
                where = checkpoint_root(path) / str(step)
                print(f"checkpoint {where} is damaged: {damage}; left out", flush=True)
        else:
            intact.append(f"{path}@{step}")
    if not intact:
        raise CheckpointError(f"--checkpoint={checkpoint}: {path} has no checkpoints that are intact")
    return intact


def with_all_steps(checkpoint: str) -> str:
    """RUN@all for a run folder without a step; other checkpoints unchanged."""
    parsed = _parse(checkpoint)
    is_whole = parsed.step is None and not parsed.is_all and loading.is_run(parsed.path)
    return f"{parsed.path}@all" if is_whole else checkpoint


def are_comparable(opened: Sequence[OpenedModel]) -> bool:
    """Whether a model is as large as those of published numbers (width 384 or more), and sees ImageNet."""
    return any(
        dims(one.config.model).width >= _PUBLISHED_WIDTH and one.config.data.name.startswith("imagenet")
        for one in opened
    )


def differences(opened: Sequence[OpenedModel]) -> str | None:
    """The differences in how the images of the models are prepared, in a line; None: no difference."""
    shares = [one.shown.share for one in opened if one.shown.share is not None]
    is_near = len(shares) == len(opened) and max(shares) - min(shares) < _SAME_SHARE
    kinds = {
        "the part of an image": [] if is_near else [one.shown.text for one in opened],
        "the method of resizing": [one.shown.method for one in opened],
        "the normalisation": [(one.config.data.mean, one.config.data.std) for one in opened],
    }
    unlike = [kind for kind, values in kinds.items() if len(set(values)) > 1]
    if not unlike:
        return None
    each = "; ".join(f"{one.name} {one.describe_images()}" for one in opened)
    return f"the models are not shown the same: they differ in {', '.join(unlike)}: {each}"


def _short_names(given: Sequence[str]) -> list[str]:
    parts = [[_printable(part) for part in Path(checkpoint.rstrip("/")).parts] for checkpoint in given]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["-".join(p[-length:]).strip("/") for p in parts]
        if len(set(names)) == len(names):
            return names
    raise ConfigError("the same --checkpoint was given twice")


def _printable(name: str) -> str:
    """The name in one line, with the replacement character for what cannot be shown."""
    return " ".join("".join(c if c.isprintable() or c.isspace() else "\ufffd" for c in name).split())
