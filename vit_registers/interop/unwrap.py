"""Selects the network of a file that is loaded, among wrappers, copies and other tensors."""

import dataclasses
import fnmatch
import re
from collections.abc import Iterable, Mapping, Sequence

from vit_registers.config import lookup
from vit_registers.errors import CheckpointError
from vit_registers.interop.containers import Weights
from vit_registers.interop.left_out import (
    IMAGE_PROJECTION,
    TEXT_TOWER,
    TRAINING_STATE,
    search,
    unused_patterns,
)
from vit_registers.interop.names.radio import RADIO_PATCHES
from vit_registers.interop.values import refuse_quantised

SOURCES = ("dinov2", "deit", "dino", "clip", "open_clip", "timm", "transformers", "big_vision", "mup_vit")
SOURCES += ("dinov3", "eva02", "pe", "radio")

# The name of the patch embedding, which every family has, tells the family; the text before it is a prefix.
PATCH_NAMES = {
    "patch_embed.proj.weight": ("timm", "dinov2", "deit", "dino", "dinov3", "eva02"),
    "conv1.weight": ("clip", "open_clip", "pe"),
    "embeddings.patch_embeddings.projection.weight": ("transformers",),
    "embeddings.patch_embedding.weight": ("transformers",),
    "embeddings.patch_embeddings.weight": ("transformers",),
    "conv_proj.weight": ("mup_vit",),
    "patchifier.weight": ("mup_vit",),
    "embedding/kernel": ("big_vision",),
    **dict.fromkeys(RADIO_PATCHES, ("radio",)),
}

# Modules that only wrap another one: torch's DataParallel, torch.compile, FSDP, activation checkpoints.
_WRAPPER = re.compile(r"(^|(?<=\.))(module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")

# Copies of one network in a file. By default, averages that their authors evaluate are preferred.
_EVALUATED = ("teacher", "target_encoder")
_AVERAGED = re.compile(
    r"(.+_)?(ema|EMA)(_.+)?|teacher|target_(encoder|network)|momentum_encoder|encoder_k|(averaged|swa)_model"
)
_TRAINED = ("base_encoder", "encoder_q", "model", "state_dict", "model_state_dict", "model_state", "net")
_TRAINED += ("network", "params", "", "encoder", "online_network", "online_model", "student")
_BESIDE_AVERAGES = ("online_model", "online_network")  # in lucidrains' ema_pytorch, within "ema"
_CONTAINER = re.compile(
    rf"(.+_)?(ema|EMA)(_.+)?|teacher|{'|'.join(name for name in _TRAINED if name and 'encoder' not in name)}"
)

# The values of `params` that select a copy -> the trained or the averaged one.
COPIES = {"params": "params", "ema": "ema", "teacher": "ema", "student": "params"}

# Heads of transformers stand outside the prefix of the encoder.
HEADS = re.compile(r"(visual_projection|classifier|cls_classifier|distillation_classifier)\.(weight|bias)")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Network:
    """The network of a file that is loaded, by plain names."""

    patch: str  # the name of the patch embedding
    prefix: str  # the text before it in the file
    file_names: dict[str, str]  # plain names -> names in the file
    asked: dict[str, str]  # the same for tensors that leave_out matches
    left_out: dict[str, str]  # names in the file -> what they are
    # Of those, the text tower and what joins it to the network: plain names -> names in the file.
    text: dict[str, str]
    note: str  # which of several copies is loaded


def pick_network(weights: Weights, *, params: str | None, leave_out: Sequence[str]) -> Network:
    """The network of `weights` that is loaded, and the tensors that are left out.

    Of several copies, `params` selects the trained one ("params" or "student") or the averaged one ("ema" or
    "teacher"); None selects the one that the family evaluates. `leave_out` has fnmatch patterns of names in
    the file. Raises CheckpointError if there is no such copy, no Vision Transformer, or a pattern that
    matches nothing.
    """
    if params is not None:
        params = lookup(COPIES, params, "params")
    asked = _matched(weights, leave_out)
    names = _unwrapped(name for name in weights.shapes if name not in asked)
    found = _find_patches(weights, names, asked)
    before = {prefix: names[prefix + patch].removesuffix(patch) for prefix, patch in found.items()}
    prefix, others = _pick(before, params, weights.where)
    copies = [_before_shared(other, prefix) for other in others]
    file_names, left_out, text = _strip(names, prefix, copies, weights.shapes)
    return Network(
        patch=found[prefix],
        prefix=before[prefix],
        file_names=file_names,
        asked=_strip({_WRAPPER.sub("", name): name for name in asked}, prefix, copies, weights.shapes)[0],
        left_out=left_out | {name: f"leave_out='{pattern}'" for name, pattern in asked.items()},
        text=text,
        note=_note(prefix, others),
    )


