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
    # The share of each label that is spread evenly over all classes, in training; 0 with loss='multi_hot'.
    label_smoothing: float = 0.0
    # Of 1 - cosine of neighbouring patches, which is added to the loss and logged as neighbour_distance
    # (arXiv:2505.05892, section 5). 0: off.
    neighbour_weight: float = 0.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class SelfDistillationSettings:
    """Self-distillation as in DINOv2: crops, masks, heads, losses, teacher. Defaults: its short recipe.

    Shares are of the steps of the run, so that all schedules follow its length.
    """

    num_locals: int = 8  # local crops of an image; global crops are 2, of the size of the model's images
    local_size: int = 96  # px of a local crop's side; must be a multiple of the patch size
    # Operations of the first and of the second global crop, as data.train_ops. The released models were
    # trained without blur in the first crop and with probability 0.9 in the second; the paper has 1 and 0.1.
    global_ops: tuple[str, str] = (
        "random_resized_crop(0.32, 1.0) | flip | jitter(0.4, 0.4, 0.2, 0.1, p=0.8) | grayscale(0.2)",
        "random_resized_crop(0.32, 1.0) | flip | jitter(0.4, 0.4, 0.2, 0.1, p=0.8) | grayscale(0.2) "
        "| blur(0.9) | solarize(0.2)",
    )
    # Operations of local crops, as data.train_ops.
    local_ops: str = (
        "random_resized_crop(0.05, 0.32) | flip | jitter(0.4, 0.4, 0.2, 0.1, p=0.8) | grayscale(0.2) "
        "| blur(0.5)"
    )
    # Masks of the student's global crops: exact (the same number of patches in every batch) | released (as
    # DINOv2's code).
    masks: str = "exact"
    mask_share: float = 0.5  # of the global crops that are masked
    mask_ratios: tuple[float, float] = (0.1, 0.5)  # least and largest share of the patches of a masked crop
    mask_min_patches: int = 4  # of a block of a mask; 1 for grids as small as 4 x 4
    mask_group: int = 64  # images that share the slots of masks; must divide the batch
    num_prototypes: int = 65_536  # of the head
    head_hidden: int = 2048  # width of the heads' MLPs
    head_bottleneck: int = 256  # width of the head's last layer
    has_ibot_head: bool = False  # whether masked patches have a head of their own
    ibot_prototypes: int = 65_536  # of the head of masked patches
    ibot_bottleneck: int = 256  # width of its last layer
    targets: str = "centring"  # centring | sinkhorn (over the whole batch)
    temperatures: tuple[float, float] = (
        0.04,
        0.07,
    )  # of the teacher, at the start and after temperature_share
    temperature_share: float = 0.3  # of the run, over which the temperature changes
    momentum: tuple[float, float] = (0.992, 1.0)  # of the teacher, at the start and at the end
    dino_weight: float = 1.0  # of the loss of cls tokens
    ibot_weight: float = 1.0  # of the loss of masked patches
    koleo_weight: float = 0.1  # of KoLeo, which spreads the cls tokens of different images
    koleo_group: int = 64  # images of one view, among which neighbours are searched; divides the batch
    chunk_rows: int = 104  # rows of the heads whose logits a device holds at a time


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageTextSettings:
    """Images and the texts that describe them are compared, as in CLIP and SigLIP. Defaults: those of CLIP.

    The text tower has a section of its own, `text`, and texts are settings of the data.
    """

    loss: str = "clip"  # clip (softmaxes over images and over texts) | siglip (a sigmoid for each pair)
    # Of cosines, at the start. It is trained, and stays from 1 to 100 with clip. SigLIP: 10.
    initial_scale: float = 1 / 0.07
    initial_bias: float = -10.0  # of the logits of siglip, at the start; it is trained
    # Whether a matrix makes image vectors of text.embed_dim of what the model pools (not in SigLIP, whose
    # model.pooling is map).
    has_image_projection: bool = True
    chunk: int = 1024  # texts whose logits with its images a device holds at a time
    # The pairs that are compared: each `group` consecutive ones of a batch. None: all of the batch.
    group: int | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class LanguageModelSettings:
    """Bytes are predicted: each from those before it (a decoder), or hidden ones from others."""

    # next (requires a causal mask) | hidden (as BERT) | any_order (a number of hidden bytes from one to all).
    predicts: str = "next"
    # With predicts=hidden: the part of a sequence that is hidden in training, rounded to a number of bytes
    # that is the same for all. An evaluation hides each byte once, in round(1 / share) passes.
    share: float = 0.15


@dataclasses.dataclass(frozen=True, kw_only=True)
class ObjectiveSettings:
    """The objective, which is minimised. Its section has an effect only if `name` selects it."""

    name: str = "classification"  # classification | self_distillation | image_text | language_model
    classification: ClassificationSettings = ClassificationSettings()
    self_distillation: SelfDistillationSettings = SelfDistillationSettings()
    image_text: ImageTextSettings = ImageTextSettings()
    language_model: LanguageModelSettings = LanguageModelSettings()


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
