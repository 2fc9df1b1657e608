"""TIFF slides that OpenSlide refuses or would read wrong."""

from __future__ import annotations

import struct
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from stinfer.errors import ExtraMissingError, SlideError, SlideUnreadableError
from stinfer.slide import open_slide

tifffile = pytest.importorskip("tifffile")
pytest.importorskip("imagecodecs")

NOISE = np.random.default_rng(1).integers(0, 256, (90, 130, 3), dtype=np.uint8)
COLOR = {"photometric": "rgb", "metadata": None}


def write(path, pixels, **options):
    tifffile.imwrite(path, pixels, **{**COLOR, **options})
    return path


def read_all(path, mpp=1.0):
    with open_slide(path, mpp) as slide:
        size = slide.size_l0
        return slide.read((0.0, 0.0), size, size)


# --- how pixels are stored ------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [1, 7, 90])
@pytest.mark.parametrize("compression", [None, "lzw", "deflate", "zstd", "lzma", "packbits"])
def test_strips_give_the_pixels(tmp_path, rows, compression):
    path = write(tmp_path / "a.tif", NOISE, rowsperstrip=rows, compression=compression)
    with open_slide(path, 1.0) as slide:
        assert slide.reader == "tifffile"
        assert np.array_equal(slide.read((13.0, 21.0), (50, 40), (50, 40)), NOISE[21:61, 13:63])
    assert np.array_equal(read_all(path), NOISE)


@pytest.mark.parametrize("compression", ["jpeg2000", "webp", "jpegxl", "lzma"])
def test_tiles_of_codecs_that_openslide_lacks_give_the_pixels(tmp_path, compression):
    path = write(tmp_path / "a.tif", NOISE, tile=(32, 48), compression=compression)
    with open_slide(path, 1.0) as slide:
        assert slide.reader == "tifffile"
    # All of them without loss, as tifffile writes them.
    assert np.array_equal(read_all(path), NOISE)


@pytest.mark.parametrize("layout", [{"tile": (32, 48), "compression": "lzma"}, {"rowsperstrip": 7}])
def test_threads_read_a_slide_at_the_same_time(tmp_path, layout):
    path = write(tmp_path / "a.tif", NOISE, **layout)
    corners = [(x, y) for y in range(0, 60, 10) for x in range(0, 100, 10)] * 4
    with open_slide(path, 1.0) as slide, ThreadPoolExecutor(8) as pool:
        found = pool.map(lambda corner: slide.read(corner, (30.0, 30.0), (30, 30)), corners)
        for (x, y), pixels in zip(corners, found, strict=True):
            assert np.array_equal(pixels, NOISE[y : y + 30, x : x + 30])


def test_a_big_tiff_with_zstd(tmp_path):
    path = write(tmp_path / "a.btf", NOISE, tile=(32, 48), compression="zstd", bigtiff=True)
    assert np.array_equal(read_all(path), NOISE)


@pytest.mark.parametrize("layout", [{"tile": (32, 32), "compression": "lzma"}, {"rowsperstrip": 13}])
def test_planes_apart_are_put_together(tmp_path, layout):
    path = write(tmp_path / "a.tif", NOISE.transpose(2, 0, 1), planarconfig="separate", **layout)
    with open_slide(path, 1.0) as slide:
        assert slide.reader == "tifffile"
    assert np.array_equal(read_all(path), NOISE)


def test_a_tile_that_was_never_written_is_white(tmp_path):
    path = write(tmp_path / "a.tif", NOISE, tile=(48, 48), compression="lzma")
    content = bytearray(path.read_bytes())
    with tifffile.TiffFile(path) as file:
        counts = file.pages[0].tags[325]
        struct.pack_into("<" + {3: "H", 4: "I"}[counts.dtype], content, counts.valueoffset, 0)
    path.write_bytes(content)
    found = read_all(path)
    assert (found[:48, :48] == 255).all()
    assert np.array_equal(found[48:], NOISE[48:])


# --- kinds of colours -----------------------------------------------------------------------------


