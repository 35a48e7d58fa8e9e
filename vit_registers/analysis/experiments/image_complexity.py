"""image-complexity: whether images with more detail have more outliers, and use registers more. No JAX."""

import io

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from PIL import Image
from scipy import ndimage, stats

from vit_registers.analysis.experiments.experiment import CAUSES, Experiment
from vit_registers.analysis.options import Options
from vit_registers.analysis.report.figures import legend_name, overlay_picture
from vit_registers.analysis.report.result import Gap, Rows, counted, number
from vit_registers.analysis.subject import Subject, in_parts

FEWEST_IMAGES = 4  # of fewer, a rank correlation has no p value
MEASURES = ("JPEG bytes", "entropy", "edges")


def complexity(image_HxWxC: np.ndarray) -> tuple[float, float, float]:
    """MEASURES of a uint8 image of one channel or three.

    The bytes of a JPEG of quality 90; the entropy of the histogram of its grey levels, in bits; the mean
    magnitude of the Sobel gradient of the grey levels, per pixel.
    """
    image = Image.fromarray(image_HxWxC.squeeze(axis=-1) if image_HxWxC.shape[-1] == 1 else image_HxWxC)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=90)
    grey_HxW = np.asarray(image.convert("L"), np.float64)
    counts = np.bincount(grey_HxW.astype(np.uint8).ravel(), minlength=256)
    entropy = float(stats.entropy(counts, base=2))
    edges = float(np.hypot(ndimage.sobel(grey_HxW, 0), ndimage.sobel(grey_HxW, 1)).mean())
    return float(file.tell()), entropy, edges


def _measure(subject: Subject, options: Options) -> Rows | Gap:
    images = subject.store.read("image_HxWxC")
    if len(images) < FEWEST_IMAGES:
        return Gap(f"{subject.name}: a correlation needs {FEWEST_IMAGES} images or more, not {len(images)}")
    parts = [complexity(image) for part in in_parts(len(images)) for image in np.asarray(images[part])]
    complexity_BxM = np.array(parts)
    traits = {"outliers": subject.outliers(options.rule).is_outlier_BxP.sum(axis=1)}
    traits["largest patch norm"] = subject.patch_norms().max(axis=1)
    groups = list(subject.layout.groups)
    if "registers" in groups:
        mass_BxGxG = subject.store.read("mass_LxGxG")[:, -1]
        traits["attention of patches to registers"] = mass_BxGxG[
            :, groups.index("patches"), groups.index("registers")
        ]
    rows, gaps = [], []
    for trait, value_B in traits.items():
        if np.ptp(value_B) == 0:
            gaps.append(
                f"{subject.name}: '{trait}' is the same for all images, so nothing correlates with it"
            )
            continue
        for measure, detail_B in zip(MEASURES, complexity_BxM.T, strict=True):
            correlation, p_value = map(float, tuple(stats.spearmanr(detail_B, value_B)))
            rows.append((trait, measure, correlation, p_value, len(images)))
    if not rows:
        return Gap(gaps[0])
    strongest = max(rows, key=lambda row: abs(row[2]) if np.isfinite(row[2]) else -1.0)
    trait, measure, correlation, p_value, _ = strongest
    strength = f"rank correlation {number(correlation)}, p = {number(p_value)}"
    return Rows(
        tables={"Rank correlation with image complexity": rows},
        text=f"{trait} and {measure} correlate most ({strength})",
        compared=next((row[2] for row in rows if row[:2] == ("outliers", "JPEG bytes")), None),
        count=counted(len(images), "image"),
        values=(complexity_BxM[:, 0], traits["outliers"]),
        gaps=gaps,
    )


def _points(axes: Axes, values: tuple[np.ndarray, np.ndarray], color: str, name: str) -> None:
    bytes_B, outliers_B = values
    axes.plot(bytes_B, outliers_B, "o", ms=3, alpha=0.4, color=color, label=legend_name(name))
    axes.set(xlabel="bytes as JPEG", ylabel="outliers in the image")
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))


EXPERIMENT = Experiment(
    question="Do images with more detail have more outliers, and is more attention given to registers?",
    answers=CAUSES,
    definition=lambda options: (
        "Spearman's rank correlation over images, with its p value for no correlation (several are tested, "
        "so some are small by chance). Complexity: bytes as a JPEG of quality 90, entropy of the grey levels "
        "in bits, mean magnitude of the Sobel gradient. Outliers are patches after the last block by "
        f"{options.rule}; attention is that of the last block, mean over heads and patches."
    ),
    tables={"Rank correlation with image complexity": "model | of | with | correlation | p | images"},
    measure=_measure,
    features=("norms_LxT", "image_HxWxC", "mass_LxGxG"),
    draw=overlay_picture(
        "complexity", "Outliers in an image by its bytes as JPEG, a point for each image.", _points
    ),
    compares="correlation of outliers and JPEG bytes",
)
