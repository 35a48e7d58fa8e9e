"""Every format of image, in both loaders: the same pixels, or the same refusal."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from vit_registers.data import pil_decoding
from vit_registers.data.sources.boxes import BoxImage, read_image

HEIGHT, WIDTH = 40, 36
LOADERS = ("memory_folder", "folder")


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(values_HxWxC, *, depth, color_type, extra=b"", size=(WIDTH, HEIGHT)):
    """A PNG written by hand, of the depths that PIL does not write."""
    height = len(values_HxWxC)
    if depth == 16:
        rows = [values_HxWxC[y].astype(">u2").tobytes() for y in range(height)]
    else:
        bits_HxWxD = np.unpackbits(values_HxWxC.astype(np.uint8)[..., None], axis=-1)[..., 8 - depth :]
        rows = [np.packbits(bits_HxWxD[y].ravel()).tobytes() for y in range(height)]
    header = struct.pack(">IIBBBBB", *size, depth, color_type, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + row for row in rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + extra + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def saved(image, suffix, **settings):
    file = io.BytesIO()
    image.save(file, suffix, **settings)
    return file.getvalue()


def smooth():
    """A color image without values that JPEG has to clip."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    waves = [128 + 70 * np.sin(y / 5 + i) + 30 * np.cos(x / 4 * (i + 1)) for i in range(3)]
    return np.stack(waves, axis=-1).round().astype(np.uint8)


RGB = smooth()
GREY = RGB[..., 1]
COLOR, GREY_IMAGE = Image.fromarray(RGB), Image.fromarray(GREY)
WORDS = np.random.default_rng(0).integers(0, 2**16, (HEIGHT, WIDTH, 4))
PALETTE = COLOR.quantize(16)
SIDEWAYS = Image.Exif()
SIDEWAYS[0x0112] = 6  # orientation: to be turned by 90 degrees
FRAMES = {"save_all": True, "append_images": [Image.fromarray(255 - RGB)], "duration": 100}
GAMMA = chunk(b"gAMA", struct.pack(">I", 100_000))


def tiff(values, **settings):
    return saved(Image.fromarray(values), "TIFF", **settings)