@pytest.mark.parametrize("byteorder", ["<", ">"])
@pytest.mark.parametrize("layout", [{"tile": (32, 32)}, {"rowsperstrip": 20}])
@pytest.mark.parametrize(("shift", "used"), [(0, 8), (4, 12), (6, 14), (8, 16)])
def test_16_bits_are_reduced_by_those_in_use_and_that_is_said(tmp_path, shift, used, byteorder, layout):
    wide = (NOISE.astype(np.uint16) << shift) | (2**shift // 2)
    path = write(tmp_path / "a.tif", wide, byteorder=byteorder, **layout)
    assert np.array_equal(read_all(path), NOISE)
    with open_slide(path, 1.0) as slide:
        assert len(slide.remarks) == 1
        assert f"16-bit channels are reduced to 8 bits: of the {used} that are in use" in slide.remarks[0]


def test_the_files_word_on_bits_in_use_counts(tmp_path):
    # All below 4096, but the file says that samples go up to 65535.
    wide = NOISE.astype(np.uint16) << 4
    path = write(tmp_path / "a.tif", wide, extratags=[(281, 3, 3, (65535, 65535, 65535), True)])
    assert np.array_equal(read_all(path), NOISE >> 4)


def test_a_16_bit_png_is_reduced_and_that_is_said(tmp_path):
    imagecodecs = pytest.importorskip("imagecodecs")
    wide = NOISE.astype(np.uint16) * 256 + 200
    (tmp_path / "a.png").write_bytes(imagecodecs.png_encode(wide))
    assert np.array_equal(read_all(tmp_path / "a.png"), NOISE)
    with open_slide(tmp_path / "a.png", 1.0) as slide:
        assert "16-bit channels are reduced to 8 bits" in slide.remarks[0]


def test_cmyk_by_hand(tmp_path):
    inks = np.array([[[0, 0, 0, 0], [255, 0, 0, 0], [0, 128, 0, 0], [10, 20, 30, 255]]], dtype=np.uint8)
    path = write(tmp_path / "a.tif", np.repeat(inks, 16, axis=0), photometric="separated", rowsperstrip=4)
    colors = [[255, 255, 255], [0, 255, 255], [255, 127, 255], [0, 0, 0]]
    assert read_all(path)[0].tolist() == colors


def test_a_palette_by_hand(tmp_path):
    numbers = np.array([[0, 1, 2, 1]] * 16, dtype=np.uint8)
    palette = np.zeros((3, 256), dtype=np.uint16)
    palette[:, :3] = np.array([(10, 20, 30), (200, 100, 150), (255, 255, 255)]).T * 257
    path = write(tmp_path / "a.tif", numbers, photometric="palette", colormap=palette, rowsperstrip=4)
    expected = [[10, 20, 30], [200, 100, 150], [255, 255, 255], [200, 100, 150]]
    assert read_all(path)[0].tolist() == expected


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        # A fifth of the colour on white; the colour as it is, since it was multiplied, plus 4/5 of white.
        ("unassalpha", [10 // 5 + 204, 100 // 5 + 204, 200 // 5 + 204]),
        ("assocalpha", [10 + 204, 100 + 204 - 49, 255]),
        ("unspecified", [10, 100, 200]),
    ],
)
def test_a_fourth_sample_is_what_the_file_says(tmp_path, kind, expected):
    rgba = np.full((32, 32, 4), (10, 100, 200, 51), dtype=np.uint8)
    if kind == "assocalpha":
        rgba[..., :3] = (10, 51, 51)
    path = write(tmp_path / "a.tif", rgba, extrasamples=[kind], rowsperstrip=8)
    assert np.abs(read_all(path)[3, 3].astype(int) - expected).max() <= 1


def test_an_unknown_fourth_sample_does_not_make_a_slide_transparent(tmp_path):
    rgbx = np.dstack([NOISE, np.zeros(NOISE.shape[:2], dtype=np.uint8)])
    path = write(tmp_path / "a.tif", rgbx, extrasamples=["unspecified"], tile=(32, 32))
    assert np.array_equal(read_all(path), NOISE)


@pytest.mark.parametrize("layout", [{"tile": (32, 32)}, {"rowsperstrip": 16}])
@pytest.mark.parametrize("installed", [True, False])
@pytest.mark.parametrize(
    ("pixels", "options", "reason"),
    [
        (NOISE[..., 0], {"photometric": "minisblack"}, "it is greyscale"),
        (NOISE[..., 0], {"photometric": "miniswhite"}, "it is greyscale"),
        (NOISE[..., 0] > 99, {"photometric": "minisblack"}, "it is black and white"),
        (NOISE.astype(np.float32), {}, "not whole numbers from 0 on"),
        (NOISE.astype(np.int16), {}, "not whole numbers from 0 on"),
        (NOISE.astype(np.uint32), {}, "its samples have 32 bits"),
        (NOISE, {"photometric": "cielab"}, r"CIE L\*a\*b\*"),
    ],
)
def test_what_is_no_colour_is_refused_with_the_reason(
    tmp_path, monkeypatch, pixels, options, reason, layout, installed
):
    path = write(tmp_path / "a.tif", pixels, **options, **layout)
    if not installed:
        monkeypatch.setitem(sys.modules, "tifffile", None)
    with pytest.raises(SlideUnreadableError, match=reason):
        open_slide(path, 1.0)


# --- many pictures in a file ----------------------------------------------------------------------


def test_the_first_of_several_pictures_is_read_and_that_is_said(tmp_path):
    path = write(tmp_path / "a.tif", np.stack([NOISE, NOISE[::-1]]), rowsperstrip=16)
    with open_slide(path, 1.0) as slide:
        assert slide.remarks == ("the slide's file holds 2 pictures of the same size; the first is read",)
    assert np.array_equal(read_all(path), NOISE)


def test_the_largest_picture_is_the_slide(tmp_path):
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        file.write(NOISE[:20, :70], rowsperstrip=16, **COLOR)
        file.write(NOISE, rowsperstrip=16, **COLOR)
    assert np.array_equal(read_all(tmp_path / "a.tif"), NOISE)


def test_pages_that_link_in_a_circle_end(tmp_path):
    path = write(tmp_path / "a.tif", np.stack([NOISE] * 3), rowsperstrip=90)
    content = bytearray(path.read_bytes())
    with tifffile.TiffFile(path) as file:
        last, first = file.pages[2], file.pages[0].offset
        n_tags = struct.unpack_from("<H", content, last.offset)[0]
        struct.pack_into("<I", content, last.offset + 2 + 12 * n_tags, first)
    path.write_bytes(content)
    assert np.array_equal(read_all(path), NOISE)
    with open_slide(path, 1.0) as slide:
        assert "the slide's file links its pages in a circle; each is taken once" in slide.remarks


# --- what is missing, damaged or absurd -----------------------------------------------------------


@pytest.mark.parametrize("package", ["tifffile", "imagecodecs"])
def test_a_file_that_needs_the_extra_names_it(tmp_path, monkeypatch, package):
    path = write(tmp_path / "a.tif", NOISE, tile=(32, 32), compression="jpeg2000")
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(
        ExtraMissingError, match=f"reading the slide .* needs the package {package}"
    ) as caught:
        open_slide(path, 1.0)
    assert caught.value.fix == "pip install 'stinfer[tiff]'"


def test_without_the_extra_pillow_reads_what_it_can(tmp_path, monkeypatch):
    path = write(tmp_path / "a.tif", NOISE, rowsperstrip=16, compression="lzw")
    monkeypatch.setitem(sys.modules, "tifffile", None)
    with open_slide(path, 1.0) as slide:
        assert slide.reader == "pillow"
    assert np.array_equal(read_all(path), NOISE)


@pytest.mark.parametrize(
    "layout", [{"tile": (32, 32), "compression": "lzma"}, {"rowsperstrip": 9}, {"rowsperstrip": 90}]
)
def test_a_file_cut_short_says_so_where_it_is_read(tmp_path, layout):
    path = write(tmp_path / "a.tif", NOISE, **layout)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 2 // 3])
    with pytest.raises(SlideUnreadableError, match="cut short"):
        read_all(path)


def test_a_tile_that_claims_to_be_huge_is_refused_before_it_is_decoded(tmp_path):
    path = write(tmp_path / "a.tif", NOISE, rowsperstrip=90, compression="jpeg")
    content = bytearray(path.read_bytes())
    frame = content.index(b"\xff\xc0")
    struct.pack_into(">HH", content, frame + 5, 65000, 65000)
    path.write_bytes(content)
    with pytest.raises(SlideUnreadableError, match="says that it has 65000 x 65000"):
        read_all(path)


@pytest.mark.parametrize(
    ("tags", "reason"),
    [
        ({256: 3_000_000_000, 257: 3_000_000_000, 273: 8, 278: 9, 279: 9}, "3000000000 x 3000000000 px"),
        (
            {256: 99_999, 257: 99_999, 322: 99_999, 323: 99_999, 324: 8, 325: 9},
            "its tiles have 99999 x 99999",
        ),
        ({256: 99_999, 257: 99_999, 322: 256, 323: 256, 324: 8, 325: 9}, "a part of it is damaged"),
    ],
)
def test_a_tiny_file_that_claims_to_be_huge_is_refused(tmp_path, tags, reason):
    tags |= {258: 8, 259: 8, 262: 2, 277: 3, 284: 1}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(tags.items()))
    path = tmp_path / "a.tif"
    path.write_bytes(b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + b"\0" * 64)
    with pytest.raises(SlideUnreadableError, match=reason), open_slide(path, 1.0) as slide:
        slide.read((0.0, 0.0), (16.0, 16.0), (16, 16))


