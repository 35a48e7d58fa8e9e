"""Train, evaluate and dissect Vision Transformers with register tokens, summary tokens and fractal masks."""

from __future__ import annotations

# Nothing is imported here: until a program has set its handler of ctrl-C, ctrl-C prints a traceback.
TYPE_CHECKING = False  # True for type checkers
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from vit_registers.config import Config
    from vit_registers.image_text import LoadedImageText
    from vit_registers.loaded_model import LoadedModel

__version__ = "0.1.0"


def load(
    path: str,
    *,
    step: int | None = None,
    params: str | None = None,
    source: str = "auto",
    image_size: int | tuple[int, int] | None = None,
    num_heads: int | None = None,
    hidden_act: str | None = None,
    interpolation: str | None = None,
    pooling: str | None = None,
    mask: str | None = None,
    architecture: str | None = None,
    leave_out: str | Sequence[str] = (),
    channels: int | None = None,
) -> LoadedModel:
    """The model of a run folder, or of a checkpoint of another code base.

    `model = load("runs/digits"); model(model.preprocess("photo.jpg")).logits` evaluates it. `preprocess`
    prepares images as evaluate and analyze do: floats [batch, height, width, channels], normalised as in
    training. `model.attention` and `model.intermediates` look inside; `model.class_names` and `model.config`
    are what is known of it.

    Run folders: `RUN@1000`, or `step`, selects a checkpoint, by default the newest intact one. `params`
    selects the trained parameters ("params") or their average ("ema"), or of self-distillation "teacher" or
    "student"; the default is the teacher, the average after schedule-free training, else the trained ones.

    Other checkpoints are files (.safetensors, .npz, .pth, .pt, .bin) or folders of DINOv2, DeiT, DINO, iBOT,
    CLIP, OpenCLIP, timm, transformers, big_vision or the fractal paper's code, or hf://ORG/NAME[@REVISION] on
    the Hugging Face Hub, downloaded to the cache of huggingface_hub. Family and settings are
    recognized and printed. Settings that the tensors do not determine can be given: `source`
    (interop.SOURCES); `image_size` in pixels, to which learned positions are resampled; `num_heads`;
    `hidden_act` (gelu | quick_gelu | gelu_tanh); `interpolation` of positions (models/resampling.py);
    `pooling`; `mask`; `architecture`, the name of a timm model. If a file has several copies of the network,
    `params` selects the trained one ("params") or the averaged one ("ema"), by default the one that its
    authors evaluate. `leave_out` has fnmatch patterns of names that are not read: `leave_out=["head.*"]`.
    `channels` are the channels of the images: the patch kernel is summed for one, else repeated and scaled.

    Raises errors.CheckpointError if there is nothing to load, or with all tensors that do not fit.
    """
    from vit_registers import loading
    from vit_registers.interop.hints import make_hints

    hints = make_hints(
        image_size, num_heads, hidden_act, interpolation, pooling, mask, architecture, leave_out, channels
    )
    return loading.load_model(str(path), step=step, params=params, source=source, hints=hints)


def load_image_text(
    path: str,
    *,
    step: int | None = None,
    params: str | None = None,
    source: str = "auto",
    image_size: int | tuple[int, int] | None = None,
    num_heads: int | None = None,
    text_num_heads: int | None = None,
    hidden_act: str | None = None,
    interpolation: str | None = None,
    architecture: str | None = None,
    leave_out: str | Sequence[str] = (),
) -> LoadedImageText:
    """The model of images and texts of a run folder, or of a checkpoint of another code base: both towers.

    `model = load_image_text("clip"); model(model.vit.preprocess("photo.jpg"), tokens)` gives logits [images,
    texts], `model.embed_images` and `model.embed_texts` embeddings that are not normalised, `model.vit` is
    the image tower as `load` returns it, without a head, and `model.text` the text tower. `tokens` are
    integer ids [texts, tokens]. `model.save(path, "transformers")` writes it for another library.

    Checkpoints are those of CLIP and SigLIP: files and folders of transformers (CLIPModel, SiglipModel),
    OpenCLIP (with open_clip_config.json beside the weights), OpenAI, and two_towers of big_vision.
    `text_num_heads` are the heads of the text tower, if nothing determines them; `hidden_act` is the
    activation of both towers. The other arguments are those of `load`.

    Raises errors.CheckpointError if there is no text tower, or with all tensors that do not fit.
    """
    from vit_registers import image_text
    from vit_registers.interop.hints import make_hints

    hints = make_hints(
        image_size, num_heads, hidden_act, interpolation, None, None, architecture, leave_out, None
    )
    return image_text.load_both_towers(
        str(path), step=step, params=params, source=source, hints=hints, text_num_heads=text_num_heads
    )


def recipe(card: str, /, **overrides: Any) -> Config:
    """The config of a run card, or of a config file in Python, with overrides.

    `recipe("digits", registers=4, steps=500, model={"depth": 6})`: an override is an argument of the run card
    (`vit-registers configs digits` lists them), a section with some of its settings, or a setting by its
    dotted name, as in `**{"model.depth": 6}`. A setting that the run card takes as an argument is set by that
    argument, so that what the card derives from it follows: with `run={"total_steps": 50}`, the warm-up is
    that of a run of 50 steps. `vit_registers.train.train(config, "runs/digits")` trains it.

    Raises errors.ConfigError for unknown names, with the nearest, and for invalid values.
    """
    from vit_registers.config.own import derive_config

    return derive_config(card, overrides)
