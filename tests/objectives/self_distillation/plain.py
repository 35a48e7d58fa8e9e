"""The losses of DINOv2 written plainly: full logits, no chunks, no padding."""

import jax
import jax.numpy as jnp
import numpy as np

from vit_registers.models.params import build_model


def head(params, x):
    for i, layer in sorted(params["mlp"].items()):
        x = x @ layer["kernel"] + layer["bias"][None]
        x = jax.nn.gelu(x, approximate=False) if i < 2 else x
    x = x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)
    v = params["last_layer"]["v"]
    return x @ (params["last_layer"]["g"][None] * v / jnp.linalg.norm(v, axis=0, keepdims=True))


def sinkhorn(logits, temperature):
    q = jnp.exp(logits / temperature).T
    q /= q.sum()
    for _ in range(3):
        q /= q.sum(axis=1, keepdims=True) * q.shape[0]
        q /= q.sum(axis=0, keepdims=True) * q.shape[1]
    return (q * q.shape[1]).T


def cross_entropy(target, logits):
    return -(target * jax.nn.log_softmax(logits / 0.1)).sum(-1)


def koleo(x):
    x = x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-8)
    dots = (x @ x.T).at[jnp.arange(len(x)), jnp.arange(len(x))].set(-1)
    gap = x - x[dots.argmax(axis=1)] + 1e-8
    return -jnp.log(jnp.sqrt((gap**2).sum(-1)) + 1e-8).mean()


def losses(graphdef, student, teacher, centres, crops, settings, temperature):
    """{name: loss} and the new centres. crops: lists of views BxHxWxC, masks as a list of BxP."""
    views, local, masks = crops
    own = [build_model(graphdef, student["vit"])(v, masked_BxP=m) for v, m in zip(views, masks, strict=True)]
    small = [build_model(graphdef, student["vit"])(v).cls for v in local]
    taught = [build_model(graphdef, teacher["vit"])(v) for v in views]
    ibot_head = "ibot_head" if settings.has_ibot_head else "dino_head"
    t_cls = jnp.concatenate([head(teacher["dino_head"], t.cls) for t in taught])
    mask = np.concatenate(masks)
    rows = mask.reshape(-1).nonzero()[0]
    t_patch = head(
        teacher[ibot_head],
        jnp.concatenate([t.patches for t in taught]).reshape(-1, t_cls_width(taught))[rows],
    )
    if settings.targets == "sinkhorn":
        p_cls, p_patch = sinkhorn(t_cls, temperature), sinkhorn(t_patch, temperature)
    else:
        p_cls = jax.nn.softmax((t_cls - centres["dino"][None]) / temperature)
        p_patch = jax.nn.softmax((t_patch - centres["ibot"][None]) / temperature)
    p_cls, p_patch = jax.lax.stop_gradient((p_cls, p_patch))
    a, b = jnp.split(p_cls, 2)
    terms = 2 + max(2 * len(local), 1)
    s_local = [head(student["dino_head"], cls) for cls in small]
    s_global = jnp.concatenate([head(student["dino_head"], o.cls) for o in own])
    dino_local = sum(cross_entropy(t, s).mean() for s in s_local for t in (a, b)) / terms
    dino_global = 2 * cross_entropy(jnp.concatenate([b, a]), s_global).mean() / terms
    s_patch = head(
        student[ibot_head], jnp.concatenate([o.patches for o in own]).reshape(-1, t_cls_width(taught))[rows]
    )
    weight = np.repeat(1 / np.maximum(mask.sum(-1), 1), mask.shape[1])[rows]
    ibot = (cross_entropy(p_patch, s_patch) * weight).sum() / len(mask)
    size = settings.koleo_group
    koleos = sum(koleo(o.cls[i : i + size]) for o in own for i in range(0, len(o.cls), size))
    koleos *= settings.koleo_weight * size / len(own[0].cls)
    new = {
        "dino": 0.9 * centres["dino"] + 0.1 * t_cls.mean(0),
        "ibot": 0.9 * centres["ibot"] + 0.1 * t_patch.mean(0),
    }
    return {
        "loss": dino_local + dino_global + ibot + koleos,
        "dino_local": dino_local,
        "dino_global": dino_global,
        "ibot": ibot,
        "koleo": koleos,
    }, new


def t_cls_width(taught):
    """The width of the model."""
    return taught[0].cls.shape[-1]
