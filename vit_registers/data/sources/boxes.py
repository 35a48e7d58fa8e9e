"""Images with ground-truth boxes, read one at a time at full size: PASCAL VOC folders, TFDS. No TensorFlow.

Boxes are xyxy in pixels with exclusive end, float64 [n, 4]. VOC counts pixels from 1, with inclusive ends, so
its xmin and ymin are lowered by 1 and its xmax and ymax are kept, as in LOST (arXiv:2109.14279).
"""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
from PIL import Image

from vit_registers.config import nearest
from vit_registers.data import pil_decoding
from vit_registers.data.sources import listing
from vit_registers.errors import DataError, require_extra

_FOLDERS = (("JPEGImages", "Annotations"), ("images", "annotations"))
_LAYOUT = (
    "the layout must be root/JPEGImages/*.jpg and root/Annotations/*.xml, "
    "or root/images/ and root/annotations/"
)
_SPLITS = Path("ImageSets", "Main")


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class BoxImage:
    """An image that is not read yet, with its n >= 0 boxes."""

    name: str  # of the file, without folder and suffix
    path: Path | None  # None: the image is `encoded`
    encoded: bytes | None = None
    box_xyxy_px: np.ndarray  # float64 [n, 4]


def open_voc(root: str | Path, *, split: str | None = None) -> tuple[BoxImage, ...]:
    """The annotated images of a folder in the layout of PASCAL VOC, in the order of names or of the split.

    Reads annotations and image headers. A split is a list root/ImageSets/Main/<split>.txt. If there are
    lists, `split` is required, as trainval and test often share a folder; otherwise all annotations are used.
    Images without annotation are ignored. Images without objects are kept, and so are boxes that cross the
    edge of their image. Raises DataError for folders, splits, annotations and images that are missing or
    cannot be read, and for boxes outside of their image.
    """
    root = Path(root).expanduser()
    images, annotations = _find_folders(root)
    xml_files = _files(annotations, (".xml",))
    if not xml_files:
        raise DataError(f"{annotations} has no annotations (*.xml): {_LAYOUT}")
    image_files = _files(images, listing.SUFFIXES)
    records = []
    for name in _names(root, split, xml_files):
        if name not in image_files:
            raise DataError(f"{images} has no image {name} (jpg, jpeg, png) for {xml_files[name]}: add it")
        box_xyxy_px = _read_annotation(xml_files[name])
        _check_inside(box_xyxy_px, image_files[name], xml_files[name])
        records.append(BoxImage(name=name, path=image_files[name], box_xyxy_px=box_xyxy_px))
    return tuple(records)


def read_image(record: BoxImage) -> np.ndarray:
    """The image at full size, uint8 [height, width, 3]; grey becomes RGB. Raises DataError if it is broken.

    A rotation in EXIF is not applied, as boxes refer to the image without it.
    """
    with _decoding(record.path or record.name):
        data = record.encoded if record.path is None else record.path.read_bytes()
        assert data is not None, record.name
        return pil_decoding.decode_image(data, channels=3)


def center_crop(
    image_HxWx3: np.ndarray, box_xyxy_px: np.ndarray, side_px: int
) -> tuple[np.ndarray, np.ndarray]:
    """(crop, boxes): the short side resized to `side_px`, the square in the middle, and boxes in its pixels.

    As torchvision's Resize and CenterCrop, bilinear. Boxes end at the edge of the crop; those outside are
    left out.
    """
    height, width = image_HxWx3.shape[:2]
    short = min(height, width)
    size = (int(side_px * width / short), int(side_px * height / short))
    left, top = (round((one - side_px) / 2) for one in size)
    resized = Image.fromarray(image_HxWx3).resize(size, Image.Resampling.BILINEAR)
    crop = np.asarray(resized.crop((left, top, left + side_px, top + side_px)))
    scale_4, shift_4 = np.array(size * 2) / (width, height, width, height), np.array((left, top) * 2)
    box_xyxy_px = np.clip(box_xyxy_px * scale_4[None] - shift_4[None], 0, side_px)
    return crop, box_xyxy_px[(box_xyxy_px[:, :2] < box_xyxy_px[:, 2:]).all(axis=1)]


