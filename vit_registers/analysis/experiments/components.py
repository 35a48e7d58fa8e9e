"""components: principal components of the patches after the last block. No JAX."""

import numpy as np
from sklearn.decomposition import PCA

from vit_registers.analysis.experiments.experiment import REGISTERS, Experiment
from vit_registers.analysis.options import Options
from vit_registers.analysis.report.colors import DEVIATIONS
from vit_registers.analysis.report.result import Found, Gap, Picture, Pictures, Rows, counted, number, percent
from vit_registers.analysis.report.tiles import tiles
from vit_registers.analysis.subject import Subject

_MOST_TOKENS = 50_000  # that components are fitted to


def _measure(subject: Subject, options: Options) -> Rows | Gap:
    patches_BxPxD = subject.store.read("patches_PxD")
    num_images, num_patches, width = patches_BxPxD.shape
    fitted_images = min(num_images, max(_MOST_TOKENS // num_patches, 1))
    tokens = np.asarray(patches_BxPxD[:fitted_images]).reshape(-1, width)
    count = min(3, *tokens.shape)
    if (tokens == tokens[0]).all():
        return Gap(f"{subject.name}: its patches are all the same, so that they have no components")
    size = float(np.abs(tokens).max())  # its square may overflow float32
    pca = PCA(count, whiten=True, svd_solver="covariance_eigh").fit(tokens / size)
    shares = [float(share) for share in pca.explained_variance_ratio_]
    shown = np.asarray(patches_BxPxD[: options.num_examples])
    maps = pca.transform(shown.reshape(-1, width) / size)
    maps_BxHxWxM = maps.reshape(len(shown), *subject.layout.patch_grid, count)
    first = "the first component has" if count == 1 else f"the first {count} components have"
    return Rows(
        tables={"Variance of the components": [(len(tokens), *map(percent, shares), *[None] * (3 - count))]},
        text=f"{first} {', '.join(number(100 * share, '%') for share in shares)} of the variance of "
        f"{len(tokens):,} patches",
        compared=100 * shares[0],
        count=counted(fitted_images, "image"),
        values=(subject.example_NxHxWxC, np.moveaxis(maps_BxHxWxM, -1, 1)),
    )


def _draw(found: Found) -> Pictures:
    for one in found:
        images, maps_BxMxHxW = one.values
        count = maps_BxMxHxW.shape[1]
        yield Picture(
            name=f"components-{one.name}",
            caption=f"{one.name}: the image, then components 1 to {count}, in standard deviations from "
            "-3 to 3.",
            figure=tiles(
                [list(images), *[[None] * len(images)] * count],
                [[None] * len(images), *(list(maps_BxMxHxW[:, i]) for i in range(count))],
                rows=("image", *(f"component {i + 1}" for i in range(count))),
                cmap=DEVIATIONS,
                limits=(-3.0, 3.0),
                label="standard deviations",
            ),
        )


EXPERIMENT = Experiment(
    question="What do the principal components of the patches show?",
    answers=f"{REGISTERS}, figures 17 and 20",
    definition="Principal components of the patches that the last block leaves, before the final norm, "
    "of all images together; whitened, so that maps are in standard deviations.",
    tables={"Variance of the components": "model | tokens fitted | share of variance 1, % | 2, % | 3, %"},
    measure=_measure,
    features=("patches_PxD",),
    draw=_draw,
    compares="share of variance of the first component, %",
)