def is_matched(name: str, pattern: str) -> bool:
    """Whether a pattern of leave_out matches a name in a file, with or without wrappers of the network."""
    short = _WRAPPER.sub("", name)
    return any(fnmatch.fnmatchcase(text, pattern) for text in (name, short, _after_containers(short)))


def _matched(weights: Weights, leave_out: Sequence[str]) -> dict[str, str]:
    matched: dict[str, str] = {}
    for pattern in leave_out:
        names = [name for name in weights.shapes if is_matched(name, pattern)]
        if not names:
            some = ", ".join([*list(weights.shapes)[:2], *list(weights.shapes)[-2:]])
            raise CheckpointError(
                f"leave_out='{pattern}' matches no tensor of {weights.where}, which has "
                f"{len(weights.shapes)}, such as {some}"
            )
        matched |= {name: pattern for name in names if name not in matched}
    return matched


def _unwrapped(names: Iterable[str]) -> dict[str, str]:
    """{name without wrappers: name}. Raises CheckpointError if two names become one."""
    plain: dict[str, str] = {}
    for name in names:
        short = _WRAPPER.sub("", name)
        if short in plain:
            raise CheckpointError(
                f"'{plain[short]}' and '{name}' differ only in the names of wrappers: "
                "name one of them in leave_out"
            )
        plain[short] = name
    return plain


