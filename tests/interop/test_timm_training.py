"""What DeiT-III is trained with, against timm's own: the rate of each epoch, and LAMB."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vit_registers.config import Model, Optimizer
from vit_registers.interop import from_state_dict
from vit_registers.models.params import abstract_model
from vit_registers.models.paths import leaves_of, path_text
from vit_registers.training.durations import Durations
from vit_registers.training.optimizer import make_optimizer
from vit_registers.training.parameter_groups import rate_multipliers
from vit_registers.training.schedules import schedule


@pytest.mark.parametrize(("epochs", "warmup"), [(800, 5), (30, 0), (12, 11)])
def test_rates_per_epoch_are_those_of_timm_when_it_is_asked_at_the_end_of_each(timm, epochs, warmup):
    import torch
    from timm.scheduler.cosine_lr import CosineLRScheduler

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=4e-3)
    theirs = CosineLRScheduler(
        optimizer, t_initial=epochs, lr_min=1e-5, warmup_t=warmup, warmup_lr_init=1e-6, cycle_limit=1
    )
    want = []
    for epoch in range(epochs):
        want.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        theirs.step(epoch)
    settings = Optimizer(
        schedule="cosine_per_epoch", learning_rate=4e-3, warmup_learning_rate=1e-6, min_learning_rate=1e-5
    )
    lengths = Durations(
        total_steps=epochs * 7, warmup_steps=warmup * 7, eval_every_steps=7, steps_per_epoch=7.0
    )
    found = jax.jit(schedule(settings, lengths))(np.arange(epochs * 7))
    np.testing.assert_allclose(np.float64(found), np.repeat(want, 7), rtol=1e-7, atol=0)


def test_lamb_is_that_of_timm_with_the_epsilon_of_deit(timm):
    """timm's Lamb is apex's FusedLAMB in torch; 20 steps in float64, kernels decayed, a kernel of zeros."""
    import torch
    from timm.optim.lamb import Lamb

    rng = np.random.default_rng(0)
    start = {"qkv": rng.normal(size=(24, 8)), "head": np.zeros((5, 8)), "bias": rng.normal(size=5)}
    ours = {name: {"bias" if name == "bias" else "kernel": jnp.float32(v)} for name, v in start.items()}
    theirs = {name: torch.nn.Parameter(torch.tensor(np.float64(np.float32(v)))) for name, v in start.items()}
    groups = [
        {"params": [theirs["qkv"], theirs["head"]], "weight_decay": 0.05},
        {"params": [theirs["bias"]], "weight_decay": 0.0},
    ]
    lamb = Lamb(groups, lr=4e-3, eps=1e-8, max_grad_norm=1.0)
    settings = Optimizer(name="lamb", schedule="constant", learning_rate=4e-3, weight_decay=0.05)
    lengths = Durations(total_steps=20, warmup_steps=0, eval_every_steps=20, steps_per_epoch=20.0)
    optimizer = make_optimizer(settings, lengths)
    opt_state, update = optimizer.init(ours), jax.jit(optimizer.update)
    for step in range(20):
        scale = 10.0 ** (step % 3 - 2.5)  # of norms above and below 1
        grads = {name: np.float32(scale * rng.normal(size=value.shape)) for name, value in start.items()}
        nested = jax.tree.unflatten(jax.tree.structure(ours), [grads[name] for name in sorted(grads)])
        updates, opt_state = update(nested, opt_state, ours)
        ours = optax.apply_updates(ours, updates)
        for name, value in theirs.items():
            value.grad = torch.tensor(np.float64(grads[name]))
        lamb.step()
    largest = max(value.abs().max().item() for value in theirs.values())
    for name, value in theirs.items():
        (found,) = ours[name].values()
        np.testing.assert_allclose(found, value.detach().numpy(), rtol=0, atol=1e-6 * largest)


def test_layer_decay_is_that_of_timm(timm):
    from timm.optim import param_groups_layer_decay

    theirs = timm.create_model(
        "vit_tiny_patch16_224", depth=3, embed_dim=16, num_heads=2, img_size=32, num_classes=5
    )
    groups = param_groups_layer_decay(theirs, layer_decay=0.65)
    names = {id(value): name for name, value in theirs.named_parameters()}
    want = {names[id(p)]: group["lr_scale"] for group in groups for p in group["params"]}
    model = Model(width=16, depth=3, num_heads=2, image_size=(32, 32), num_classes=5, positions="learned")
    rates = rate_multipliers({"vit": abstract_model(model)[1]}, Optimizer(layer_decay=0.65))
    rates = {path_text(leaf): value for leaf, value in leaves_of(rates).items()}
    for name, scale in want.items():
        path = (
            re.sub(r"\.", "/", name)
            .replace("attn/proj", "attn/out")
            .replace("proj/", "")
            .replace("weight", "kernel")
        )
        path = re.sub(r"(norm\d?)/kernel", r"\1/scale", path)
        more = 0.65 if name.startswith("norm.") else 1.0  # timm counts it to the last block
        assert rates[f"vit/{path}"] * more == pytest.approx(scale), name


def test_updates_are_those_of_timms_parameter_groups(timm, numpy_state, params):
    """Three steps of torch's AdamW with the groups of timm, and three times the rate for the head."""
    import torch
    from timm.optim import param_groups_layer_decay

    theirs = timm.create_model(
        "vit_tiny_patch16_224", depth=2, embed_dim=16, num_heads=2, img_size=32, num_classes=5
    )
    groups = param_groups_layer_decay(
        theirs, weight_decay=0.05, layer_decay=0.65, no_weight_decay_list=theirs.no_weight_decay()
    )
    head = {id(p) for p in theirs.head.parameters()}
    rate = lambda p, group: 1e-2 * group["lr_scale"] * (3.0 if id(p) in head else 1.0)  # noqa: E731
    each = [
        {"params": [p], "lr": rate(p, group), "weight_decay": group["weight_decay"]}
        for group in groups
        for p in group["params"]
    ]
    adamw = torch.optim.AdamW(each)
    read = lambda state: {"vit": params(from_state_dict(state, source="timm", num_heads=2))}  # noqa: E731
    ours = read(numpy_state(theirs))
    settings = Optimizer(
        schedule="constant",
        learning_rate=1e-2,
        weight_decay=0.05,
        grad_clip_norm=None,
        layer_decay=0.65,
        head_rate=3.0,
    )
    lengths = Durations(total_steps=20, warmup_steps=0, eval_every_steps=20, steps_per_epoch=20.0)
    optimizer = make_optimizer(settings, lengths)
    opt_state, update = optimizer.init(ours), jax.jit(optimizer.update)
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        for p in theirs.parameters():
            p.grad = torch.randn(p.shape, generator=generator)
        adamw.step()
        grads = {name: p.grad.numpy().copy() for name, p in theirs.named_parameters()}
        updates, opt_state = update(read(grads), opt_state, ours)
        ours = optax.apply_updates(ours, updates)
    want = leaves_of(read(numpy_state(theirs)))
    for leaf, value in leaves_of(ours).items():
        if leaf[:2] != ("vit", "norm"):  # which timm counts to the last block
            np.testing.assert_allclose(value, want[leaf], atol=2e-6, err_msg=path_text(leaf))
