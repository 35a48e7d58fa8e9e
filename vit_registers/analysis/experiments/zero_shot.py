"""zero-shot: how often the class whose texts are nearest to an image is its own."""

from typing import NamedTuple

import jax
import numpy as np
from matplotlib.axes import Axes

from vit_registers.analysis.experiments.experiment import Experiment
from vit_registers.analysis.experiments.image_text import CLIP, POOLED, model_with_texts, stored_vectors
from vit_registers.analysis.options import Options
from vit_registers.analysis.report.colors import AMOUNTS, color_of
from vit_registers.analysis.report.figures import grouped_bars, legend_above, legend_name, new_axes
from vit_registers.analysis.report.headline import over_images
from vit_registers.analysis.report.result import Found, Gap, Picture, Pictures, Rows, counted, number, percent
from vit_registers.analysis.subject import Subject
from vit_registers.errors import UserError
from vit_registers.evaluation.zero_shot.classify import class_vectors, nearest_classes, zero_shot_metrics
from vit_registers.evaluation.zero_shot.prompts import class_prompts

_MOST_SHOWN = 20  # classes whose bars and confusions a picture shows
_MOST_LETTERS = 12  # of their names there
_BY_MODEL, _BY_CLASS = "Zero-shot accuracy", "By class"


class _Shown(NamedTuple):
    """What the pictures show of a model."""

    names: tuple[str, ...]  # of the classes
    count_YxY: np.ndarray  # images: rows are classes, columns what they are taken for


def _measure(subject: Subject, options: Options) -> Rows | Gap:
    del options
    opened = model_with_texts(subject)
    if isinstance(opened, Gap):
        return opened
    if len(subject.class_names) < 2:
        has = "one class" if subject.class_names else "no classes"
        return Gap(f"{subject.name}: the images have {has}, and zero-shot classification requires two")
    frozen, texts = opened
    label_NxK = np.asarray(subject.store.read("label"))
    label_NxK = label_NxK.reshape(len(label_NxK), -1)
    if not (label_NxK >= 0).any():
        return Gap(f"{subject.name}: no image has a label")
    try:
        prompts = class_prompts(subject.tasks.zero_shot, frozen.data.captions, subject.class_names)
        with jax.set_mesh(frozen.mesh):
            class_YxE = class_vectors(texts.reader, texts.params, prompts, frozen.mesh, kept=texts.kept)
            vectors = [*stored_vectors(subject, frozen, texts)]
            values = zero_shot_metrics(class_YxE, vectors, frozen.mesh)
            nearest_N = nearest_classes(class_YxE, vectors, frozen.mesh)
    except UserError as error:
        return Gap(f"{subject.name}: {error}")
    is_right_N = (label_NxK == nearest_N[:, None]).any(axis=1) & (nearest_N >= 0)
    is_labelled_N = (label_NxK >= 0).any(axis=1)
    own_N = np.where(is_right_N, nearest_N, label_NxK.max(axis=1))
    count_YxY = _confusion(own_N[is_labelled_N], nearest_N[is_labelled_N], len(subject.class_names))
    headline = over_images("zero-shot top-1, %", np.where(is_labelled_N, 100.0 * is_right_N, np.nan))
    top1, images = 100 * values["top1"], int(values["images"])
    about = len(prompts.texts), len(prompts.texts[0]), images
    row = (*about, top1, headline.error, percent(values.get("top5")), int(values["non_finite"]))
    return Rows(
        tables={_BY_MODEL: [row], _BY_CLASS: _class_rows(count_YxY, own_N, prompts.names)},
        text=f"the class of the nearest text is right for {number(top1, '%')} of the images",
        compared=top1,
        count=counted(images, "image"),
        values=_Shown(prompts.names, count_YxY),
        headlines=[headline],
    )


def _confusion(own_N: np.ndarray, nearest_N: np.ndarray, num_classes: int) -> np.ndarray:
    """count_YxY of images with a nearest class."""
    count_YxY = np.zeros((num_classes, num_classes), np.int64)
    is_there_N = nearest_N >= 0
    np.add.at(count_YxY, (own_N[is_there_N], nearest_N[is_there_N]), 1)
    return count_YxY


