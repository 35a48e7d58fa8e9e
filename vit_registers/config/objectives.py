"""The settings of objectives: `objective.name` and one section for each objective that has settings."""

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassificationSettings:
    """Supervised classification: the loss, and how images and labels are mixed."""

    loss: str = "softmax"  # softmax | sigmoid | multi_hot
    mixup_alpha: float = 0.0  # 0: no mixup; if cutmix_alpha > 0 too, each draw selects one of them
    cutmix_alpha: float = 0.0  # 0: no CutMix
    use_mixup_folding: bool = False  # the image has the larger share: lam = max(lam, 1 - lam)
    mix_partner: str = "roll"  # roll (the previous image) | flip (the image at the mirrored position)
    mix_groups: int = 1  # parts of the batch that are mixed separately, as on separate devices
    mix_noise: str = "global"  # global (one draw for all groups) | per_group


@dataclasses.dataclass(frozen=True, kw_only=True)
class SelfDistillationSettings:
    """Self-distillation as in DINOv2: crops, masks, heads, losses, teacher. Defaults: its short recipe.

    Shares are of the steps of the run, so that all schedules follow its length.
    """

    # Crops. Global crops have the size of the model's images.
    num_locals: int = 8
    local_size: int = 96  # px; must be a multiple of the patch size
    # Operations of each crop (data/ops/catalog.py; on_device.py for data.loader=memory): of the first and of
    # the second global crop, and of local crops. The released models were trained without blur in the first
    # crop and with probability 0.9 in the second; the paper has 1.0 and 0.1.
    global_ops: tuple[str, str] = (
        "random_resized_crop(0.32, 1.0) | flip | jitter(0.4, 0.4, 0.2, 0.1, p=0.8) | grayscale(0.2)",
        "random_resized_crop(0.32, 1.0) | flip | jitter(0.4, 0.4, 0.2, 0.1, p=0.8) "
        "| grayscale(0.2) | blur(0.9) | solarize(0.2)",
    )
    local_ops: str = (
        "random_resized_crop(0.05, 0.32) | flip | jitter(0.4, 0.4, 0.2, 0.1, p=0.8) "
        "| grayscale(0.2) | blur(0.5)"
    )
    # Masks of the student's global crops (data/block_masks.py).
    masks: str = "exact"  # exact | released
    mask_share: float = 0.5  # of the crops
    mask_ratios: tuple[float, float] = (0.1, 0.5)  # of the patches of a masked crop
    mask_min_patches: int = 4
    mask_group: int = 64  # images that share the slots of masks
    # Heads.
    num_prototypes: int = 65_536
    head_hidden: int = 2048
    head_bottleneck: int = 256
    has_ibot_head: bool = False  # False: patches and cls tokens share one head
    ibot_prototypes: int = 65_536  # of the head of iBOT, if it has one
    ibot_bottleneck: int = 256
    # Targets.
    targets: str = "centring"  # centring | sinkhorn
    temperatures: tuple[float, float] = (0.04, 0.07)  # of the teacher, at the start and after its warm-up
    temperature_share: float = 0.3  # of the run, over which the temperature changes
    momentum: tuple[float, float] = (0.992, 1.0)  # of the teacher, at the start and at the end
    # Losses.
    dino_weight: float = 1.0
    ibot_weight: float = 1.0
    koleo_weight: float = 0.1
    koleo_group: int = 64  # images of one view, among which neighbours are searched
    chunk_rows: int = 1024  # rows whose logits are in memory at a time


@dataclasses.dataclass(frozen=True, kw_only=True)
class ObjectiveSettings:
    """The objective, which is minimised. Its section has an effect only if `name` selects it."""

    name: str = "classification"  # classification
    classification: ClassificationSettings = ClassificationSettings()
    self_distillation: SelfDistillationSettings = SelfDistillationSettings()


# Renamed settings: {name in earlier versions: name}.
RENAMED = {
    "optimizer.loss": "objective.classification.loss",
    **{
        f"data.{name}": f"objective.classification.{name}"
        for name in (
            "mixup_alpha",
            "cutmix_alpha",
            "use_mixup_folding",
            "mix_partner",
            "mix_groups",
            "mix_noise",
        )
    },
}
