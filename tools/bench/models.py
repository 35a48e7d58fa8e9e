"""The models that bench.step compares with: timm under torch.compile, in a separate process, and a Flax ViT.

    python -m tools.bench.models --batch=256 --width=384 --depth=12 --num_heads=6

runs timm's process, which tools.bench.step starts. When its train step has been compiled, it prints one line
of JSON, or {"error": ...}. Each line of its standard input holds the seconds of a round. It answers with a
line of JSON that holds the images per second.
"""

import argparse
import functools
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax.training.train_state import TrainState

from vit_registers.config import Config, Model
from vit_registers.data.batch import IMAGE, LABEL, Batch, normalize
from vit_registers.models.blocks import DTYPES, dims
from vit_registers.strict_json import dumps

# --- Flax linen -------------------------------------------------------------------------------


class LinenBlock(nn.Module):
    """A pre-norm block of the library's layers."""

    num_heads: int
    mlp_dim: int
    dtype: Any

    @nn.compact
    def __call__(self, x_BxTxD: jax.Array) -> jax.Array:
        normed = nn.LayerNorm(dtype=self.dtype)(x_BxTxD)
        x_BxTxD = x_BxTxD + nn.MultiHeadDotProductAttention(self.num_heads, dtype=self.dtype)(normed)
        hidden = nn.Dense(self.mlp_dim, dtype=self.dtype)(nn.LayerNorm(dtype=self.dtype)(x_BxTxD))
        hidden = nn.gelu(hidden, approximate=False)
        return x_BxTxD + nn.Dense(x_BxTxD.shape[-1], dtype=self.dtype)(hidden)


class LinenViT(nn.Module):
    """A ViT with cls and learned positions, from Flax's layers."""

    model: Model

    @nn.compact
    def __call__(self, image_BxHxWxC: jax.Array) -> jax.Array:
        model, sizes, dtype = self.model, dims(self.model), DTYPES[self.model.dtype]
        patch = (model.patch_size, model.patch_size)
        patches = nn.Conv(sizes.width, patch, strides=patch, padding="VALID", dtype=dtype)(image_BxHxWxC)
        x_BxTxD = patches.reshape(patches.shape[0], -1, sizes.width)
        cls = self.param("cls", nn.initializers.zeros, (1, 1, sizes.width))
        cls = jnp.broadcast_to(cls.astype(dtype), (x_BxTxD.shape[0], 1, sizes.width))
        x_BxTxD = jnp.concatenate([cls, x_BxTxD], axis=1)
        position = self.param("position", nn.initializers.normal(0.02), (1, *x_BxTxD.shape[1:]))
        x_BxTxD = x_BxTxD + position.astype(dtype)
        for _ in range(sizes.depth):
            x_BxTxD = LinenBlock(sizes.num_heads, sizes.mlp_dim, dtype)(x_BxTxD)
        cls_BxD = nn.LayerNorm(dtype=dtype)(x_BxTxD)[:, 0]
        return nn.Dense(model.num_classes)(cls_BxD)


def linen_step(
    config: Config, layout: jax.sharding.Sharding
) -> tuple[Callable[[], TrainState], jax.stages.Wrapped]:
    """(function that makes the initial state with the sharding `layout`, jitted train step that donates it).

    A step is forward, loss, backward, clip and AdamW; images are 8-bit before it.
    """
    model, optimizer = LinenViT(config.model), config.optimizer
    clip = optax.clip_by_global_norm(optimizer.grad_clip_norm or float("inf"))
    adamw = optax.adamw(optimizer.learning_rate, weight_decay=optimizer.weight_decay)
    image = jnp.zeros((1, *config.model.image_size, config.model.channels))

    @functools.partial(jax.jit, out_shardings=layout)
    def make_state() -> TrainState:
        params = model.init(jax.random.key(0), image)["params"]
        return TrainState.create(apply_fn=model.apply, params=params, tx=optax.chain(clip, adamw))

    @functools.partial(jax.jit, donate_argnums=0)
    def step(state: TrainState, batch: Batch) -> tuple[TrainState, jax.Array]:
        image = normalize(batch.views[IMAGE], mean=config.data.mean, std=config.data.std)

        def loss(params: Any) -> jax.Array:
            logits_BxY = state.apply_fn({"params": params}, image)
            return optax.softmax_cross_entropy_with_integer_labels(logits_BxY, batch.targets[LABEL]).mean()

        value, grads = jax.value_and_grad(loss)(state.params)
        return state.apply_gradients(grads=grads), value

    return make_state, step


# --- timm -------------------------------------------------------------------------------------