@contextlib.contextmanager
def _decoding(what: Path | str) -> Iterator[None]:
    """A context that turns errors of reading and decoding the image `what` into DataError."""
    try:
        yield
    except (OSError, pil_decoding.BrokenImageError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise DataError(
            f"{what} cannot be decoded as an image{f' ({reason})' if reason else ''}: "
            "repair it, or delete it with its annotation"
        ) from None


def _find_folders(root: Path) -> tuple[Path, Path]:
    if not root.is_dir():
        raise DataError(f"{root} is not a folder: {_LAYOUT}")
    for images, annotations in _FOLDERS:
        if (root / images).is_dir() and (root / annotations).is_dir():
            return root / images, root / annotations
    raise DataError(f"{root} lacks the folder of images or that of annotations: {_LAYOUT}")


def _files(folder: Path, suffixes: tuple[str, ...]) -> dict[str, Path]:
    files: dict[str, Path] = {}
    found = listing.scan(folder, listing.LeftOut(), suffixes)
    # dangling links and folders cause an error with their name if an annotation requires them
    folders = [name for name in (*found.folders, *found.linked_folders) if name.lower().endswith(suffixes)]
    for file in sorted([*found.images, *found.dangling, *folders]):
        name = Path(file).stem
        if name in files:
            raise DataError(f"{folder} has both {files[name].name} and {file}: delete or rename one of them")
        files[name] = folder / file
    return files


def _names(root: Path, split: str | None, xml_files: Mapping[str, Path]) -> list[str]:
    lists = {path.stem: path for path in sorted((root / _SPLITS).glob("*.txt"))}
    if not lists:
        if split is None:
            return list(xml_files)
        raise DataError(f"{root / _SPLITS} has no lists, so there is no split '{split}': do not name a split")
    if split is None:
        raise DataError(f"{root / _SPLITS} has lists of images: name a split, such as trainval")
    if split not in lists:
        raise DataError(f"{root / _SPLITS} has no split '{split}': {nearest(split, lists)}")
    names = [line.strip() for line in lists[split].read_text(errors="replace").splitlines() if line.strip()]
    if not names:
        raise DataError(f"{lists[split]} is empty: use another split")
    if any(len(name.split()) > 1 for name in names):
        raise DataError(f"{lists[split]} is the list of one class: use one of all images, such as trainval")
    missing = [name for name in names if name not in xml_files]
    if missing:
        raise DataError(
            f"{len(missing)} of {len(names)} images in {lists[split]} have no annotation, such as "
            f"{missing[0]}: add them, or use another split"
        )
    return names


def _read_annotation(path: Path) -> np.ndarray:
    try:
        root = ElementTree.parse(path).getroot()
    # LookupError: unknown encodings
    except (ElementTree.ParseError, OSError, ValueError, LookupError) as error:
        raise DataError(f"{path} cannot be read as XML ({error}): repair or delete it") from None
    if root.tag != "annotation":
        raise DataError(f"{path} begins with <{root.tag}> instead of <annotation>: it is not in VOC's format")
    boxes = [_read_box(item, path) for item in root.findall("object")]
    return np.array(boxes, np.float64).reshape(-1, 4)


def _check_inside(box_xyxy_px: np.ndarray, image: Path, annotation: Path) -> None:
    """Raises DataError for an image that cannot be opened, and for a box that lies outside of it."""
    with _decoding(image):
        size = pil_decoding.read_size(image)
    is_outside = (box_xyxy_px[:, 2:] <= 0).any(axis=1) | (box_xyxy_px[:, :2] >= size).any(axis=1)
    if is_outside.any():
        first = ", ".join(f"{side:g}" for side in box_xyxy_px[is_outside][0] + (1, 1, 0, 0))
        raise DataError(
            f"{annotation} has a box with xmin, ymin, xmax, ymax = {first} outside of {image.name}, which "
            f"has {size[0]} x {size[1]} px: repair it; it may belong to another image, or to another size"
        )


def _read_box(item: ElementTree.Element, path: Path) -> np.ndarray:
    texts = [item.findtext(f"bndbox/{key}") for key in ("xmin", "ymin", "xmax", "ymax")]
    try:
        box = np.array([float(text or "nan") for text in texts]) - (1, 1, 0, 0)
    except ValueError:
        box = np.full(4, np.nan)
    if not (np.isfinite(box).all() and (box[:2] < box[2:]).all()):
        raise DataError(f"{path} has an object with xmin, ymin, xmax, ymax = {texts}: not a box; repair it")
    return box


def from_tfds(example: Mapping[str, Any], *, record: int) -> BoxImage:
    """The image of a TFDS example, such as one of voc or coco, whose `image` is still encoded.

    `objects/bbox` is (ymin, xmin, ymax, xmax) in shares of the image's sides. Crowds (`is_crowd`) are left
    out. Pixels are rounded to integers, as LOST does for COCO; for VOC this removes the error of float32. If
    there is `is_difficult`, the boxes are VOC's, and xmin and ymin are lowered by 1. The name is taken from
    `image/filename`, or is the number of the record. Raises DataError for a broken image.
    """
    objects = example["objects"]
    file = example.get("image/filename")
    file = file.decode() if isinstance(file, bytes) else file
    name = f"record {record}" if file is None else Path(file).stem
    with _decoding(name):
        width, height = pil_decoding.read_size(example["image"])
    box_yxyx = np.asarray(objects["bbox"], np.float64).reshape(-1, 4)
    box_xyxy_px = box_yxyx[:, [1, 0, 3, 2]] * (width, height, width, height)
    # to thousandths first, so that float32 does not decide in which direction a half is rounded
    box_xyxy_px = np.rint(np.round(box_xyxy_px, 3))
    if "is_difficult" in objects:
        box_xyxy_px -= (1, 1, 0, 0)
    is_kept = ~np.asarray(objects.get("is_crowd", np.zeros(len(box_yxyx), bool)))
    return BoxImage(name=name, path=None, encoded=example["image"], box_xyxy_px=box_xyxy_px[is_kept])


class TfdsBoxes(Sequence[BoxImage]):
    """A split of a prepared TFDS data set. Records are read on access, in the context `reading()`."""

    def __init__(
        self, examples: Sequence[Mapping[str, Any]], reading: Callable[[], AbstractContextManager[None]]
    ) -> None:
        self._examples, self._reading = examples, reading

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, record: int) -> BoxImage:  # pyright: ignore[reportIncompatibleMethodOverride]
        if not 0 <= record < len(self):
            raise IndexError(record)
        with self._reading():
            example = self._examples[record]
        return from_tfds(example, record=record)