# name: (bytes, expected pixels where no outside decoder is needed, else None: PIL's)
GOOD = {
    "png_1": (saved(COLOR.convert("1"), "PNG"), np.asarray(COLOR.convert("1")) * 255),
    "png_2": (png(WORDS[..., :1] % 4, depth=2, color_type=0), WORDS[..., 0] % 4 * 85),
    "png_4": (png(WORDS[..., :1] % 16, depth=4, color_type=0), WORDS[..., 0] % 16 * 17),
    "png_8": (saved(GREY_IMAGE, "PNG"), GREY),
    "png_16": (png(WORDS[..., :1], depth=16, color_type=0), WORDS[..., 0] // 256),
    "png_16_grey_alpha": (png(WORDS[..., :2], depth=16, color_type=4), WORDS[..., 0] // 256),
    "png_16_rgb": (png(WORDS[..., :3], depth=16, color_type=2), WORDS[..., :3] // 256),
    "png_16_rgba": (png(WORDS, depth=16, color_type=6), WORDS[..., :3] // 256),
    "png_grey_alpha": (png(WORDS[..., :2] % 256, depth=8, color_type=4), WORDS[..., 0] % 256),
    "png_grey_key": (png(GREY[..., None], depth=8, color_type=0, extra=chunk(b"tRNS", b"\0\x80")), GREY),
    "png_rgb": (saved(COLOR, "PNG"), RGB),
    "png_rgb_gamma": (png(RGB, depth=8, color_type=2, extra=GAMMA), RGB),
    "png_rgb_key": (png(RGB, depth=8, color_type=2, extra=chunk(b"tRNS", bytes(6))), RGB),
    "png_rgba": (png(WORDS % 256, depth=8, color_type=6), WORDS[..., :3] % 256),
    "png_palette": (saved(PALETTE, "PNG"), np.asarray(PALETTE.convert("RGB"))),
    "png_palette_key": (saved(PALETTE, "PNG", transparency=3), np.asarray(PALETTE.convert("RGB"))),
    "png_palette_alpha": (saved(PALETTE, "PNG", transparency=bytes(16)), np.asarray(PALETTE.convert("RGB"))),
    "png_animated": (saved(COLOR, "PNG", **FRAMES), RGB),
    "jpg_444": (saved(COLOR, "JPEG", subsampling=0), None),
    "jpg_422": (saved(COLOR, "JPEG", subsampling=1), None),
    "jpg_420": (saved(COLOR, "JPEG", subsampling=2), None),
    "jpg_411": (saved(COLOR, "JPEG", subsampling="4:1:1"), None),
    "jpg_grey": (saved(GREY_IMAGE, "JPEG"), None),
    "jpg_progressive": (saved(COLOR, "JPEG", progressive=True), None),
    "jpg_restarts": (saved(COLOR, "JPEG", restart_marker_rows=1), None),
    "jpg_rgb": (saved(COLOR, "JPEG", keep_rgb=True), None),
    "jpg_cmyk": (saved(COLOR.convert("CMYK"), "JPEG"), None),
    "jpg_grey_as_cmyk": (saved(GREY_IMAGE.convert("CMYK"), "JPEG"), None),
    "jpg_turned": (saved(COLOR, "JPEG", exif=SIDEWAYS), None),
    "gif": (saved(PALETTE, "GIF"), np.asarray(PALETTE.convert("RGB"))),
    "gif_animated": (saved(PALETTE, "GIF", **FRAMES), np.asarray(PALETTE.convert("RGB"))),
    "webp_lossy": (saved(COLOR, "WEBP"), None),
    "webp_lossless": (saved(COLOR, "WEBP", lossless=True), RGB),
    "webp_alpha": (saved(Image.merge("RGBA", [*COLOR.split(), GREY_IMAGE]), "WEBP", lossless=True), RGB),
    "webp_animated": (saved(COLOR, "WEBP", lossless=True, **FRAMES), RGB),
    "bmp": (saved(COLOR, "BMP"), RGB),
    "bmp_grey": (saved(GREY_IMAGE, "BMP"), GREY),
    "tif": (tiff(RGB), RGB),
    "tif_lzw": (tiff(RGB, compression="tiff_lzw"), RGB),
    "tif_grey": (tiff(GREY), GREY),
    "tif_16": (tiff(WORDS[..., 0].astype(np.uint16)), WORDS[..., 0] // 256),
    "ppm": (saved(COLOR, "PPM"), RGB),
    "pgm_16": (
        b"P5 %d %d 65535\n" % (WIDTH, HEIGHT) + WORDS[..., 0].astype(">u2").tobytes(),
        WORDS[..., 0] // 256,
    ),
}


def flipped_after(data, kind):
    """The file with a bit flipped in its last chunk of a kind."""
    data, place = bytearray(data), data.rindex(kind)
    data[place + len(kind) + 9] ^= 4
    return bytes(data)


BAD = {
    "empty": b"",
    "text": b"no image",
    "html": b"<html><body>404 not found</body></html>",
    "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 36 40\nshowpage\n",
    "tif_float": tiff(RGB[..., 0].astype(np.float32)),
    "tif_32": tiff(RGB[..., 0].astype(np.int32)),
    "png_bomb": png(RGB, depth=8, color_type=2, size=(2**31 - 1, 2**31 - 1)),
    "png_large": png(RGB, depth=8, color_type=2, size=(20_000, 20_000)),
    "png_second_frame": flipped_after(saved(COLOR, "PNG", **FRAMES), b"fdAT"),
    "png_signature": b"\x89PNG\r\n\x1a\n",
    "jpg_signature": b"\xff\xd8\xff",
}
CUTS = {"half": lambda n: n // 2, "header": lambda n: 20, "tail": lambda n: n - 5, "last": lambda n: n - 1}


def in_pil(data, channels):
    """What PIL gives: the Y plane for JPEG in grey, as libjpeg decodes it."""
    image = Image.open(io.BytesIO(data))
    if channels == 1 and image.format == "JPEG":
        image.draft("L", image.size)
    return np.asarray(image.convert("L" if channels == 1 else "RGB")).reshape(HEIGHT, WIDTH, channels)


def expected(name, channels):
    data, pixels = GOOD[name]
    if pixels is None:
        return in_pil(data, channels)
    image = Image.fromarray(pixels.astype(np.uint8))
    return np.asarray(image.convert("L" if channels == 1 else "RGB")).reshape(HEIGHT, WIDTH, channels)


@pytest.fixture(scope="module")
def files():
    """All files by name; those of wrong suffix too, as the content decides."""
    cut = {
        f"{name}-{cut}": data[: at(len(data))] for name, (data, _) in GOOD.items() for cut, at in CUTS.items()
    }
    return {name: data for name, (data, _) in GOOD.items()} | BAD | cut


@pytest.fixture(scope="module")
def loaded(files, make_loader, device, small, tmp_path_factory):
    """{channels: {loader: ({name: pixels, or None if it was left out}, number left out)}}"""
    root = tmp_path_factory.mktemp("formats")
    (root / "test" / "a").mkdir(parents=True)
    for name, data in files.items():
        (root / "test" / "a" / f"{name}.jpg").write_bytes(data)
    settings = {
        "data_dir": str(root),
        "on_broken": "skip",
        "image_size": (HEIGHT, WIDTH),
        "eval_batch_size": 64,
    }
    found = {}
    for channels in (1, 3):
        for kind in LOADERS:
            loader = make_loader(kind, channels=channels, **settings)
            batch = small.take(loader.eval_batches("test", device), None)
            images = {
                name: image if mask else None
                for name, image, mask in zip(
                    sorted(files, key="{}.jpg".format), batch.views["image"], batch.mask_B, strict=False
                )
            }
            found[channels, kind] = images, len(loader.broken_names)
    return found


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", LOADERS)
@pytest.mark.parametrize("name", GOOD)
def test_a_format_has_the_same_pixels_in_both_loaders(name, kind, channels, loaded):
    found = loaded[channels, kind][0][name]
    assert found is not None
    np.testing.assert_array_equal(found, expected(name, channels))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", LOADERS)
@pytest.mark.parametrize("name", BAD)
def test_what_is_no_image_is_left_out_in_both_loaders(name, kind, channels, loaded):
    assert loaded[channels, kind][0][name] is None


@pytest.mark.parametrize("channels", [1, 3])
def test_truncated_files_are_the_same_in_both_loaders(channels, loaded):
    (in_memory, num_in_memory), (in_tfdata, num_in_tfdata) = (loaded[channels, kind] for kind in LOADERS)
    differing = [
        name
        for name in in_memory
        if (in_memory[name] is None) != (in_tfdata[name] is None)
        or (in_memory[name] is not None and (in_memory[name] != in_tfdata[name]).any())
    ]
    assert differing == []
    assert num_in_memory == num_in_tfdata == sum(image is None for image in in_memory.values()) > len(BAD)


@pytest.mark.parametrize("name", [*GOOD, "png_large", "tif_float"])
def test_parts_are_of_the_same_pixels(name, files):
    tf = pytest.importorskip("tensorflow")
    from vit_registers.data.ops import decode as decoding
    from vit_registers.data.ops.strings import Target

    for channels in (1, 3):
        example = {"bytes": tf.constant(files[name]), "seed": tf.constant([0, 0], tf.int64)}
        target = Target(8, 8, channels)
        if name not in GOOD:
            with pytest.raises(tf.errors.InvalidArgumentError):
                decoding.decode_part(example, lambda shape, seed: tf.constant([0, 0, 8, 8]), target)
            continue
        part = decoding.decode_part(example, lambda shape, seed: tf.constant([16, 0, 16, WIDTH]), target)
        np.testing.assert_array_equal(part, expected(name, channels)[16:32])


@pytest.mark.parametrize("name", ["png_16", "tif_16", "pgm_16", "jpg_cmyk", "png_palette_key"])
def test_images_with_boxes_are_decoded_alike(name):
    record = BoxImage(name="a", path=None, encoded=GOOD[name][0], box_xyxy_px=np.zeros((0, 4)))
    np.testing.assert_array_equal(read_image(record), expected(name, 3))


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("text", "in none of the formats"),
        ("tif_float", "floating-point numbers, whose range is not known"),
        ("tif_32", "32-bit or signed integers"),
        ("png_large", "more than 178,956,970 pixels"),
    ],
)
def test_refusals_say_why(name, reason):
    with pytest.raises(pil_decoding.BrokenImageError, match=reason):
        pil_decoding.decode_image(BAD[name], channels=3)


@pytest.mark.parametrize(
    ("suffix", "is_turned"), [("JPEG", False), ("PNG", False), ("WEBP", False), ("TIFF", True)]
)
def test_a_rotation_in_exif_is_ignored_but_for_tiff(suffix, is_turned):
    data = saved(COLOR, suffix, exif=SIDEWAYS)
    sides = (WIDTH, HEIGHT) if is_turned else (HEIGHT, WIDTH)
    assert pil_decoding.decode_image(data, channels=3).shape == (*sides, 3)
    assert pil_decoding.read_size(data) == sides[::-1]


@pytest.mark.parametrize("image", [COLOR, GREY_IMAGE], ids=["rgb", "grey"])
@pytest.mark.parametrize("channels", [1, 3])
def test_of_several_jpegs_in_a_file_the_first_is_taken(image, channels):
    data = saved(image, "MPO", save_all=True, append_images=[Image.eval(image, lambda value: 255 - value)])
    found = pil_decoding.decode_image(data, channels=channels)
    np.testing.assert_array_equal(found, pil_decoding.decode_image(saved(image, "JPEG"), channels=channels))
