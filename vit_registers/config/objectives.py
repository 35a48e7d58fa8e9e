"""The settings of objectives: `objective.name` and one section for each objective that has settings."""

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassificationSettings:
    """Supervised classification: the loss, and how images and labels are mixed."""

    loss: str = "softmax"  # objectives/losses.py: softmax | sigmoid | multi_hot
    mixup_alpha: float = 0.0  # 0: no mixup; with cutmix_alpha > 0 too, each draw takes one of the two
    cutmix_alpha: float = 0.0  # 0: no CutMix
    use_mixup_folding: bool = False  # the larger share is always the image's own: lam = max(lam, 1 - lam)
    mix_partner: str = "roll"  # roll (the previous image) | flip (the image at the mirrored place)
    mix_groups: int = 1  # equal parts of the batch that are mixed separately, as on that many devices
    mix_noise: str = "global"  # global (one draw for all groups) | per_group


@dataclasses.dataclass(frozen=True, kw_only=True)
class ObjectiveSettings:
    """What is minimised. The section of an objective has an effect only if `name` selects it."""

    name: str = "classification"  # objectives/catalog.py: OBJECTIVES
    classification: ClassificationSettings = ClassificationSettings()


# Settings that had another name in earlier versions: {old name: name}.
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