class TimmProcess:
    """timm's train step or forward pass in a separate process, idle except while `rate` waits for it.

    Raises RuntimeError, in one line, if it cannot run.
    """

    def __init__(self, config: Config, *, step: str, compile_mode: str):
        model, sizes = config.model, dims(config.model)
        settings = {
            "step": step,
            "batch": config.data.batch_size,
            "width": sizes.width,
            "depth": sizes.depth,
            "num_heads": sizes.num_heads,
            "mlp_ratio": sizes.mlp_dim / sizes.width,
            "patch_size": model.patch_size,
            "image_size": model.image_size[0],
            "num_classes": model.num_classes,
            "num_registers": model.num_registers,
            "dtype": model.dtype,
            "compile_mode": compile_mode,
        }
        command = [sys.executable, "-m", "tools.bench.models", *(f"--{k}={v}" for k, v in settings.items())]
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115  (closed in close)
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=self._errors, text=True)
        try:
            self.about = self._answer()
        except BaseException:
            self.close()
            raise

    def rate(self, seconds: float) -> float:
        """Images per second, measured over about `seconds` seconds."""
        self._process.stdin.write(f"{seconds}\n")
        self._process.stdin.flush()
        return self._answer()["images_per_s"]

    def _answer(self) -> dict[str, Any]:
        for line in self._process.stdout:
            if line.startswith("{"):
                found = json.loads(line)
                if "error" in found:
                    raise RuntimeError(found["error"])
                return found
        self._errors.seek(0)
        lines = [line for line in self._errors.read().splitlines() if line.strip()]
        raise RuntimeError(f"its process ended: {lines[-1] if lines else 'no output'}")

    def close(self) -> None:
        """Ends the process."""
        self._process.kill()
        self._process.wait()
        self._process.stdin.close()
        self._process.stdout.close()
        self._errors.close()


def timm_step(args: argparse.Namespace) -> tuple[Callable[[], Any], Callable[[], None], dict[str, Any]]:
    """(a function that runs one step, one that waits for all steps, facts for the report).

    A train step is forward, loss, backward, clip and AdamW; a forward pass computes logits without gradients.
    Images are 8-bit on the device, as those of bench.step are. Requires torch and timm.
    """
    import timm
    import torch
    from timm.models.vision_transformer import VisionTransformer

    has_gpu = torch.cuda.is_available()
    device = torch.device("cuda" if has_gpu else "cpu")
    torch.manual_seed(0)
    torch.set_float32_matmul_precision("high")
    model = VisionTransformer(  # with the defaults, vit_small_patch16_224
        img_size=args.image_size,
        patch_size=args.patch_size,
        embed_dim=args.width,
        depth=args.depth,
        num_heads=args.num_heads,
        mlp_ratio=args.mlp_ratio,
        num_classes=args.num_classes,
        reg_tokens=args.num_registers,
    ).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1, fused=True)
    shape = (args.batch, 3, args.image_size, args.image_size)
    image = torch.randint(0, 256, shape, dtype=torch.uint8, device=device)
    label = torch.randint(0, args.num_classes, (args.batch,), device=device)
    is_half = args.dtype == "bfloat16"

    def logits_of(image: Any) -> Any:
        with torch.autocast(device.type, torch.bfloat16, enabled=is_half):
            return model(image.float() / 127.5 - 1.0)

    def loss_of(image: Any, label: Any) -> Any:
        return torch.nn.functional.cross_entropy(logits_of(image).float(), label)

    if args.compile_mode != "off":
        logits_of, loss_of = (torch.compile(f, mode=args.compile_mode) for f in (logits_of, loss_of))

    def forward() -> Any:
        with torch.inference_mode():
            return logits_of(image)

    def step() -> Any:
        loss = loss_of(image, label)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    if args.step == "forward":
        model.eval()
    about = {
        "torch": torch.__version__,
        "timm": timm.__version__,
        "device": torch.cuda.get_device_name() if has_gpu else "cpu",
        "compile": args.compile_mode,
        "parameters": sum(p.numel() for p in model.parameters()),
    }
    run = forward if args.step == "forward" else step
    return run, torch.cuda.synchronize if has_gpu else lambda: None, about


def serve_peers(args: argparse.Namespace) -> None:
    """Answers the lines of standard input until its end."""
    try:
        step, wait, about = timm_step(args)
        for _ in range(3):
            result = step()
        wait()
        if args.step == "train":
            about["loss"] = float(result)
    except Exception as error:
        lines = str(error).strip().splitlines() or [""]
        print(dumps({"error": f"{type(error).__name__}: {lines[0]}"}, indent=None), flush=True)
        return
    started = time.perf_counter()
    step()
    wait()
    one_s = time.perf_counter() - started
    if about["device"] != "cpu":
        import torch

        about["peak_bytes"] = torch.cuda.max_memory_allocated()
    print(dumps(about, indent=None), flush=True)
    for line in sys.stdin:
        calls = max(2, round(float(line) / one_s))
        started = time.perf_counter()
        for _ in range(calls):
            step()
        wait()
        one_s = (time.perf_counter() - started) / calls
        print(dumps({"images_per_s": args.batch / one_s}, indent=None), flush=True)


def main() -> None:
    """The command line of timm's process."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.bench.models",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--step", default="train", choices=["train", "forward"])
    for name, default in (("batch", 256), ("width", 384), ("depth", 12), ("num_heads", 6)):
        parser.add_argument(f"--{name}", type=int, default=default)
    for name, default in (("patch_size", 16), ("image_size", 224), ("num_classes", 1000)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--num_registers", type=int, default=0)
    parser.add_argument("--mlp_ratio", type=float, default=4.0)
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    parser.add_argument("--compile_mode", default="default", help="mode of torch.compile, or off")
    serve_peers(parser.parse_args())


if __name__ == "__main__":
    main()
