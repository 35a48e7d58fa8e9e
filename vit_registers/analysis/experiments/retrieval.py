"""retrieval: how often a text of an image, or the image of a text, is among the nearest."""

import math

import jax
import numpy as np

from vit_registers.analysis.experiments.experiment import Experiment
from vit_registers.analysis.experiments.image_text import CLIP, POOLED, model_with_texts, stored_vectors
from vit_registers.analysis.options import Options
from vit_registers.analysis.report.figures import grouped_bars, legend_above, new_axes
from vit_registers.analysis.report.headline import share_of_images
from vit_registers.analysis.report.result import Found, Gap, Picture, Pictures, Rows, counted, number
from vit_registers.analysis.subject import Subject
from vit_registers.errors import UserError
from vit_registers.evaluation.retrieval import read_pairs, retrieval_metrics
from vit_registers.evaluation.text_vectors import text_vectors

_TABLE = "Retrieval"
_OF_CLASSES = "No captions: the texts are those of the classes of the images, and any image of a class fits"
_DIRECTIONS = {"image to text": "image_to_text", "text to image": "text_to_image"}


def _measure(subject: Subject, options: Options) -> Rows | Gap:
    del options
    opened = model_with_texts(subject)
    if isinstance(opened, Gap):
        return opened
    frozen, texts = opened
    assert subject.split is not None
    settings = subject.tasks.retrieval
    try:
        pairs = read_pairs(subject.split, frozen.data.captions, num_images=subject.store.num_images)
        with jax.set_mesh(frozen.mesh):
            text_MxE = text_vectors(texts.reader, texts.params, pairs.texts, frozen.mesh)
            vectors = [jax.device_get(one) for one in stored_vectors(subject, frozen, texts)]
            image_NxE = np.concatenate([one.image_BxE[one.mask_B] for one in vectors])
            label_N = np.concatenate([one.label_BxK[one.mask_B, 0] for one in vectors])
            own_N = label_N if pairs.is_of_classes else subject.store.image_numbers()
            values = retrieval_metrics(settings, image_NxE, own_N, text_MxE, pairs.own_M, frozen.mesh)
    except UserError as error:
        return Gap(f"{subject.name}: {error}")
    images, num_texts = int(values["images"]), int(values["texts"])
    if not images:
        return Gap(f"{subject.name}: no image has a text")
    rows, bars = [], {}
    for name, key in _DIRECTIONS.items():
        queries = images if key == "image_to_text" else num_texts
        for top in settings.tops:
            share = values[f"{key}_r{top}"]
            error = 100 * math.sqrt(share * (1 - share) / queries)
            rows.append((name, top, 100 * share, error, images, num_texts))
            bars["\n".join((*name.rsplit(" ", 1), f"R@{top}"))] = 100 * share
    first = settings.tops[0]
    shares = {name: 100 * values[f"{key}_r{first}"] for name, key in _DIRECTIONS.items()}
    what = "texts of classes" if pairs.is_of_classes else "texts"
    return Rows(
        tables={_TABLE: rows},
        text=f"R@{first} among {num_texts:,} {what} is "
        + " and ".join(f"{number(share, '%')} from {name}" for name, share in shares.items()),
        compared=shares["image to text"],
        count=counted(images, "image"),
        values=bars,
        headlines=[share_of_images(f"image to text R@{first}, %", shares["image to text"], images)],
        images=_OF_CLASSES if pairs.is_of_classes else "",
    )


def _draw(found: Found) -> Pictures:
    figure, axes = new_axes()
    grouped_bars(axes, found, lambda one: one.values)
    axes.tick_params(axis="x", labelsize=7)
    axes.set_ylabel("R@k, %")
    axes.set_ylim(0, 100)
    legend_above(axes)
    caption = "Images of which a text, and texts whose image, is among the k nearest."
    return [Picture(name="retrieval", caption=caption, figure=figure)]


EXPERIMENT = Experiment(
    question="How often is a text of an image, or the image of a text, among the nearest?",
    answers=f"{CLIP}, zero-shot retrieval",
    definition="As evaluate --task=retrieval, on the images of --data: R@k is the share of images of which "
    "one of the captions is among the k nearest, and that of captions whose image is. All captions of these "
    "images are compared, so numbers are those of as many images only. Of data with classes, the texts are "
    "those that training makes of the classes. The standard error is that of a proportion.",
    tables={_TABLE: "model | from | k | R@k, % | standard error | images | texts"},
    measure=_measure,
    features=(POOLED,),
    draw=_draw,
    compares="first R@k from image to text, %",
)
