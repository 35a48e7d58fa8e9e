"""Odd image files, read by both loaders. Both must give the same pixels, or leave the file out."""

import dataclasses
import io
import random
from pathlib import Path

import jax
import numpy as np
from PIL import Image

from vit_registers.config import Config, Data, Mesh, Model
from vit_registers.data.batch import IMAGE
from vit_registers.data.loaders import open_data
from vit_registers.runtime.mesh import make_mesh
from vit_registers.training import sharding

SIZE = 16
_TOLERANCE = 2  # levels: libjpeg versions differ in the conversion of colours
_MODES = {
    "png": ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"),
    "jpeg": ("L", "RGB", "CMYK"),
    "webp": ("RGB", "RGBA"),
    "bmp": ("1", "L", "P", "RGB"),
    "tiff": ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "I", "F"),
    "gif": ("L", "P"),
}


def make(rng: random.Random) -> tuple[str, str, bytes]:
    """(description, suffix of the file name, content) of a random image file."""
    form = rng.choice(sorted(_MODES))
    mode = rng.choice(_MODES[form])
    pixels = np.random.default_rng(rng.randrange(2**32))
    if mode in ("I;16", "I"):
        image = Image.fromarray(pixels.integers(0, 2**16, (SIZE, SIZE)).astype(np.uint16))
        image = image if mode == "I;16" else image.convert("I")
    elif mode == "F":
        image = Image.fromarray(pixels.random((SIZE, SIZE)).astype(np.float32))
    else:
        image = Image.fromarray(pixels.integers(0, 256, (SIZE, SIZE, 3)).astype(np.uint8)).convert(mode)
    options = {"save_all": True, "append_images": [image.rotate(90)]} if rng.random() < 0.2 else {}
    buffer = io.BytesIO()
    options = options if form in ("png", "gif", "webp", "tiff") else {}
    image.save(buffer, form, **options)
    data, damage = bytearray(buffer.getvalue()), rng.choice(("none", "none", "none", "cut", "flip", "name"))
    if damage == "cut":
        data = data[: rng.randrange(len(data))]
    elif damage == "flip":
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    suffix = rng.choice(("jpg", "png", "webp", "bmp", "tif", "gif")) if damage == "name" else form
    return f"{form} {mode}{' animated' * bool(options)}, damage {damage}", suffix, bytes(data)


def check(folder: Path, number: int, seed: int) -> list[tuple[str, str]]:
    """(description, outcome) of each of `number` files. The outcome is "same", "left out" or the fault."""
    rng, names = random.Random(seed), []
    for split in ("train", "val"):
        (folder / split / "a").mkdir(parents=True)
    for i in range(number):
        name, suffix, data = make(rng)
        names.append(name)
        (folder / "val" / "a" / f"{i:03}.{suffix}").write_bytes(data)
    Image.new("RGB", (SIZE, SIZE)).save(folder / "train" / "a" / "0.png")
    read = {}
    for loader in ("memory", "tfdata"):
        data = Data(
            loader=loader,
            name="folder",
            data_dir=str(folder),
            eval_split="val",
            train_ops="",
            eval_ops="",
            eval_batch_size=number,
            on_broken="skip",
        )
        config = Config(model=Model(image_size=(SIZE, SIZE), num_classes=1), data=data)
        config = dataclasses.replace(config, model=dataclasses.replace(config.model, channels=3))
        mesh = make_mesh(Mesh(), devices=jax.devices()[:1])
        opened = open_data(config)
        (batch,) = opened.eval_batches("val", sharding.batch_sharding(mesh))
        read[loader] = np.asarray(batch.views[IMAGE], np.int32), np.asarray(batch.mask_B)
    (left, is_left), (right, is_right) = read["memory"], read["tfdata"]
    if len(left) != len(right):
        return [("all files", f"fault: {len(left)} in memory, {len(right)} by tf.data")]
    found = []
    for i, name in enumerate(names):
        if is_left[i] != is_right[i]:
            what = f"fault: read in memory {bool(is_left[i])}, by tf.data {bool(is_right[i])}"
        elif not is_left[i]:
            what = "left out"
        else:
            gap = int(np.abs(left[i] - right[i]).max())
            what = "same" if gap <= _TOLERANCE else f"fault: {gap} levels apart"
        found.append((name, what))
    return found
