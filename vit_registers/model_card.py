"""The model card (README.md) of an exported folder: what the model is, how good it is, how to load it."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path

import vit_registers
from vit_registers.analysis.report.markdown import inline
from vit_registers.config import Config, Model, image_size
from vit_registers.interop.export.json_configs import timm_call
from vit_registers.interop.export.preprocessing_files import Preprocessing
from vit_registers.interop.export.stablehlo import STABLEHLO_FILE, Signature
from vit_registers.interop.export.targets import Export, is_config_complete
from vit_registers.interop.summary import describe_model, describe_preprocessing
from vit_registers.models.blocks import dims

CARD_FILE = "README.md"
_MOST_CLASSES = 100  # that are listed


@dataclasses.dataclass(frozen=True, kw_only=True)
class Facts:
    """What is known of a checkpoint that is exported."""

    config: Config
    origin: str  # where its parameters are from
    class_names: tuple[str, ...] | None
    trained_on: str | None  # the data, in words; None: not known
    metrics: Mapping[str, float]  # of the checkpoint; empty if it was not evaluated
    normalisation: str | None  # the origin of mean and deviation

    @property
    def preprocessing(self) -> Preprocessing:
        """How its images are prepared."""
        return Preprocessing(self.config.data, image_size(self.config))


def write_family_card(folder: Path, facts: Facts, exported: Export, dtype: str) -> Path:
    """Writes the card of a folder in the format of another code base; returns its path."""
    name, target = folder.name, exported.target.split("/")[0]
    code = {"With vit_registers": _our_code(name, exported)}
    if target == "transformers":
        config = json.loads((folder / "config.json").read_text())
        code["With transformers"] = _transformers_code(name, config["architectures"][0])
    elif target == "timm":
        code["With timm"] = _timm_code(name, exported)
    notes = list(exported.notes)
    if target in ("transformers", "timm") and not facts.preprocessing.is_exact_in(target):
        ops = facts.config.data.eval_ops
        notes.append(f"{target} has no equal of eval_ops={ops!r}: the nearest of its methods is written")
    return _write(folder, facts, exported.model, code, f"the format of {target}, {dtype}", notes, target)


def write_stablehlo_card(folder: Path, facts: Facts, signature: Signature) -> Path:
    """Writes the card of a folder with the forward pass as StableHLO; returns its path."""
    sides = ", ".join(str(side) for side in signature.image_shape)
    outputs = "; ".join(f"{name} {list(shape)}" for name, shape in signature.outputs.items())
    code = f"""import jax, numpy
from jax import export
with open("{folder.name}/{STABLEHLO_FILE}", "rb") as file:
    model = export.deserialize(bytearray(file.read()))
images = numpy.zeros((2, {sides}), numpy.float32)  # normalised, see above; any batch
outputs = model.call(images)  # a dict of arrays"""
    notes = [
        f"it returns float32 arrays, each for a batch: {outputs}",
        f"it runs on {', '.join(signature.platforms)}, with the parameters in the file",
    ]
    title = {"With JAX (pip install jax flatbuffers)": code}
    return _write(folder, facts, facts.config.model, title, "StableHLO (jax.export)", notes, "jax")


def _write(
    folder: Path,
    facts: Facts,
    model: Model,
    code: Mapping[str, str],
    written_as: str,
    notes: list[str],
    library: str,
) -> Path:
    """Writes the card. `model` is the model in the file, which may be rewritten for its format."""
    size = image_size(facts.config)
    kind = "image-classification" if model.num_classes else "image-feature-extraction"
    names = facts.class_names
    about = {"from": facts.origin, "data": facts.trained_on or "not recorded"}
    about |= describe_model(model, size, f"{names[0]} to {names[-1]}" if names else None)
    about["written as"] = f"{written_as}, by vit_registers {vit_registers.__version__}"
    parts = ["---", f"library_name: {library}", f"pipeline_tag: {kind}", "tags: [vision-transformer]", "---"]
    parts.append("")
    parts += [f"# {inline(folder.name)}", "", "A Vision Transformer.", "", *_table(about), ""]
    parts += ["## Metrics", ""]
    parts += _table({key: _shown(value) for key, value in facts.metrics.items()}) or ["Not recorded."]
    parts += ["", "## Preprocessing", ""]
    prepared = describe_preprocessing(facts.config.data, size, facts.normalisation)
    parts.append(f"{inline(prepared)} (of values in [0, 1]). `preprocessing.json` has the numbers.")
    parts += ["", "## How to load it", ""]
    for title, text in code.items():
        parts += [f"{title}:", "", "```python", text, "```", ""]
    if names and model.num_classes:
        listed = ", ".join(inline(name) for name in names[:_MOST_CLASSES])
        more = f" and {len(names) - _MOST_CLASSES} more" if len(names) > _MOST_CLASSES else ""
        parts += ["## Classes", "", f"In the order of the logits: {listed}{more}.", ""]
    if notes:
        parts += ["## Notes", "", *(f"- {inline(note)}" for note in notes), ""]
    path = folder / CARD_FILE
    path.write_text("\n".join(parts))
    return path


def _shown(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.4f}" if isinstance(value, float) else f"{value:,}"


def _table(rows: Mapping[str, str]) -> list[str]:
    if not rows:
        return []
    return ["| | |", "|---|---|", *(f"| {inline(key)} | {inline(value)} |" for key, value in rows.items())]


def _our_code(name: str, exported: Export) -> str:
    """How vit_registers loads it, with the settings that its files do not determine."""
    model, target, given = exported.model, exported.target.split("/")[0], {}
    if not is_config_complete(exported):
        given = {
            "source": target,
            "image_size": model.image_size,
            "num_heads": dims(model).num_heads,
            "hidden_act": model.activation,
            "pooling": model.pooling,
        } | ({"mask": model.mask} if model.summary_factor else {})
    arguments = "".join(f", {key}={value!r}" for key, value in given.items())
    return "\n".join(
        [
            "import vit_registers",
            f"model = vit_registers.load({name!r}{arguments})",
            'outputs = model(model.preprocess("photo.jpg"))',
        ]
    )


def _transformers_code(name: str, architecture: str) -> str:
    no_pooler = ", add_pooling_layer=False" if architecture in ("ViTModel", "DeiTModel") else ""
    return "\n".join(
        [
            "from PIL import Image",
            f"from transformers import AutoImageProcessor, {architecture}",
            f"processor = AutoImageProcessor.from_pretrained({name!r})",
            f"model = {architecture}.from_pretrained({name!r}{no_pooler})",
            'outputs = model(**processor(Image.open("photo.jpg"), return_tensors="pt"))',
        ]
    )


def _timm_code(name: str, exported: Export) -> str:
    mode = "L" if exported.model.channels == 1 else "RGB"
    if is_config_complete(exported):
        make = [f'model = timm.create_model("local-dir:{name}", pretrained=True).eval()']
    else:
        make = [
            f"model = {timm_call(exported.model)}",
            "# with the further arguments of the notes below",
            f'timm.models.load_checkpoint(model.eval(), "{name}/model.safetensors")',
        ]
    return "\n".join(
        [
            "import timm",
            "from PIL import Image",
            *make,
            "transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))",
            f'outputs = model(transform(Image.open("photo.jpg").convert("{mode}"))[None])',
        ]
    )
