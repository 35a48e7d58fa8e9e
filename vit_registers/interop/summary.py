"""What a model is and which images it takes, by topic, each in a line: for a repr and for model cards."""

from vit_registers.config import Data, Model
from vit_registers.interop.opened import describe_normalisation
from vit_registers.interop.shown import shown_part
from vit_registers.models.blocks import dims
from vit_registers.models.params import count_parameters
from vit_registers.models.positions import position_rule
from vit_registers.models.tokens import TokenLayout, patch_grid, summary_grids


def describe_model(model: Model, image_size: tuple[int, int], classes: str | None) -> dict[str, str]:
    """Sizes, tokens, mask, positions and head of a model by topic. `classes` are the names of its classes."""
    sizes, grid = dims(model), patch_grid(image_size, model.patch_size)
    layout = TokenLayout(
        has_cls=model.use_cls,
        num_registers=model.num_registers,
        summary_grids=summary_grids(patch_grid(model.image_size, model.patch_size), model.summary_factor),
        patch_grid=grid,
    )
    tokens = ["cls"] * layout.has_cls
    tokens += [f"{model.num_registers} registers"] * bool(model.num_registers)
    tokens += [f"summaries of {rows} x {columns}" for rows, columns in layout.summary_grids]
    tokens.append(f"{layout.num_patches} patches ({grid[0]} x {grid[1]})")
    positions = model.positions
    if position_rule(positions).is_learned or model.position_resampling != "none":
        positions += f" (other image sizes: {model.position_resampling})" * position_rule(positions).has_table
    is_grey, head = model.channels == 1, "none"
    if model.num_classes:
        head = f"{model.num_classes} classes: {classes or 'names not known'}"
    return {
        "size": f"width {sizes.width}, depth {sizes.depth}, {sizes.num_heads} heads, {sizes.mlp} of "
        f"{sizes.mlp_dim}, {model.activation}, {model.dtype}",
        "parameters": f"{count_parameters(model):,}",
        "images": f"{image_size[0]} x {image_size[1]} px, {model.channels} channel{'' if is_grey else 's'}, "
        f"patches of {model.patch_size} px",
        "tokens": f"{', '.join(tokens)}: {layout.num_tokens} in all",
        "mask": model.mask,
        "positions": positions,
        "pooling": model.pooling,
        "head": head,
    }


def describe_preprocessing(data: Data, image_size: tuple[int, int], origin: str | None) -> str:
    """How images are prepared, in a line; `origin` is that of the normalisation."""
    shown = shown_part(data.eval_ops, image_size)
    parts = [shown.text, shown.method, describe_normalisation(data, origin)]
    return ", ".join(part for part in parts if part)