@pytest.mark.filterwarnings("ignore")  # Pillow's own about damaged tags
@pytest.mark.parametrize("compression", [None, "lzma", "jpeg2000", "jpeg"])
def test_a_damaged_file_never_ends_in_a_foreign_error(tmp_path, compression):
    path = write(tmp_path / "a.tif", NOISE, tile=(32, 48), compression=compression, planarconfig="contig")
    content = np.frombuffer(path.read_bytes(), dtype=np.uint8)
    rng = np.random.default_rng(11)
    refused = 0
    for _ in range(150):
        damaged = content.copy()
        damaged[rng.integers(0, min(len(content), 500), 3)] = rng.integers(0, 256, 3)
        path.write_bytes(damaged.tobytes())
        try:
            read_all(path)
        except (SlideError, ExtraMissingError):
            refused += 1
    assert refused > 0


def test_nothing_of_tifffiles_own_words_reaches_the_terminal(tmp_path, capfd):
    path = write(tmp_path / "a.tif", NOISE, rowsperstrip=16)
    content = bytearray(path.read_bytes())
    with tifffile.TiffFile(path) as file:
        offset = file.pages[0].offset
    # A next page beyond the end of the file, which tifffile logs.
    struct.pack_into("<I", content, offset + 2 + 12 * struct.unpack_from("<H", content, offset)[0], 10**9)
    path.write_bytes(content)
    assert np.array_equal(read_all(path), NOISE)
    assert capfd.readouterr() == ("", "")
