"""The data sets of the papers by suite: `evaluate --suite=NAME`. Imports nothing slow."""

from typing import NamedTuple


class Member(NamedTuple):
    """One data set of a suite: a name of TFDS, or of a folder in data.data_dir, and its splits."""

    name: str
    train: str = "train"
    test: str = "test"
    obstacle: str = ""  # why it cannot be measured
    note: str = ""  # how it differs from the data of the paper


SUITES: dict[str, tuple[Member, ...]] = {
    # arXiv:2309.16588, table 1: logistic regression on single tokens
    "registers": (
        Member("imagenet2012", test="validation"),
        Member("places365_small", test="validation", note="Places365 instead of Places205"),
        Member("fgvc_aircraft", note="not in TFDS: a folder data.data_dir/fgvc_aircraft/SPLIT/CLASS"),
        Member("cifar10"),
        Member("cifar100"),
        Member("caltech_birds2011"),
        Member("caltech101"),
        Member("cars196"),
        Member("dtd"),
        Member("oxford_flowers102"),
        Member("food101", test="validation"),
        Member("oxford_iiit_pet"),
        Member("sun397"),
        Member(
            "voc/2007", obstacle="its images have several classes each, and no task here learns from them"
        ),
    ),
    # Registers in Small Vision Transformers, tables 2, 4 and 5
    "small_vits": (
        Member("imagenette", test="validation"),
        Member("caltech101"),
        Member("oxford_flowers102"),
        Member("cifar10"),
    ),
}
