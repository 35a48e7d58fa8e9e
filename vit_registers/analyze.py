"""Draws what a run has learned, from its run folder.

    python -m vit_registers.analyze curves --checkpoint=runs/digits     losses and accuracies over steps
    python -m vit_registers.analyze attention --checkpoint=runs/digits  where the extra tokens look
    python -m vit_registers.analyze mask --checkpoint=runs/digits       who may attend to whom

Pictures go to RUN/figures, or to --out; --config.data... changes the data that `attention` looks at.
"""

import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import jax
from absl import flags
from ml_collections import config_flags

from vit_registers import checkpointed, cli
from vit_registers import config as config_lib
from vit_registers.analysis import features, report
from vit_registers.analysis.attention import attention_maps
from vit_registers.config import lookup
from vit_registers.data.loaders import open_data
from vit_registers.errors import ConfigError
from vit_registers.models.tokens import TokenLayout
from vit_registers.models.vit import static_attention, token_layout
from vit_registers.training import sharding

NUM_IMAGES = 6
Overrides = Mapping[str, object]


def curves(run: str, step: int | None, out: Path, overrides: Overrides) -> Path:
    """Draws the losses and accuracies of the run."""
    del step, overrides
    path = out / "curves.png"
    report.draw_curves(report.read_metrics(Path(run).expanduser() / "metrics.jsonl"), path)
    return path


def attention(run: str, step: int | None, out: Path, overrides: Overrides) -> Path:
    """Draws the last block's attention to the patches, mean over heads, of the extra tokens."""
    step, config = checkpointed.read_config(run, step, overrides)
    model = checkpointed.load_run(run, step=step)
    loader = open_data(config)
    layout = sharding.batch_sharding(sharding.make_mesh(config.mesh))
    batch = jax.device_get(next(iter(loader.eval_batches(config.data.eval_split, layout))))
    images = batch.image_BxHxWxC[:NUM_IMAGES]
    tokens = model.layout_for(images.shape[1:3])
    mask_TxT, bias_NxTxT = static_attention(config.model, tokens)
    inputs = features.attention_inputs(model, images, mean=config.data.mean, std=config.data.std)
    maps = {
        name: attention_maps(
            inputs.q_BxTxNxK, inputs.k_BxTxNxK, tokens, tokens=where, mask_TxT=mask_TxT, bias_NxTxT=bias_NxTxT
        ).mean(axis=(1, 2))
        for name, where in extra_tokens(tokens).items()
    }
    if not maps:
        raise ConfigError(f"{run} has no cls, registers or summaries whose attention could be drawn")
    captions = [f"is {loader.class_names[label]}" for label in batch.label_B[:NUM_IMAGES]]
    if inputs.logits_BxY is not None and inputs.logits_BxY.shape[-1] == loader.num_classes:
        answers = inputs.logits_BxY.argmax(axis=-1)
        captions = [
            f"{caption}, answer {loader.class_names[i]}" for caption, i in zip(captions, answers, strict=True)
        ]
    path = out / f"attention-{step}.png"
    report.draw_attention(images, captions, maps, path)
    return path


def mask(run: str, step: int | None, out: Path, overrides: Overrides) -> Path:
    """Draws the attention mask of the run's model."""
    _, config = checkpointed.read_config(run, step, overrides)
    layout = token_layout(config.model)
    mask_TxT, _ = static_attention(config.model, layout)
    if mask_TxT is None:
        raise ConfigError(f"{run} was trained with model.mask='none': there is no mask to draw")
    path = out / "mask.png"
    report.draw_mask(mask_TxT, token_groups(layout), path, title=f"mask '{config.model.mask}'")
    return path


def extra_tokens(layout: TokenLayout) -> dict[str, slice]:
    """cls, each register, and each summary level by its grid."""
    groups = {"cls": layout.cls} if layout.has_cls else {}
    start = layout.registers.start
    groups |= {f"register {i}": slice(start + i, start + i + 1) for i in range(layout.num_registers)}
    for (rows, columns), where in zip(layout.summary_grids, layout.grid_slices, strict=False):
        groups[f"summary {rows} x {columns}"] = where
    return groups


def token_groups(layout: TokenLayout) -> dict[str, slice]:
    """All groups that a layout has, in order."""
    groups = {"cls": layout.cls} if layout.has_cls else {}
    if layout.num_registers:
        groups["registers"] = layout.registers
    names = [f"summary {rows} x {columns}" for rows, columns in layout.summary_grids]
    return groups | dict(zip([*names, "patches"], layout.grid_slices, strict=True))


EXPERIMENTS: dict[str, Callable[[str, int | None, Path, Overrides], Path]] = {
    "curves": curves,
    "attention": attention,
    "mask": mask,
}


def main(experiment: str) -> None:
    """The command line, after the name of the experiment."""
    values = flags.FLAGS
    draw = lookup(EXPERIMENTS, experiment, "experiment")
    out = cli.writable_folder(values.out or f"{values.checkpoint}/figures", "--out")
    overrides = config_flags.get_override_values(values["config"])
    print(draw(values.checkpoint, values.step, out, overrides))


if __name__ == "__main__":
    flags.DEFINE_string("checkpoint", None, "Run folder.")
    flags.DEFINE_integer("step", None, "Which checkpoint of the run; the newest intact one if not given.")
    flags.DEFINE_string("out", None, "Folder for the pictures; RUN/figures if not given.")
    config_flags.DEFINE_config_dict("config", config_lib.to_config_dict(config_lib.Config()))
    flags.mark_flags_as_required(["checkpoint"])
    name = sys.argv.pop(1) if len(sys.argv) > 1 and not sys.argv[1].startswith("-") else ""
    cli.run(lambda: main(name))