def open_tfds_boxes(name: str, split: str, *, data_dir: str | None = None) -> TfdsBoxes:
    """A split of a data set with boxes that TFDS prepared as array_record, such as voc/2007 or coco/2014.

    `name` may be the path of a builder or of a prepared version. Raises DataError if the data set is not
    prepared, is in TFRecord files, or has no boxes or no such split.
    """
    require_extra("data", "tensorflow_datasets", "tensorflow", what=f"--boxes={name}:{split}")
    # TFDS takes a second to import, and folders do not need it
    import tensorflow_datasets as tfds

    from vit_registers.data.sources import tfds_location, tfds_prepared

    builder = tfds_location.open_builder(name, data_dir, setting="--boxes")
    if builder is None:
        where = tfds_location.full_data_dir(data_dir)
        run = f"run 'python -m vit_registers.prepare --name={name} --data_dir={where}'"
        raise DataError(f"{name} is not prepared in {where}: {run}")
    info: Any = builder.info  # whose types allow None everywhere
    features: dict[str, Any] = dict(info.features)
    inside = getattr(features.get("objects"), "feature", None)  # of a sequence
    has_boxes = isinstance(inside, tfds.features.FeaturesDict) and "bbox" in inside
    if not has_boxes or not isinstance(features.get("image"), tfds.features.Image):
        raise DataError(
            f"{name} has {', '.join(sorted(features))}: must have image and objects with bbox, as in voc/2007"
        )
    if info.file_format.value != "array_record":
        raise DataError(
            f"{name} is prepared as TFRecord files: delete {builder.data_dir}, and run 'python -m "
            f"vit_registers.prepare --name={name}' with its --data_dir"
        )
    parts = tfds_prepared.find_parts(builder, split)
    decoders = {"image": tfds.decode.SkipDecoding()}
    examples = tfds_prepared.open_records(builder, parts, raw=False, decoders=decoders)
    return TfdsBoxes(examples, functools.partial(tfds_prepared.reading, split, name))
