from __future__ import annotations

import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from stinfer.errors import (
    ScaleImpossibleError,
    ScaleUnknownError,
    SlideError,
    SlideNotFoundError,
    SlideTooLargeError,
    SlideUnreadableError,
)
from stinfer.slide import check_mpp, open_slide

NOISE = np.random.default_rng(1).integers(0, 256, (20, 30, 3), dtype=np.uint8)
# One pixel per µm.
DPI = 25_400


def read_all(path, mpp=None):
    with open_slide(path, mpp) as slide:
        width, height = slide.size_l0
        return slide.read((0.0, 0.0), (width, height), (width, height))


def triangle(pixels, start, length, n_px):
    """Resample rows by definition: a triangle over two output pixels, at least two input pixels."""
    step = length / n_px
    support = max(step, 1.0)
    centers = start + (np.arange(n_px) + 0.5) * step
    weights = np.clip(1 - np.abs(np.arange(len(pixels)) + 0.5 - centers[:, None]) / support, 0, None)
    weights /= weights.sum(axis=1, keepdims=True)
    return np.tensordot(weights, pixels, axes=(1, 0))


# --- flat images ----------------------------------------------------------------------------------


def test_a_large_flat_image_is_seen_whole_through_means_of_4_by_4_pixels(tmp_path):
    pixels = np.random.default_rng(3).integers(0, 256, (2002, 2001, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "large.png")
    means = pixels[:2000, :2000].reshape(500, 4, 500, 4, 3).mean(axis=(1, 3))
    # 100 x 50 output pixels of 8 x 8 pixels each, away from the border.
    expected = triangle(triangle(means, 20.0, 100.0, 50).swapaxes(0, 1), 40.0, 200.0, 100).swapaxes(0, 1)
    with open_slide(tmp_path / "large.png", 1.0) as slide:
        seen = slide.read((160.0, 80.0), (800.0, 400.0), (100, 50))
        exact = slide.read((160.0, 80.0), (300.0, 150.0), (100, 50))
    # Rounded once for the means, and twice by Pillow, after each axis.
    assert np.abs(seen - expected).max() <= 1.5
    rows = triangle(pixels, 80.0, 150.0, 50)
    assert np.abs(exact - triangle(rows.swapaxes(0, 1), 160.0, 300.0, 100).swapaxes(0, 1)).max() <= 1.01


@pytest.mark.parametrize("name", ["a.png", "a.tif", "noextension"])
def test_reading_all_at_its_own_size_gives_the_pixels(tmp_path, name):
    path = tmp_path / name
    Image.fromarray(NOISE).save(path, format=None if "." in name else "PNG")
    assert np.array_equal(read_all(path, 1.0), NOISE)


def test_a_jpeg_is_what_pillow_decodes(tmp_path):
    path = tmp_path / "a.jpg"
    Image.fromarray(NOISE).save(path, quality=80)
    with Image.open(path) as image:
        assert np.array_equal(read_all(path, 1.0), np.asarray(image))


def test_a_box_at_whole_pixels_is_cut_exactly(tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(NOISE).save(path)
    with open_slide(path, 1.0) as slide:
        assert np.array_equal(slide.read((7.0, 3.0), (10, 12), (10, 12)), NOISE[3:15, 7:17])


def test_a_box_at_half_pixels_is_the_mean_of_neighbors(tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(NOISE).save(path)
    with open_slide(path, 1.0) as slide:
        across = slide.read((7.5, 3.0), (10, 12), (10, 12)).astype(float)
        down = slide.read((7.0, 3.5), (10, 12), (10, 12)).astype(float)
    exact = NOISE.astype(float)
    assert np.abs(across - (exact[3:15, 7:17] + exact[3:15, 8:18]) / 2).max() <= 0.5
    assert np.abs(down - (exact[3:15, 7:17] + exact[4:16, 7:17]) / 2).max() <= 0.5


def test_stripes_finer_than_the_result_become_their_mean(tmp_path):
    pixels = np.zeros((64, 64, 3), dtype=np.uint8)
    pixels[:, ::2] = 200
    path = tmp_path / "a.png"
    Image.fromarray(pixels).save(path)
    with open_slide(path, 1.0) as slide:
        assert np.unique(slide.read((16.0, 16.0), (32, 32), (16, 16))).tolist() == [100]
        assert np.unique(slide.read((16.0, 16.0), (32, 32), (8, 8))).tolist() == [100]


def test_any_box_agrees_with_the_filters_definition(tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(NOISE).save(path)
    rng = np.random.default_rng(5)
    margin = 300
    white = np.full((20 + 2 * margin, 30 + 2 * margin, 3), 255.0)
    white[margin : margin + 20, margin : margin + 30] = NOISE
    with open_slide(path, 1.0) as slide:
        for _ in range(60):
            x, y = rng.uniform(-40, 40, 2)
            extent = rng.uniform(2, 60, 2)
            size = rng.integers(1, 25, 2)
            rows = triangle(white, margin + y, extent[1], size[1])
            expected = triangle(rows.swapaxes(0, 1), margin + x, extent[0], size[0]).swapaxes(0, 1)
            found = slide.read((x, y), tuple(extent.tolist()), tuple(size.tolist()))
            # Pillow rounds twice, after each axis.
            assert np.abs(found - expected).max() <= 1.01


def test_beyond_the_border_is_white(tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(NOISE).save(path)
    expected = np.full((30, 40, 3), 255, dtype=np.uint8)
    expected[5:25, 5:35] = NOISE
    with open_slide(path, 1.0) as slide:
        assert np.array_equal(slide.read((-5.0, -5.0), (40, 30), (40, 30)), expected)
        for corner in ((-100.0, 0.0), (0.0, 100.0), (34.0, 24.0), (1e6, -1e6)):
            far = slide.read(corner, (10, 10), (5, 5))
            assert far.shape == (5, 5, 3)
            assert (far == 255).all()


def test_thumbnail_keeps_the_sides_proportion_and_never_enlarges(tmp_path):
    pixels = np.zeros((40, 100, 3), dtype=np.uint8)
    pixels[:, 50:] = (200, 100, 0)
    path = tmp_path / "a.png"
    Image.fromarray(pixels).save(path)
    with open_slide(path, 1.0) as slide:
        small = slide.thumbnail(10)
        assert small.shape == (4, 10, 3)
        # But for the outermost pixels, into which the filter mixes the white beyond.
        assert (small[1:-1, 1:4] == 0).all()
        assert (small[1:-1, 6:-1] == (200, 100, 0)).all()
        assert np.array_equal(slide.thumbnail(1000), pixels)


def test_transparent_is_white(tmp_path):
    rgba = np.array([[[10, 20, 30, 255], [10, 20, 30, 0], [0, 0, 0, 51]]], dtype=np.uint8)
    path = tmp_path / "a.png"
    Image.fromarray(rgba, "RGBA").save(path)
    # The last: 51/255 = a fifth of black on white.
    assert read_all(path, 1.0).tolist() == [[[10, 20, 30], [255, 255, 255], [204, 204, 204]]]


def test_transparent_colour_of_a_palette_is_white(tmp_path):
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putdata([0, 1])
    path = tmp_path / "a.png"
    image.save(path, transparency=1)
    assert read_all(path, 1.0).tolist() == [[[10, 20, 30], [255, 255, 255]]]


TURNED = {
    1: NOISE,
    2: NOISE[:, ::-1],
    3: NOISE[::-1, ::-1],
    4: NOISE[::-1],
    5: NOISE.swapaxes(0, 1),
    6: np.rot90(NOISE, -1),
    7: NOISE[::-1, ::-1].swapaxes(0, 1),
    8: np.rot90(NOISE, 1),
}


@pytest.mark.parametrize("orientation", TURNED)
@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_the_orientation_tag_is_obeyed_and_turns_the_scale_too(tmp_path, orientation, suffix):
    path = tmp_path / f"a.{suffix}"
    exif = Image.Exif()
    exif[0x0112] = orientation
    # Columns of the file are 1 µm apart, rows 0.5 µm.
    Image.fromarray(NOISE).save(path, exif=exif, dpi=(DPI, 2 * DPI))
    assert np.array_equal(read_all(path), TURNED[orientation])
    with open_slide(path) as slide:
        assert slide.mpp == pytest.approx((0.5, 1.0) if orientation >= 5 else (1.0, 0.5))


@pytest.mark.parametrize("orientation", [3, 6, 8])
def test_the_scale_of_a_square_image_turns_too(tmp_path, orientation):
    path = tmp_path / "a.png"
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(NOISE[:20, :20]).save(path, exif=exif, dpi=(DPI, 2 * DPI))
    with open_slide(path) as slide:
        assert slide.mpp == pytest.approx((0.5, 1.0) if orientation >= 5 else (1.0, 0.5))


# --- scale ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif"])
def test_the_resolution_tag_is_the_scale(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(NOISE).save(path, dpi=(50_800, 63_500))
    with open_slide(path) as slide:
        assert slide.mpp == pytest.approx((0.5, 0.4))
        assert slide.mpp_source == "resolution tag"


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif"])
def test_an_image_without_resolution_tag_has_no_scale(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(NOISE).save(path)
    with pytest.raises(ScaleUnknownError, match="does not say"):
        open_slide(path)


@pytest.mark.parametrize("kind", ["JPEG", "MPO"])
def test_a_jpeg_whose_exif_has_no_resolution_has_no_scale(tmp_path, kind):
    exif = Image.Exif()
    exif[0x0112] = 1
    path = tmp_path / "a.jpg"
    image = Image.fromarray(NOISE)
    # MPO, of two images, is what cameras write.
    more = {"save_all": True, "append_images": [image]} if kind == "MPO" else {}
    image.save(path, format=kind, exif=exif, **more)
    with Image.open(path) as saved:
        assert saved.format == kind
    with pytest.raises(ScaleUnknownError):
        open_slide(path)


def test_the_resolution_of_screens_is_refused(tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(NOISE).save(path, dpi=(72, 72))
    with pytest.raises(ScaleImpossibleError) as caught:
        open_slide(path)
    assert str(path) in caught.value.what
    assert "resolution tag" in caught.value.what
    assert "gives 352.7" in caught.value.what


def test_the_users_scale_overrides_the_files(tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(NOISE).save(path, dpi=(72, 72))
    with open_slide(path, 0.25) as slide:
        assert (slide.mpp, slide.mpp_source) == ((0.25, 0.25), "given by the user")


@pytest.mark.parametrize("mpp", [0.0, -1.0, 0.049, 20.1, float("nan"), float("inf")])
def test_an_impossible_scale_of_the_users_is_refused(tmp_path, mpp):
    path = tmp_path / "a.png"
    Image.fromarray(NOISE).save(path)
    with pytest.raises(
        ScaleImpossibleError, match=r"--mpp gives .* µm per pixel, outside the 0\.05 to 20 of"
    ):
        open_slide(path, mpp)


def test_scales_at_the_limits_are_accepted():
    check_mpp("it", (0.05, 20.0))
    with pytest.raises(ScaleImpossibleError, match=r"it gives 0\.5 x 30 µm per pixel"):
        check_mpp("it", (0.5, 30.0))


# --- what cannot be read --------------------------------------------------------------------------


def test_a_missing_slide(tmp_path):
    with pytest.raises(SlideNotFoundError, match=r"none\.svs does not exist"):
        open_slide(tmp_path / "none.svs")


@pytest.mark.parametrize("name", ["x" * 300, "a\0b"], ids=["too long", "NUL"])
def test_a_path_that_no_file_can_have(name):
    with pytest.raises(SlideError):
        open_slide(name)


@pytest.mark.parametrize("content", [b"", b"hello", b"\x89PNG\r\n\x1a\n", b"II*\0", b"\xff\xd8\xff\xe0"])
def test_what_is_no_image_is_refused(tmp_path, content):
    path = tmp_path / "a.png"
    path.write_bytes(content)
    with pytest.raises(SlideUnreadableError) as caught:
        open_slide(path, 1.0)
    assert str(path) in caught.value.what


@pytest.mark.parametrize(
    ("suffix", "kind"),
    [
        ("gif", "it is a GIF image"),
        ("bmp", "it is a BMP image"),
        ("webp", "it is a WebP image"),
        ("ppm", "it is no image that OpenSlide or Pillow knows"),
    ],
)
def test_other_kinds_of_images_are_refused_by_name(tmp_path, suffix, kind):
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(NOISE).save(path)
    with pytest.raises(SlideUnreadableError, match=kind):
        open_slide(path, 1.0)


@pytest.mark.parametrize(
    ("content", "kind"),
    [(b"", "it is empty"), (b"PK\x03\x04" + b"\0" * 99, "a zip archive: unpack it first")],
)
def test_what_is_no_image_is_named(tmp_path, content, kind):
    path = tmp_path / "slide.svs"
    path.write_bytes(content)
    with pytest.raises(SlideUnreadableError, match=kind):
        open_slide(path, 1.0)


def test_a_folder_is_refused(tmp_path):
    with pytest.raises(SlideUnreadableError, match="it is a folder"):
        open_slide(tmp_path, 1.0)


@pytest.mark.parametrize(
    ("image", "kind"),
    [
        (Image.fromarray(NOISE[..., 0]), "L"),
        (Image.fromarray(NOISE[..., 0].astype(np.uint16) * 257), "I;16"),
        (Image.fromarray(NOISE[..., 0] > 99), "1"),
        (Image.fromarray(NOISE[..., :2], "LA"), "LA"),
    ],
)
def test_grey_images_are_refused_with_the_reason(tmp_path, image, kind):
    path = tmp_path / "a.png"
    image.save(path)
    with pytest.raises(SlideUnreadableError, match=f"pixels of kind '{kind}'; H&E needs colour"):
        open_slide(path, 1.0)


def test_a_grey_pyramid_is_refused_as_a_grey_image_is(shared):
    with pytest.raises(SlideUnreadableError):
        open_slide(shared / "slides" / "test_orient3.tif", 0.5)


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif"])
@pytest.mark.filterwarnings("ignore")  # Pillow's own about truncated files
def test_a_file_cut_short_is_refused_or_whole(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(NOISE).save(path)
    content, whole = path.read_bytes(), read_all(path, 1.0)
    n_refused = 0
    for length in range(0, len(content), 7):
        path.write_bytes(content[:length])
        try:
            found = read_all(path, 1.0)
        except SlideUnreadableError as error:
            assert str(path) in error.what  # noqa: PT017 - a file that lost its checksum alone may open
            n_refused += 1
        else:
            assert np.array_equal(found, whole)
    assert n_refused >= 0.9 * len(content) / 7


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif"])
@pytest.mark.filterwarnings("ignore")  # Pillow's own about damaged tags
def test_a_damaged_file_never_ends_in_a_foreign_error(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(NOISE).save(path, exif=exif)
    content = np.frombuffer(path.read_bytes(), dtype=np.uint8)
    rng = np.random.default_rng(11)
    refused = 0
    for _ in range(150):
        damaged = content.copy()
        damaged[rng.integers(0, min(len(content), 400), 3)] = rng.integers(0, 256, 3)
        path.write_bytes(damaged.tobytes())
        try:
            read_all(path, 1.0)
        except SlideError:
            refused += 1
    assert refused > 0


def huge_png(width, height):
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(b"")), (b"IEND", b""))
    body = b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + body


def test_a_flat_image_too_large_to_decode_is_refused_before_decoding(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    path.write_bytes(huge_png(100_000, 50_000))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 123)
    with pytest.raises(SlideTooLargeError, match=r"100000 x 50000 px; .* up to 500 megapixels"):
        open_slide(path, 1.0)
    # Pillow's own limit is as it was.
    assert Image.MAX_IMAGE_PIXELS == 123
