"""zero-shot-segmentation: which class the texts give each pixel, and where their similarity is."""

from typing import NamedTuple

import numpy as np

from vit_registers.analysis.experiments.experiment import Experiment
from vit_registers.analysis.experiments.image_text import model_with_texts
from vit_registers.analysis.features.table import TEXT_TOWER
from vit_registers.analysis.options import Options
from vit_registers.analysis.report.colors import SIMILARITIES
from vit_registers.analysis.report.headline import Headline
from vit_registers.analysis.report.result import Found, Gap, Picture, Pictures, Rows, counted, number, percent
from vit_registers.analysis.report.tiles import tiles
from vit_registers.analysis.subject import Subject
from vit_registers.data.sources.dense import IGNORED
from vit_registers.errors import UserError
from vit_registers.evaluation.dense.pictures import palette
from vit_registers.evaluation.dense.task import splits_of_settings
from vit_registers.evaluation.segmentation.windows import predicted_classes
from vit_registers.evaluation.zero_shot.segmentation import (
    TextSegmented,
    segment_by_texts,
    text_similarities,
)

_MOST_MAPS = 4  # classes whose maps a picture shows
_BY_MODEL, _BY_CLASS = "Zero-shot segmentation", "By class"


class _Shown(NamedTuple):
    """What the picture shows of a model."""

    examples: list[TextSegmented]
    names: tuple[str, ...]  # of the classes


def _measure(subject: Subject, options: Options) -> Rows | Gap:
    opened = model_with_texts(subject)
    if isinstance(opened, Gap):
        return opened
    frozen, settings = opened[0], subject.tasks

    def say(line: str) -> None:
        subject.progress(line, 0, 0)

    try:
        splits = options.dense_images or splits_of_settings("zero_shot_segmentation", settings)
        if splits is None:
            return Gap(
                "no images with a class for each pixel were given: --task_data=NAME:SPLIT, such as "
                "--task_data=digit_scenes:test"
            )
        result = segment_by_texts(frozen, settings, splits, folder=None, say=say)
        shown = _Shown(*text_similarities(frozen, settings, splits, options.num_examples))
    except UserError as error:
        return Gap(f"{subject.name}: {error}")
    values = result.values
    miou, *others = (100 * float(values[name]) for name in ("miou", "pixel_accuracy", "class_accuracy"))
    images = int(values["test_images"])
    about = values["classes"], values["templates"], images
    classes = [
        (name, *(percent(share) if isinstance(share, float) else None for share in shares), *pixels)
        for name, *shares_and_pixels in result.tables["classes"].rows
        for shares, pixels in [(shares_and_pixels[:2], shares_and_pixels[2:])]
    ]
    return Rows(
        tables={_BY_MODEL: [(*about, miou, *others, values["non_finite"])], _BY_CLASS: classes},
        text=f"the mean IoU of the classes of the nearest texts is {number(miou, '%')}, and "
        f"{number(others[0], '%')} of the pixels are right",
        compared=miou,
        count=counted(images, "image"),
        values=shown,
        headlines=[Headline(what="zero-shot mean IoU, %", value=miou, count=images)],
        images=f"Tested on {':'.join(splits.test)}",
    )


def _draw(found: Found) -> Pictures:
    for one in found:
        shown: _Shown = one.values
        chosen = _largest(shown)
        names = [shown.names[i] for i in chosen]
        colors = palette()
        labels = [colors[example.label_HxW] for example in shown.examples]
        predicted = [
            colors[predicted_classes(example.cosine_HxWxY, example.label_HxW.shape)]
            for example in shown.examples
        ]
        maps = [[example.cosine_HxWxY[..., i] for example in shown.examples] for i in chosen]
        none = [None] * len(shown.examples)
        yield Picture(
            name=f"maps-{one.name}",
            caption=f"{one.name}: images, their labels, the class of the nearest text of each pixel (in the "
            "colours of the labels), and the cosines of pixels to the texts of single classes, those with "
            "the most pixels in these images.",
            figure=tiles(
                [[example.image_HxWxC for example in shown.examples], labels, predicted, *[none] * len(maps)],
                [none, none, none, *maps],
                rows=("image", "labels", "nearest text", *names),
                limits=(float(np.nanmin(maps)), float(np.nanmax(maps))),
                label="cosine to the texts of the class",
                cmap=SIMILARITIES,
            ),
            is_headline=True,
        )


def _largest(shown: _Shown) -> list[int]:
    """The classes with the most labelled pixels in the examples, in their order."""
    pixels_Y = sum(
        np.bincount(example.label_HxW[example.label_HxW != IGNORED], minlength=len(shown.names))
        for example in shown.examples
    )
    most = np.argsort(-np.asarray(pixels_Y), kind="stable")[:_MOST_MAPS]
    return sorted(int(i) for i in most)


EXPERIMENT = Experiment(
    question="Are patches near to the text of what they show?",
    answers="arXiv:2506.08010, zero-shot segmentation by the similarity of patches and texts",
    definition="As evaluate --task=zero_shot_segmentation, on the images of --task_data: the vector of a "
    "patch is what the image tower would pool if it had that patch alone, projected. A pixel has the class "
    "whose texts (tasks.zero_shot_segmentation.prompts) have the largest cosine with its patch. Images and "
    "windows have the sizes of tasks.segmentation. No image is learned from.",
    tables={
        _BY_MODEL: "model | classes | templates | test images | mean IoU, % | pixels, %"
        " | mean over classes, % | not finite",
        _BY_CLASS: "model | class | IoU, % | right, % | labelled pixels | predicted pixels",
    },
    measure=_measure,
    needs_any=(TEXT_TOWER,),
    runs_model=True,
    draw=_draw,
    compares="mean IoU, %",
    opens=_BY_MODEL,
)
