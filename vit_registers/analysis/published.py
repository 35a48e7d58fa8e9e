"""Published numbers that stand beside ours in the report, by experiment: PUBLISHED.

Only numbers that were read in a source that the title names; None where a source has a cell whose number
could not be read. They are of other models, images and protocols than ours, and a reader compares with care.
"""

from vit_registers.analysis.report.result import Cell, Table

REGISTERS, DECOUPLING, TEST_TIME = "arXiv:2309.16588", "arXiv:2505.05892", "arXiv:2506.08010"
FRACTAL, LOST = "arXiv:2601.15506", "arXiv:2109.14279"
SMALL = "Registers in Small Vision Transformers"

_ONE_TOKEN = """
ImageNet    86.0  65.8 0.1  69.0 0.7
Places205   66.4  53.1 0.3  55.1 1.0
Aircraft    87.3  17.1 0.5  79.1 0.5
CIFAR-10    99.4  97.1 0.1  99.3 0.0
CIFAR-100   94.5  81.3 0.3  93.7 0.3
CUB         91.3  18.6 0.6  84.9 2.1
Caltech-101 96.9  73.2 1.3  97.6 0.7
Cars        91.5  10.8 0.3  85.2 0.9
DTD         85.2  63.1 0.8  84.9 0.9
Flowers     99.7  59.5 1.2  99.6 0.0
Food        94.7  74.2 0.3  93.5 0.2
Pets        96.9  47.8 0.5  94.1 0.2
SUN         78.6  37.7 0.3  78.5 0.2
VOC         89.1  70.8 0.5  89.7 0.1
"""
# model, registers, data; outlier, std, other patch, std, cls, std: in parts of 1
_SMALL_TOKEN = """
DeiT-III-S 0 Imagenette  .9568 .0076 .9462 .0019 1.0   -
DeiT-III-S 4 Imagenette  .9759 .0010 .9781 .0036 1.0   -
DeiT-III-S 0 Caltech-101 .8540 .0078 .7161 .0062 .9988 .0002
DeiT-III-S 4 Caltech-101 .8153 .0046 .7941 .0058 .9990 .0004
DeiT-III-S 0 Flowers-102 .5608 .0319 .1966 .0087 1.0   -
DeiT-III-S 4 Flowers-102 .2427 .0153 .3180 .0217 1.0   -
DeiT-III-S 0 CIFAR-10    .7853 .0067 .7534 .0103 .9251 .0017
DeiT-III-S 4 CIFAR-10    .7841 .0074 .7727 .0030 .9285 .0034
DINOv2-S   0 Imagenette  .9724 .0025 .9632 .0015 1.0   -
DINOv2-S   4 Imagenette  .9859 .0011 .9757 .0029 1.0   -
DINOv2-S   0 Caltech-101 .9439 .0048 .9123 .0081 .9994 .0004
DINOv2-S   4 Caltech-101 .9602 .0027 .9442 .0075 .9992 .0008
DINOv2-S   0 Flowers-102 .9000 .0027 .7255 .0121 -     -
DINOv2-S   4 Flowers-102 .9468 .0180 .8720 .0236 -     -
DINOv2-S   0 CIFAR-10    .9399 .0034 .9222 .0038 -     -
DINOv2-S   4 CIFAR-10    .9485 .0010 .9434 .0022 -     -
"""


def _rows(text: str) -> list[tuple[Cell, ...]]:
    """A row for each line, '-' as None and numbers as numbers."""

    def cell(word: str) -> Cell:
        if word == "-":
            return None
        try:
            return float(word) if "." in word else int(word)
        except ValueError:
            return word

    return [tuple(map(cell, line.split())) for line in text.strip().splitlines()]


def _table(title: str, columns: str, *rows: tuple[Cell, ...]) -> Table:
    """A table whose columns are given in one text, divided by '|'."""
    return Table(title=title, columns=tuple(name.strip() for name in columns.split("|")), rows=rows)


