"""Edited files of weights. Loading must give the same outputs, or print the difference, or refuse."""

import random
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from safetensors.numpy import load_file, save_file

import vit_registers
from vit_registers.config import Data, Model
from vit_registers.errors import UserError
from vit_registers.interop.export import targets
from vit_registers.models.params import abstract_model

_MODEL = Model(width=48, depth=2, num_heads=3, patch_size=4, image_size=(16, 16), num_classes=5, init="deit3")
Tensors = dict[str, np.ndarray]


def _rename(tensors: Tensors, name: str, rng: random.Random) -> None:
    tensors[f"{name}x"] = tensors.pop(name)


def _wrap(tensors: Tensors, name: str, rng: random.Random) -> None:
    prefix = rng.choice(("module.", "model.", "_orig_mod.", "backbone.", "other.", "_fsdp_wrapped_module."))
    for key in list(tensors):
        tensors[prefix + key] = tensors.pop(key)


def _drop(tensors: Tensors, name: str, rng: random.Random) -> None:
    del tensors[name]


def _add(tensors: Tensors, name: str, rng: random.Random) -> None:
    extra = rng.choice(
        ("fc.weight", "decoder_embed.weight", "rope.freqs", "blocks.0.attn.q_norm.weight", "x")
    )
    tensors[extra] = np.ones((3, 48), np.float32)


def _transpose(tensors: Tensors, name: str, rng: random.Random) -> None:
    tensors[name] = np.ascontiguousarray(tensors[name].T)


def _flatten(tensors: Tensors, name: str, rng: random.Random) -> None:
    tensors[name] = tensors[name].reshape(-1)


def _cast(tensors: Tensors, name: str, rng: random.Random) -> None:
    kind = rng.choice((np.int8, np.uint8, np.bool_, np.int64, np.float64, np.float16))
    tensors[name] = tensors[name].astype(kind)


def _spoil(tensors: Tensors, name: str, rng: random.Random) -> None:
    array = tensors[name] = tensors[name].copy()
    array.flat[rng.randrange(array.size)] = rng.choice((np.nan, np.inf, -np.inf))


def _overflow(tensors: Tensors, name: str, rng: random.Random) -> None:
    array = tensors[name] = tensors[name].astype(np.float64)
    array.flat[0] = 1e300


def _empty(tensors: Tensors, name: str, rng: random.Random) -> None:
    tensors[name] = tensors[name][:0]


EDITS: tuple[Callable[[Tensors, str, random.Random], None], ...] = (
    *(_rename, _wrap, _drop, _add, _transpose, _flatten, _cast, _spoil, _overflow, _empty),
)
BYTES = ("cut", "flip in the header", "extend")


def write_reference(path: Path) -> None:
    """Writes a random model with timm's names."""
    graphdef, abstract = abstract_model(_MODEL)
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: rng.normal(0.0, 0.1, leaf.shape).astype(np.float32), abstract)
    del graphdef
    exported = targets.export(_MODEL, params, "timm")
    targets.write(exported, str(path), np.float32, Data())


def edit_weights(source: Path, target: Path, rng: random.Random) -> str:
    """Writes an edited copy and returns a description."""
    tensors = load_file(source)
    kind = rng.choice((*EDITS, *BYTES))
    if isinstance(kind, str):
        data = bytearray(source.read_bytes())
        if kind == "cut":
            data = data[: rng.randrange(len(data))]
        elif kind == "extend":
            data += rng.randbytes(17)
        else:
            data[rng.randrange(8 + int.from_bytes(data[:8], "little"))] ^= 1 << rng.randrange(8)
        target.write_bytes(data)
        return kind
    name = rng.choice(sorted(tensors))
    kind(tensors, name, rng)
    save_file(tensors, target)
    return f"{kind.__name__.strip('_')} {name}"


def answers(path: Path) -> np.ndarray:
    """The outputs of the model of a file for fixed images."""
    image = np.random.default_rng(1).normal(size=(2, 16, 16, 3)).astype(np.float32)
    model = vit_registers.load(str(path), num_heads=3)
    out = model(image)
    return np.asarray(out.pooled if out.logits is None else out.logits)


def check(source: Path, folder: Path, seed: int, read_lines: Callable[[], str]) -> tuple[str, str]:
    """(the edit, the outcome). The outcome is "refused", "same", "said" (a message) or the fault.

    `read_lines` returns the lines printed since its last call.
    """
    target = folder / "edited.safetensors"
    done = edit_weights(source, target, random.Random(seed))
    expected = answers(source)
    usual = read_lines().replace(str(source), "")
    try:
        found = answers(target)
    except UserError as error:
        read_lines()
        return done, "fault: several lines" if "\n" in str(error).strip() else "refused"
    except Exception as error:
        return done, f"fault: {type(error).__name__}: {error}".splitlines()[0]
    lines = read_lines().replace(str(target), "")
    if not np.isfinite(found).all():
        return done, "fault: outputs that are not finite"
    if found.shape == expected.shape and np.allclose(found, expected, atol=2e-3):  # float16 rounds
        return done, "same"
    return done, "said" if lines != usual else "fault: other outputs without a message"
