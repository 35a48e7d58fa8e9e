"""Which parameters are decayed, trained, and at which multiple of the learning rate: by their paths.

A path has the form vit/blocks/0/attn/qkv/kernel; its first part is a module of the objective.
"""

import fnmatch
import re
from collections.abc import Callable
from typing import Any

import jax

from vit_registers.config import Optimizer, lookup, nearest
from vit_registers.errors import ConfigError
from vit_registers.models.paths import leaf_of, path_text

_BLOCK = re.compile(r"vit/blocks/(\d+)/")
# What precedes the blocks. Everything else of the backbone, and other modules, follow them.
_FIRST = re.compile(
    r"vit/(patch_embed|cls_token|cls_pos|mask_token|pos_embed|registers|summaries|extra_pos|norm_pre)(/|$)"
)
_PATCH_EMBED = re.compile(r"vit/patch_embed/")
_HEAD = re.compile(r"vit/(head|pre_logits|map_pool)/|(?!vit/)")
_NORM = re.compile(r"(^|/)(norm\w*|ls\d)/")


def _kernels(path: str) -> bool:
    """Kernels; not biases, norms, positions or tokens."""
    return path.rsplit("/", 1)[-1] == "kernel"


def _matrices(path: str) -> bool:
    """Kernels, and the table of text tokens, as in OpenCLIP's code."""
    return _kernels(path) or path.endswith("token_embed/embedding")


def _all_but_norms(path: str) -> bool:
    """All but biases, norms and LayerScale, as in DINOv2's code: positions, tokens and prototypes too.

    The scale of cosines and the frequencies of rotary positions are no weights, and are not decayed either.
    """
    return not path.endswith(("bias", "/frequencies")) and not _NORM.search(path) and path != "logit_scale"


DECAYED: dict[str, Callable[[str], bool]] = {
    "kernels": _kernels,
    "matrices": _matrices,
    "all_but_norms": _all_but_norms,
}


def paths_of(params: Any) -> Any:
    """The tree of the parameters with the path of each, as text."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path_text(leaf_of(path)), params)


def decay_mask(params: Any, decayed: str = "kernels") -> Any:
    """True for the leaves that weight decay applies to, by optimizer.decayed. Raises ConfigError."""
    return jax.tree.map(lookup(DECAYED, decayed, "optimizer.decayed"), paths_of(params))


def has_groups(optimizer: Optimizer) -> bool:
    """Whether rates differ between parameters."""
    rates = (optimizer.layer_decay, optimizer.patch_embed_rate, optimizer.head_rate)
    return bool(optimizer.frozen or optimizer.delayed) or any(rate != 1.0 for rate in rates)


def rate_multipliers(params: Any, optimizer: Optimizer) -> Any:
    """The multiple of the learning rate of each parameter; 0 for frozen ones.

    Layer decay d of a model of L blocks, as in DINOv2's code: block i (from 0) has d^(L - i), what precedes
    the blocks d^(L + 1), the final norm and the heads 1. timm counts the final norm to the last block (d),
    and gives registers 1; here they are tokens, as in DINOv2.

    Raises ConfigError for a pattern of optimizer.frozen that matches nothing.
    """
    paths = paths_of(params)
    texts = jax.tree.leaves(paths)
    depth = 1 + max((int(found[1]) for text in texts if (found := _BLOCK.match(text))), default=-1)
    for name in ("frozen", "delayed"):
        for pattern in getattr(optimizer, name):
            if not fnmatch.filter(texts, pattern):
                known = nearest(pattern, dict.fromkeys(texts))
                raise ConfigError(f"optimizer.{name}={pattern!r} matches no parameter: {known}")

    def multiplier(path: str) -> float:
        if is_frozen(path, optimizer):
            return 0.0
        rate = optimizer.head_rate if _HEAD.match(path) else 1.0
        if _PATCH_EMBED.match(path):
            rate *= optimizer.patch_embed_rate
        if found := _BLOCK.match(path):
            return rate * optimizer.layer_decay ** (depth - int(found[1]))
        return rate * optimizer.layer_decay ** (depth + 1) if _FIRST.match(path) else rate

    return jax.tree.map(multiplier, paths)


def is_frozen(path: str, optimizer: Optimizer) -> bool:
    """Whether a pattern of optimizer.frozen matches the path."""
    return _matches(path, optimizer.frozen)


def delayed_mask(params: Any, optimizer: Optimizer) -> Any:
    """True for the leaves that a pattern of optimizer.delayed matches."""
    return jax.tree.map(lambda path: _matches(path, optimizer.delayed), paths_of(params))


def _matches(path: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch.fnmatchcase(path, pattern) for pattern in patterns)


def without_frozen_gradients(params: Any, optimizer: Optimizer) -> Any:
    """The parameters, of which the frozen ones have no gradient."""
    if not optimizer.frozen:
        return params
    return jax.tree.map(
        lambda path, leaf: jax.lax.stop_gradient(leaf) if is_frozen(path, optimizer) else leaf,
        paths_of(params),
        params,
    )