_ACCURACY = [
    _table(
        f"{SMALL}, section 4.1: DeiT-III-S on ImageNet, 800 epochs, one run each",
        "registers | top-1, %",
        *((0, 81.05), (2, 80.96), (4, 80.81), (8, 81.04), (16, 81.07)),
    ),
    _table(
        f"{SMALL}, logs in its code: the last epoch",
        "registers | top-1, % | top-5, % | parameters",
        (0, 81.054, 95.222, 22_059_496),
        (4, 80.810, 95.033, 22_061_032),
    ),
    _table(
        f"{FRACTAL}, text: ViT-S/16 on ImageNet, 90 epochs",
        "positions | extra tokens | top-1, %",
        ("sincos2d", "none", "about 76.9"),
        ("sincos2d", "not stated", "77.68"),
        ("none", "not stated", "72.93"),
    ),
]
_CURVES = _table(
    f"{SMALL}, logs in its code: top-1, %, of DeiT-III-S on ImageNet",
    "epoch | 0 registers | 4 registers",
    *((99, 57.83, 57.98), (199, 62.46, 62.51), (299, 66.56, 67.35), (399, 71.31, 71.66)),
    *((499, 75.10, 75.00), (599, 78.17, 77.97), (699, 80.28, 80.25)),
)
_NORMS = _table(
    f"{REGISTERS}, figure 3 and its text: DINOv2-g",
    "rule | patches flagged, %",
    ("absolute:150", 2.37),
)
_LAYERS = [
    _table(
        f"{REGISTERS}, figure 4a: where outliers separate",
        "model | block | blocks",
        ("DINOv2-g", "about 15", 40),
    ),
    _table(
        f"{TEST_TIME}, figure 2: after which MLP the largest norm jumps",
        "model | block | blocks",
        ("OpenCLIP ViT-B/16", 6, 12),
    ),
]
_SIZES = _table(
    f"{REGISTERS}, figure 4c: DINOv2 by size",
    "size | outliers",
    *((size, "no") for size in ("Ti", "S", "B")),
    *((size, "yes") for size in ("L", "H", "g")),
)
_POSITIONS = _table(
    f"{REGISTERS}, figure 10: patches above the threshold at single positions, in stripes",
    "model | most frequent position, %",
    ("DINOv2, official, without antialiasing", "more than 20"),
)
_TRAINING = _table(
    f"{REGISTERS}, figure 4b: when outliers appear",
    "model | share of training",
    ("DINOv2", "about 1/3"),
)
_PROBES = [
    _table(
        f"{REGISTERS}, tables 1 and 6: accuracy, %, of logistic regression on one token of DINOv2-g; std "
        "over the choice of the patch",
        "data | cls | other patch | std | outlier | std of outlier",
        *_rows(_ONE_TOKEN),
    ),
    _table(
        f"{TEST_TIME}, table 1: accuracy, %, of linear probes on one token of DINOv2-L",
        "token | ImageNet | CIFAR-10 | CIFAR-100",
        ("cls", 85.6, 99.4, 93.4),
        ("central patch", 73.3, 98.0, 88.1),
        ("outlier", 84.5, 99.2, 92.8),
        ("trained register", 83.1, 99.2, 93.0),
        ("test-time register", 84.5, 99.1, 93.0),
    ),
    _table(
        f"{SMALL}, tables 2, 4 and 5: accuracy of logistic regression on one token, in parts of 1; outliers "
        "are the largest 2 % of norms, with and without registers. cls = 1.0 on Flowers-102 looks like "
        "accuracy on the images of training. Four cells of DINOv2-S could not be read",
        "model | registers | data | outlier | std of outlier | other patch | std | cls | std of cls",
        *_rows(_SMALL_TOKEN),
    ),
]
_RECONSTRUCTION = _table(
    f"{SMALL}, section 4.2.1: mean squared error of an MLP, DeiT-III-S without registers. The printed "
    "numbers are sums over 61 batches; outliers are 47.1 % above the others, not 147.1 %. By its code, the "
    "targets are no patches of the image: ours cannot be compared",
    "patches | printed | divided by 61",
    ("largest 2 % of norms", 176.54, 2.894),
    ("others", 120.02, 1.968),
)
_LOST = [
    _table(f"{LOST}, as in its code: DINO ViT-S/16, keys", "VOC07 | VOC12 | COCO20k", (61.9, 64.0, 50.7)),
    _table(
        f"{REGISTERS}, table 3: CorLoc, %, on VOC07; values of DeiT-III and OpenCLIP, keys of DINOv2; a bias "
        "chosen by hand for each model",
        "model | without registers | with 4 registers",
        ("DeiT-III-B", 11.7, 27.1),
        ("OpenCLIP-B", 38.8, 37.1),
        ("DINOv2-L", 35.3, 55.4),
    ),
    _table(
        f"{TEST_TIME}, table 5: CorLoc, %; the best of q, k and v, the last four blocks and many biases",
        "model | registers | VOC07 | VOC12 | COCO20k",
        ("DINOv2-L", "none", 32.2, 36.8, 25.4),
        ("DINOv2-L", "trained", 56.2, 60.2, 42.3),
        ("DINOv2-L", "test-time", 53.8, 57.9, 41.9),
        ("OpenCLIP ViT-B/16", "none", 30.8, 35.9, 23.4),
        ("OpenCLIP ViT-B/16", "test-time", 30.9, 35.9, 23.6),
    ),
    _table(
        f"{SMALL}, table 1: CorLoc, %, on VOC07; centred, normalised, a bias of 0.05. DeiT-III, by its code, "
        "on 3,550 of the 5,011 images, cropped: not to be compared with the other rows",
        "model | registers | VOC07",
        *(("DINOv2-L", 0, 33.77), ("DINOv2-L", 4, 35.24), ("DINOv2-S", 0, 37.48), ("DINOv2-S", 4, 32.93)),
        *(("DINO", 0, 61.48), ("DeiT-III-S", 0, 15.13), ("DeiT-III-S", 2, 15.49), ("DeiT-III-S", 4, 17.92)),
        *(("DeiT-III-S", 8, 18.03), ("DeiT-III-S", 16, 19.01)),
    ),
]
_COST = [
    _table(
        f"{REGISTERS}, figure 12: more operations than without registers",
        "registers | more, %",
        *((4, "less than 2"), (16, "up to 6")),
    ),
    _table(
        f"{SMALL}, table 6: energy and CO2. The printed 0.58 MWh are not the product of its own factors, "
        "0.634 MWh; its text has 256.4 kg",
        "hours | watts | PUE | MWh, printed | t CO2, printed",
        (1320, 400, 1.2, 0.58, 0.26),
    ),
]
_NEURONS = _table(
    f"{TEST_TIME}, text and appendix: settings of the search for register neurons",
    "model | top layer | threshold | register neurons | of all",
    ("OpenCLIP ViT-B/16", 5, 75, 10, None),
    ("DINOv2-L/14", None, None, 45, None),
    ("CLIP ViT-L of LLaVA", None, None, 100, "about 100,000"),
    ("InternViT-6B", 29, None, 300, "576,000"),
)
_TEST_TIME = [
    _table(
        f"{TEST_TIME}, table 2: linear probes; top-1 on ImageNet, mIoU on ADE20k, RMSE on NYUd",
        "model | registers | ImageNet, % | ADE20k, % | NYUd",
        ("DINOv2-L", "none", 86.4, 48.3, 0.388),
        ("DINOv2-L", "trained", 86.7, 49.1, 0.382),
        ("DINOv2-L", "test-time", 86.4, 49.1, 0.378),
        ("OpenCLIP ViT-B/16", "none", 77.4, 40.1, 0.603),
        ("OpenCLIP ViT-B/16", "test-time", 77.5, 40.3, 0.596),
    ),
    _table(
        f"{TEST_TIME}, table 3: zero-shot top-1 on ImageNet, %",
        "model | without | with a test-time register",
        *(("ViT-L/14", 76.4, 76.4), ("ViT-B/16", 71.3, 71.3)),
    ),
    _table(
        f"{TEST_TIME}, section 6.2: top-1, %, of ViT-B/16 with neurons set to zero; table 3 has 71.3 before",
        "neurons | before | after | std",
        ("10 register neurons", 70.4, 55.6, None),
        ("10 at random", 70.4, 69.3, 1.1),
    ),
]
_BIAS = _table(
    f"{TEST_TIME}, table 7: zero-shot top-1 on ImageNet, %, of ViT-B/16",
    "what is done | top-1, %",
    ("register neurons set to zero", 55.6),
    ("attention bias in their place", 71.3),
)

PUBLISHED: dict[str, list[Table]] = {
    "curves": [_CURVES],
    "accuracy": _ACCURACY,
    "norms": [_NORMS],
    "norms-by-layer": _LAYERS,
    "norms-by-size": [_SIZES],
    "norms-by-position": [_POSITIONS],
    "over-training": [_TRAINING],
    "probe-global": _PROBES,
    "probe-reconstruction": [_RECONSTRUCTION],
    "lost": _LOST,
    "cost": _COST,
    "register-activations": [
        _table(
            f"{DECOUPLING}, figure 2b and its text: the register of the highest norm before the last block "
            "of DINOv2-g with registers",
            "cosine between images",
            (0.9989,),
        )
    ],
    "cls-patches-only": [
        _table(
            f"{DECOUPLING}, figure 4: one image, DINOv2-g with registers",
            "cosine of the patches' part with the whole",
            (-0.0092,),
        )
    ],
    "register-neurons": [_NEURONS],
    "test-time-registers": _TEST_TIME,
    "attention-bias": [_BIAS],
}