def _class_rows(count_YxY: np.ndarray, own_N: np.ndarray, names: tuple[str, ...]) -> list[tuple]:
    rows = []
    for i, name in enumerate(names):
        images, right = int((own_N == i).sum()), int(count_YxY[i, i])
        wrong_Y = np.where(np.arange(len(names)) == i, 0, count_YxY[i])
        most = int(wrong_Y.argmax())
        other = (names[most], 100 * int(wrong_Y[most]) / images) if wrong_Y.any() else ("", None)
        rows.append((i, name, images, 100 * right / images if images else None, *other))
    return rows


def _draw(found: Found) -> Pictures:
    figure, axes = new_axes()
    if len(found[0].values.names) <= _MOST_SHOWN:
        grouped_bars(axes, found, lambda one: dict(zip(_short(one.values), _shares(one.values), strict=True)))
        axes.tick_params(axis="x", labelrotation=45)
        caption = "Images of each class whose nearest text is that of their class."
    else:
        for one in found:
            share_Y = np.sort(_shares(one.values))[::-1]
            axes.plot(share_Y, color=color_of(one.place), label=legend_name(one.name))
        axes.set_xlabel("classes, from the one that is right most often")
        caption = "Images whose nearest text is that of their class, for each class."
    axes.set_ylabel("right, %")
    axes.set_ylim(0, 100)
    legend_above(axes)
    yield Picture(name="zero-shot", caption=caption, figure=figure, is_headline=True)
    for one in found:
        if len(one.values.names) <= _MOST_SHOWN:
            figure, axes = new_axes(3.6)
            _draw_confusion(axes, one.values)
            what = "images of each class (row) by the class of their nearest text (column), % of the row"
            yield Picture(name=f"confusion-{one.name}", caption=f"{one.name}: {what}.", figure=figure)


def _shares(shown: _Shown) -> np.ndarray:
    return 100 * np.diag(shown.count_YxY) / np.maximum(shown.count_YxY.sum(axis=1), 1)


def _short(shown: _Shown) -> list[str]:
    """The names, shortened to fit below bars. Names that are then equal get the number of their class."""
    short = [name[:_MOST_LETTERS] for name in shown.names]
    return [name if short.count(name) == 1 else f"{name} {i}" for i, name in enumerate(short)]


def _draw_confusion(axes: Axes, shown: _Shown) -> None:
    share_YxY = 100 * shown.count_YxY / np.maximum(shown.count_YxY.sum(axis=1, keepdims=True), 1)
    image = axes.imshow(share_YxY, cmap=AMOUNTS, vmin=0, vmax=100, interpolation="nearest")
    names = _short(shown)
    axes.set_xticks(range(len(names)), names, fontsize=7, rotation=45, ha="right")
    axes.set_yticks(range(len(names)), names, fontsize=7)
    assert axes.figure is not None
    axes.figure.colorbar(image, ax=axes, fraction=0.046).ax.tick_params(labelsize=7)


EXPERIMENT = Experiment(
    question="How often is the class whose texts are nearest to an image its own?",
    answers=f"{CLIP}, zero-shot classification; arXiv:2309.16588, table 2b",
    definition="As evaluate --task=zero_shot: the vector of a class is the mean of the unit vectors of its "
    "prompts (tasks.zero_shot.prompts), made a unit vector again, and an image has the class of the largest "
    "cosine. Images without a label do not count. Of several labels of an image, the one that is predicted "
    "counts, or else the last one.",
    tables={
        _BY_MODEL: "model | classes | templates | images | top-1, % | standard error | top-5, % | not finite",
        _BY_CLASS: "model | class | name in texts | images | right, % | most often taken for | so often, %",
    },
    measure=_measure,
    features=(POOLED,),
    draw=_draw,
    compares="zero-shot top-1, %",
    opens=_BY_MODEL,
)
