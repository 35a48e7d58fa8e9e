"""Principal components of the patches after the last block. No JAX."""

import numpy as np
from matplotlib.figure import Figure
from sklearn.decomposition import PCA

from vit_registers.analysis.report.result import Picture, Result, Table
from vit_registers.analysis.subject import Options, Subject

_PCA_TOKENS = 50_000  # tokens that components are fitted to, at most
_PCA_SIGMA = 3.0


def components(subjects: list[Subject], options: Options) -> Result:
    """Maps of the first three principal components of the patches."""
    rows, pictures, gaps = [], [], []
    for subject in subjects:
        patches_BxPxD = subject.store.read("patches_PxD")
        num_images, num_patches, width = patches_BxPxD.shape
        fitted_images = min(num_images, max(_PCA_TOKENS // num_patches, 1))
        tokens = np.asarray(patches_BxPxD[:fitted_images]).reshape(-1, width)
        number = min(3, *tokens.shape)
        if (tokens == tokens[0]).all():
            gaps.append(f"{subject.name}: its patches are all the same, so that they have no components")
            continue
        size = float(np.abs(tokens).max())  # whose square may be too large for float32
        pca = PCA(number, whiten=True, svd_solver="covariance_eigh").fit(tokens / size)
        shares = [float(share) for share in pca.explained_variance_ratio_]
        rows.append((subject.name, len(tokens), *shares, *[None] * (3 - number)))
        shown = patches_BxPxD[: options.num_examples]
        maps = pca.transform(np.asarray(shown).reshape(-1, width) / size).reshape(
            len(shown), *subject.layout.patch_grid, number
        )
        pictures.append(
            Picture(
                name=f"components-{subject.name}",
                caption=f"{subject.name}: the image, then components 1 to {number}, in standard deviations "
                f"from -3 to 3.",
                figure=_draw(subject.example_NxHxWxC, maps),
            )
        )
    columns = ("model", "tokens fitted", "share of variance 1", "2", "3")
    return Result(
        definition="Principal components of the patches that the last block leaves, before the final norm, "
        "of all images together; whitened, so that maps are in standard deviations.",
        tables=[Table(title="Variance of the components", columns=columns, rows=rows)] if rows else [],
        pictures=pictures,
        gaps=gaps,
    )


def _draw(images: np.ndarray, maps_NxHxWxM: np.ndarray) -> Figure:
    rows, columns = len(images), 1 + maps_NxHxWxM.shape[-1]
    figure = Figure(figsize=(1.7 * columns + 0.3, 1.75 * rows + 0.3), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    for row, image in enumerate(images):
        grid[row][0].imshow(image.squeeze(), cmap="gray", vmin=0, vmax=255)
        for axes, values in zip(grid[row][1:], np.moveaxis(maps_NxHxWxM[row], -1, 0), strict=True):
            axes.imshow(values, cmap="coolwarm", vmin=-_PCA_SIGMA, vmax=_PCA_SIGMA)
        for axes in grid[row]:
            axes.set(xticks=[], yticks=[])
    for i, axes in enumerate(grid[0][1:], start=1):
        axes.set_title(f"component {i}", fontsize=9)
    return figure
