"""Preprocessing is bit-equal to timm's evaluation transform, and no bytes get past `decode`."""

from __future__ import annotations

import io
import os
import struct
import threading
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from photos import PHOTOS
from PIL import Image

from mkf.errors import MissingExtraError
from mkf.networks.zoo import import_timm
from services.errors import ImageError, LimitError
from services.inference.repository import Preprocessing
from services.preprocessing import FORMATS, ImageLimits, decode, preprocess

LIMITS = ImageLimits()
MEAN = (0.485, 0.456, 0.406)
INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "box", "hamming", "lanczos")
# Width, height: square, wide, tall, odd, tiny, a strip, a single pixel, the target itself.
SHAPES = (
    (500, 375),
    (375, 500),
    (333, 333),
    (101, 67),
    (67, 101),
    (17, 23),
    (9, 400),
    (400, 9),
    (1, 1),
    (73, 73),
    (64, 64),
    (64, 48),
    (48, 65),
)

Transform = Callable[[Image.Image], NDArray[np.uint8]]


def photo(width: int, height: int, *, seed: int = 0) -> Image.Image:
    """Smooth color fields, edges and noise: what a resampling filter can get wrong."""
    rng = np.random.default_rng(seed + 7919 * width + height)
    y, x = np.mgrid[0:height, 0:width]
    waves = [np.sin(x * fx + y * fy) for fx, fy in rng.uniform(-0.3, 0.3, size=(3, 2))]
    pixels = 127 + 80 * np.stack(waves, axis=-1) + rng.normal(0, 25, size=(height, width, 3))
    pixels[(x // 11 + y // 7) % 5 == 0] = rng.uniform(0, 255, size=3)
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def settings(**changes: Any) -> Preprocessing:
    values: dict[str, Any] = {
        "input_size": (64, 64),
        "crop_fraction": 0.875,
        "interpolation": "bicubic",
        "crop_mode": "center",
        "color_mode": "RGB",
        "mean": MEAN,
        "std": (0.229, 0.224, 0.225),
    }
    return Preprocessing.model_validate(values | changes)


@pytest.fixture(scope="module")
def timm_transform() -> Callable[[Preprocessing], Transform]:
    """timm's own transform for a model's preprocessing."""
    try:
        timm = import_timm()
    except MissingExtraError as error:
        if os.environ.get("MKF_TEST_REQUIRE_ALL"):
            raise
        pytest.skip(f"timm is not installed: {error}")

    def make(preprocessing: Preprocessing) -> Transform:
        import timm.data

        transform = timm.data.create_transform(
            (3, *preprocessing.input_size),
            is_training=False,
            normalize=False,
            interpolation=preprocessing.interpolation,
            mean=preprocessing.mean,
            std=preprocessing.std,
            crop_pct=preprocessing.crop_fraction,
            crop_mode=preprocessing.crop_mode,
        )
        return lambda image: transform(image).permute(1, 2, 0).numpy()

    assert timm.__version__.startswith("1.0.")
    return make


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize("crop_mode", ["center", "squash", "border"])
@pytest.mark.parametrize("input_size", [(64, 64), (64, 48), (40, 73), (33, 33)])
def test_pixels_equal_timm(
    timm_transform: Callable[[Preprocessing], Transform],
    interpolation: str,
    crop_mode: str,
    input_size: tuple[int, int],
) -> None:
    for crop_fraction in (0.875, 1.0):  # others below, at random
        preprocessing = settings(
            interpolation=interpolation,
            crop_mode=crop_mode,
            input_size=input_size,
            crop_fraction=crop_fraction,
        )
        reference = timm_transform(preprocessing)
        for shape in SHAPES:
            image = photo(*shape)
            pixels = preprocess(image, preprocessing)
            assert pixels.shape == (*input_size, 3)
            assert pixels.dtype == np.uint8
            np.testing.assert_array_equal(pixels, reference(image), err_msg=f"{shape}")


def test_sizes_equal_timm_for_many_random_shapes(
    timm_transform: Callable[[Preprocessing], Transform],
) -> None:
    rng = np.random.default_rng(5)
    for place in range(150):
        height = int(rng.integers(8, 60))
        preprocessing = settings(
            interpolation="nearest",
            crop_mode=str(rng.choice(["center", "squash", "border"])),
            input_size=(height, height if place % 2 else int(rng.integers(8, 60))),
            crop_fraction=float(rng.uniform(0.5, 1)),
        )
        image = photo(*(int(n) for n in rng.integers(4, 300, size=2)))
        np.testing.assert_array_equal(
            preprocess(image, preprocessing), timm_transform(preprocessing)(image)
        )


@pytest.mark.parametrize(
    ("crop_mode", "input_size", "crop_fraction"),
    [("center", (224, 224), 0.875), ("center", (288, 288), 1.0), ("border", (224, 192), 0.9)],
)
def test_photos_equal_timm(
    timm_transform: Callable[[Preprocessing], Transform],
    crop_mode: str,
    input_size: tuple[int, int],
    crop_fraction: float,
) -> None:
    files = sorted(path for path in PHOTOS.rglob("*") if path.suffix.lower() in {".jpeg", ".jpg"})
    if not files:
        pytest.skip(f"no photos in {PHOTOS}; name their folder in MKF_IMAGENET_DIR")
    preprocessing = settings(
        crop_mode=crop_mode, input_size=input_size, crop_fraction=crop_fraction
    )
    reference = timm_transform(preprocessing)
    for path in files[:: max(1, len(files) // 25)]:
        image = decode(path.read_bytes(), limits=LIMITS)
        with Image.open(path) as opened:
            expected = reference(opened.convert("RGB"))
        np.testing.assert_array_equal(preprocess(image, preprocessing), expected, err_msg=str(path))


def test_a_constant_image_stays_constant_and_a_border_has_the_mean_color() -> None:
    image = Image.new("RGB", (90, 30), (200, 10, 60))
    for interpolation in INTERPOLATIONS:
        pixels = preprocess(image, settings(interpolation=interpolation))
        assert (pixels == (200, 10, 60)).all()
    pixels = preprocess(image, settings(crop_mode="border", crop_fraction=1.0))
    assert (pixels[0] == [round(255 * value) for value in MEAN]).all()
    assert (pixels[32] == (200, 10, 60)).all()


def encode(image: Image.Image, format_: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format_, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("format_", FORMATS)
def test_every_format_is_read(format_: str) -> None:
    data = encode(photo(40, 30), format_)
    image = decode(data, limits=LIMITS)
    assert image.mode == "RGB"
    assert image.size == (40, 30)
    with Image.open(io.BytesIO(data)) as expected:
        assert image.tobytes() == expected.convert("RGB").tobytes()


@pytest.mark.parametrize(
    ("mode", "format_"),
    [
        ("1", "PNG"),
        ("L", "PNG"),
        ("L", "JPEG"),
        ("LA", "PNG"),
        ("P", "PNG"),
        ("P", "GIF"),
        ("RGBA", "PNG"),
        ("RGBA", "WEBP"),
        ("CMYK", "JPEG"),
        ("CMYK", "TIFF"),
        ("LAB", "TIFF"),
        ("YCbCr", "JPEG"),
    ],
)
def test_every_color_mode_becomes_rgb_as_pillow_does_it(mode: str, format_: str) -> None:
    if mode == "LAB":
        source = Image.new("LAB", (40, 30), (128, 100, 90))
    else:
        source = photo(40, 30).convert(mode)
    data = encode(source, format_)
    with Image.open(io.BytesIO(data)) as expected:
        assert decode(data, limits=LIMITS).tobytes() == expected.convert("RGB").tobytes()


def test_a_palette_with_transparency_raises_no_warning_in_any_thread() -> None:
    data = encode(photo(40, 30).convert("P"), "PNG", transparency=bytes(range(256)))
    assert decode(data, limits=LIMITS).mode == "RGB"
    failures: list[BaseException] = []

    def work() -> None:
        try:
            for _ in range(20):
                decode(data, limits=LIMITS)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_a_rotation_in_the_exif_data_is_not_applied() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # stored on its side
    assert decode(encode(photo(40, 30), "JPEG", exif=exif), limits=LIMITS).size == (40, 30)


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.float32])
def test_deep_gray_is_refused(dtype: type) -> None:
    image = Image.fromarray(np.full((8, 8), 1000, dtype=dtype))
    with pytest.raises(ImageError, match="8 bits"):
        decode(encode(image, "TIFF"), limits=LIMITS)


def test_rgb_png_of_16_bits_a_channel_is_read() -> None:
    row = b"\x00" + struct.pack(">HHH", 0xFFFF, 0x8000, 0) * 3
    image = decode(png((3, 2), depth=16, pixels=row * 2), limits=LIMITS)
    assert image.getpixel((0, 0)) == (255, 128, 0)


def png(size: tuple[int, int], *, depth: int = 8, pixels: bytes = b"") -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = struct.pack(">IIBBBBB", *size, depth, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(pixels)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x00",
        b"not an image",
        b"\xff\xd8\xff",
        b"\x89PNG\r\n\x1a\n",
        b"RIFF\x00\x00\x00\x00WEBP",
        b"GIF89a",
        b"II*\x00\x08\x00\x00\x00",
        b"BM" + bytes(60),
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"%PDF-1.4",
        encode(photo(40, 30), "PPM"),
        encode(photo(40, 30), "ICO"),
        bytes(100_000),
    ],
    ids=lambda data: repr(data[:12]),
)
def test_bytes_that_are_no_image_are_an_image_error(data: bytes) -> None:
    with pytest.raises(ImageError) as caught:
        decode(data, limits=LIMITS)
    assert "0x" not in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("format_", FORMATS)
@pytest.mark.parametrize("kept", [0.1, 0.5, 0.9])
def test_truncated_files_are_an_image_error(format_: str, kept: float) -> None:
    data = encode(photo(200, 150), format_)
    with pytest.raises(ImageError):
        decode(data[: int(len(data) * kept)], limits=LIMITS)


@pytest.mark.parametrize("format_", FORMATS)
def test_flipped_bytes_never_raise_anything_else(format_: str) -> None:
    data = encode(photo(40, 30), format_)
    rng = np.random.default_rng(3)
    for _ in range(60):
        damaged = bytearray(data)
        for place in rng.integers(0, len(data), size=4):
            damaged[place] = rng.integers(256)
        try:
            image = decode(bytes(damaged), limits=LIMITS)
        except (ImageError, LimitError):
            continue
        assert image.mode == "RGB"


def test_too_many_bytes_are_a_limit_error() -> None:
    data = encode(photo(40, 30), "PNG")
    with pytest.raises(LimitError, match=f"{len(data)} bytes"):
        decode(data, limits=ImageLimits(max_image_bytes=len(data) - 1))
    assert decode(data, limits=ImageLimits(max_image_bytes=len(data))).size == (40, 30)


def test_too_many_pixels_are_a_limit_error_before_anything_is_decoded() -> None:
    data = encode(photo(40, 30), "PNG")
    with pytest.raises(LimitError, match="40 x 30 pixels"):
        decode(data, limits=ImageLimits(max_image_pixels=1199))
    assert decode(data, limits=ImageLimits(max_image_pixels=1200)).size == (40, 30)
    # The headers alone: a decoder would need gigabytes, or fail on the missing pixels.
    for size in [(10_001, 10_000), (30_000, 30_000), (2**31 - 1, 2**31 - 1)]:
        with pytest.raises(LimitError, match="pixels"):
            decode(png(size), limits=LIMITS)


def test_strips_that_would_grow_without_bound_are_refused() -> None:
    strip = Image.new("RGB", (1, 60_000))
    with pytest.raises(LimitError, match="too narrow"):
        preprocess(strip, settings(input_size=(224, 224)))
    with pytest.raises(ImageError, match="too narrow"):
        preprocess(strip, settings(input_size=(224, 224), crop_mode="border"))
