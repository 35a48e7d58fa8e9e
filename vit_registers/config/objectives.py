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
class ObjectiveSettings:
    """The objective, which is minimised. Its section has an effect only if `name` selects it."""

    name: str = "classification"  # classification
    classification: ClassificationSettings = ClassificationSettings()


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