def _find_patches(weights: Weights, names: Mapping[str, str], asked: Mapping[str, str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for name, in_file in names.items():
        for patch in PATCH_NAMES:
            prefix = name.removesuffix(patch)
            is_at_border = prefix == "" or prefix[-1] in "./"
            axes = 2 if patch in RADIO_PATCHES else 4
            if name.endswith(patch) and is_at_border and len(weights.shapes[in_file]) == axes:
                if patch == "conv1.weight" and prefix + "positional_embedding" not in names:
                    continue  # a ResNet of CLIP
                found[prefix] = patch
    # The optimizer moments of big_vision have the names of parameters.
    found = {
        p: n for p, n in found.items() if p.startswith("opt/target/") or not search(TRAINING_STATE, p + n)
    }
    if found:
        return found
    if taken := [name for name in asked if name.endswith(tuple(PATCH_NAMES))]:
        raise CheckpointError(f"{weights.where}: leave_out='{asked[taken[0]]}' takes '{taken[0]}', {NEEDED}")
    refuse_quantised(weights.dtypes, weights.where)  # packed patch embeddings have other shapes
    first = ", ".join(list(weights.shapes)[:3]) or "no tensors"
    raise CheckpointError(
        f"{weights.where} holds no Vision Transformer that is known: there is no patch embedding among "
        f"its {len(weights.shapes)} tensors ({first} ...); known are {', '.join(SOURCES)}"
    )


NEEDED = "which the model needs; only heads, the mask token and tensors without a place can be left out"


def _parts(prefix: str) -> list[str]:
    return re.split(r"[./]", prefix[:-1]) if prefix else []


def _is_averaged(prefix: str) -> bool:
    """Whether a part of the prefix names an average, and no later part the trained copy beside it."""
    parts = _parts(prefix)
    while parts and parts[-1] not in _BESIDE_AVERAGES:
        if _AVERAGED.fullmatch(parts.pop()):
            return True
    return False


def _after_containers(name: str) -> str:
    """The name without the names of containers of a whole network, such as "state_dict." """
    parts = name.split(".")
    while len(parts) > 1 and _CONTAINER.fullmatch(parts[0]):
        del parts[0]
    return ".".join(parts)


def _pick(before: Mapping[str, str], params: str | None, where: str) -> tuple[str, list[str]]:
    """(prefix of the copy that is loaded, prefixes of the others); `before`: {prefix: prefix in the file}."""

    def order(prefix: str) -> tuple[int, int, int]:
        parts = _parts(prefix) or [""]
        group = 2 if _is_averaged(prefix) else 1
        group = group if set(_EVALUATED).isdisjoint(parts) else 0
        return group, min([_TRAINED.index(p) for p in parts if p in _TRAINED] or [len(_TRAINED)]), len(prefix)

    able = [prefix for prefix in before if params is None or _is_averaged(prefix) == (params == "ema")]
    shown = ", ".join(_shown(prefix) for prefix in before)
    if not able and params == "ema":
        raise CheckpointError(
            f"{where} has no averaged parameters, but params='ema': it holds {shown}; averages "
            "are recognized by names such as state_dict_ema, model_ema, ema and teacher"
        )
    if not able:
        raise CheckpointError(
            f"{where} has averaged parameters only, in {shown}, but params='params': give params='ema'"
        )
    prefix = min(able, key=order)
    others = [other for other in before if other != prefix]
    for other in others:
        (name,) = _parts(_before_shared(other, prefix))[-1:] or [""]
        if name not in _TRAINED and not _AVERAGED.fullmatch(name):
            raise CheckpointError(
                f"{where} holds several networks, {shown}: name all but one in leave_out, such as "
                f"leave_out=['{before[other]}*']"
            )
    return prefix, others


def _before_shared(prefix: str, other: str) -> str:
    """The prefix without its last parts that `other` shares."""
    mine, theirs = _parts(prefix), _parts(other)
    while mine and theirs and mine[-1] == theirs[-1]:
        prefix = prefix[: len(prefix) - len(mine.pop()) - 1]
        theirs.pop()
    return prefix


def _shown(prefix: str) -> str:
    return f"'{prefix.rstrip('./')}'" if prefix else "names without a prefix"


def _note(prefix: str, others: Sequence[str]) -> str:
    if not others:
        return f"{_shown(prefix)} is read, an average" if _is_averaged(prefix) else ""
    choice = "params" if _is_averaged(prefix) else "ema"
    theirs = [
        _shown(_before_shared(other, prefix))
        + (f" (params='{choice}')" if _is_averaged(other) != _is_averaged(prefix) else "")
        for other in others
    ]
    mine = _shown(_before_shared(prefix, others[0]))
    return f"of the copies in the file {mine} is read, not {', '.join(theirs)}"


def _strip(
    names: Mapping[str, str], prefix: str, copies: Sequence[str], shapes: Mapping[str, tuple[int, ...]]
) -> tuple[dict[str, str], dict[str, str], dict[str, str]]:
    """{plain name: name in the file}, {name in the file: why it is left out}, {plain name: name in the file}.

    They are the network with its heads, what is left out, and of this the text tower. A tensor that is none
    of them keeps its name, and is refused later because it has no place in the model.
    """
    plain: dict[str, str] = {}
    left_out: dict[str, str] = {}
    text: dict[str, str] = {}
    root = prefix.removesuffix(_after_containers(prefix))
    inner = prefix.removeprefix(root)
    root += next((start for start in ("params/", "opt/target/") if inner.startswith(start)), "")
    inside, beside = unused_patterns(names, prefix, _parts(prefix), has_copies=bool(copies))
    for name, in_file in names.items():
        inner, outer = name.removeprefix(prefix), name.removeprefix(root)
        owner = max((p for p in (prefix, *copies) if name.startswith(p)), key=len, default=None)
        if owner == prefix:
            what = search(inside, inner)
        elif owner is not None:
            what = "another copy of the network"
        else:
            is_head = HEADS.fullmatch(outer)
            inner = outer if is_head else name
            what = None if is_head else search(beside, outer) or search(beside, name)
            if what in (TEXT_TOWER, IMAGE_PROJECTION):
                text[outer] = in_file
            if what is None and shapes[in_file] == ():
                what = "numbers beside the network"
        if what:
            left_out[in_file] = what
        else:
            plain[inner] = in_file
    # DINOv2's training checkpoints have blocks.<chunk>.<i>.x for blocks.<i>.x; i counts all blocks.
    plain = {re.sub(r"^blocks\.\d+\.(\d+)\.", r"blocks.\1.", name): old for name, old in plain.items()}
    return plain, left_out, text
