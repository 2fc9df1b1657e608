from __future__ import annotations

import itertools
import subprocess
import sys
import textwrap
from xml.etree import ElementTree

import numpy as np
import openslide
import pytest
from PIL import Image

from stinfer import ome_tiff
from stinfer.errors import ExtraMissingError, OutputWriteError, SettingError
from stinfer.ome_tiff import GridImage, write_ome_tiff

OME = {"ome": "http://www.openmicroscopy.org/Schemas/OME/2016-06"}
HOSTILE = "<&\"> '&amp; &#181; ]]> µ é"


@pytest.fixture
def tifffile():
    return pytest.importorskip("tifffile")


def planes_of(shape, seed=0):
    """Random values, a third of them missing."""
    rng = np.random.default_rng(seed)
    planes = rng.normal(1.0, 2.0, shape).astype(np.float32)
    planes[rng.random(shape) < 1 / 3] = np.nan
    return planes


def image_of(planes, names=None, pitch_um=55.0):
    names = [f"GENE{i}" for i in range(len(planes))] if names is None else names
    n_rows, n_columns = planes.shape[1:]
    return GridImage(names, "log1p CP10K", n_rows, n_columns, pitch_um, lambda index: planes[index])


def written(path, planes, names=None, pitch_um=55.0, slide_name="a.svs", bank_name="breast.h5"):
    image = image_of(planes, names, pitch_um)
    write_ome_tiff(path, image, slide_name=slide_name, bank_name=bank_name)
    return path


def xml_of(tifffile, path):
    with tifffile.TiffFile(path) as file:
        return ElementTree.fromstring(file.pages[0].tags["ImageDescription"].value)


# --- values ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(3, 40, 30), (2, 256, 512), (4, 300, 257), (3, 1, 1)])
def test_every_value_and_every_gap_is_read_back(tmp_path, tifffile, shape):
    planes = planes_of(shape)
    path = written(tmp_path / "a.ome.tif", planes)
    with tifffile.TiffFile(path) as file:
        assert file.is_ome
        assert [series.kind for series in file.series] == ["ome"]
        read = file.asarray(squeeze=False)
    assert read.dtype == np.float32
    np.testing.assert_array_equal(read.reshape(shape), planes)


def test_an_image_of_one_gene(tmp_path, tifffile):
    planes = planes_of((1, 20, 30))
    path = written(tmp_path / "a.ome.tif", planes)
    np.testing.assert_array_equal(tifffile.imread(path), planes[0])


def test_planes_of_another_layout_or_type_are_written_as_they_are_meant(tmp_path, tifffile):
    values = np.arange(12.0).reshape(3, 4)
    for other in (np.asfortranarray(values), values.astype(">f8"), values[::-1][::-1]):
        path = tmp_path / "a.ome.tif"
        image = GridImage(["A"], "log1p CP10K", 3, 4, 1.0, lambda _, other=other: other)
        write_ome_tiff(path, image, slide_name="a", bank_name="b")
        np.testing.assert_array_equal(tifffile.imread(path), values)


def test_each_plane_is_asked_for_once_in_order(tmp_path, tifffile):
    planes, asked = planes_of((5, 1030, 4)), []

    def plane(index):
        asked.append(index)
        return planes[index]

    image = GridImage("ABCDE", "log1p CP10K", 1030, 4, 10.0, plane)
    write_ome_tiff(tmp_path / "a.ome.tif", image, slide_name="a", bank_name="b")
    assert asked == [0, 1, 2, 3, 4]


def test_pages_are_tiled_compressed_and_without_a_date(tmp_path, tifffile):
    path = written(tmp_path / "a.ome.tif", np.full((2, 600, 600), np.nan, dtype=np.float32), pitch_um=8.0)
    with tifffile.TiffFile(path) as file:
        assert (file.is_bigtiff, file.byteorder, len(file.pages)) == (False, "<", 2)
        for page in (file.pages[0], file.pages[1].aspage()):
            assert (page.tilewidth, page.tilelength, page.compression) == (256, 256, 8)
            tags = {tag.name: tag.value for tag in page.tags}
            assert tags.keys() & {"DateTime", "Software", "SubIFDs"} == set()
            # 8 µm per pixel are 1250 pixels in a cm, for readers that do not know OME-XML.
            assert (tags["XResolution"], tags["YResolution"]) == ((1250, 1), (1250, 1))
            assert tags["ResolutionUnit"] == 3
    # 1.4 million pixels of 4 bytes.
    assert path.stat().st_size < 20_000


def test_the_same_image_gives_the_same_bytes(tmp_path, tifffile):
    planes = planes_of((3, 1100, 20))
    first = written(tmp_path / "a.ome.tif", planes).read_bytes()
    assert written(tmp_path / "other.tiff", planes.copy()).read_bytes() == first
    assert written(tmp_path / "other.tiff", planes + 1).read_bytes() != first


# --- the description ------------------------------------------------------------------------------


def test_the_description_places_the_image_and_names_its_channels(tmp_path, tifffile):
    path = written(tmp_path / "a.ome.tif", planes_of((2, 40, 30)), names=["ERBB2", "CD8A"], pitch_um=27.5)
    root = xml_of(tifffile, path)
    assert root.attrib == {"Creator": "stinfer"}  # no UUID
    pixels = root.find("ome:Image/ome:Pixels", OME)
    sizes = {key: pixels.get(f"Size{key}") for key in "XYCZT"}
    assert sizes == {"X": "30", "Y": "40", "C": "2", "Z": "1", "T": "1"}
    assert (pixels.get("Type"), pixels.get("DimensionOrder")) == ("float", "XYCZT")
    for axis in "XY":
        assert float(pixels.get(f"PhysicalSize{axis}")) == 27.5
        assert pixels.get(f"PhysicalSize{axis}Unit") == "µm"
    assert [c.get("Name") for c in pixels.findall("ome:Channel", OME)] == ["ERBB2", "CD8A"]
    planes = pixels.findall("ome:Plane", OME)
    assert [plane.get("TheC") for plane in planes] == ["0", "1"]
    for plane in planes:
        assert (float(plane.get("PositionX")), float(plane.get("PositionY"))) == (0.0, 0.0)
        assert (plane.get("PositionXUnit"), plane.get("PositionYUnit")) == ("µm", "µm")
    assert pixels.find("ome:TiffData", OME).attrib == {"IFD": "0", "PlaneCount": "2"}


def test_the_description_names_slide_bank_and_unit(tmp_path, tifffile):
    path = written(tmp_path / "a.ome.tif", planes_of((1, 4, 3)), slide_name="<S>.svs", bank_name='B "&".h5')
    root = xml_of(tifffile, path)
    image = root.find("ome:Image", OME)
    assert image.get("Name") == "stinfer <S>.svs"
    assert image.findtext("ome:Description", namespaces=OME) == (
        'Gene expression predicted by stinfer from slide <S>.svs with bank B "&".h5. '
        "Values in log1p CP10K; NaN where nothing was predicted. "
        "Pixels of 55.0 µm, from the slide's upper left corner."
    )
    annotation = root.find("ome:StructuredAnnotations/ome:MapAnnotation", OME)
    assert annotation.get("ID") == image.find("ome:AnnotationRef", OME).get("ID")
    said = {pair.get("K"): pair.text for pair in annotation.findall("ome:Value/ome:M", OME)}
    assert said == {"slide": "<S>.svs", "bank": 'B "&".h5', "unit": "log1p CP10K", "pitch_um": "55.0"}


def test_names_that_look_like_xml_are_kept(tmp_path, tifffile):
    names = [HOSTILE, "", "</OME>", "twice", "twice"]
    path = written(tmp_path / "a.ome.tif", planes_of((5, 4, 3)), names, slide_name=HOSTILE, bank_name=HOSTILE)
    root = xml_of(tifffile, path)
    assert [c.get("Name") for c in root.findall(".//ome:Channel", OME)] == names
    assert [m.text for m in root.findall(".//ome:M", OME)][:2] == [HOSTILE, HOSTILE]
    with tifffile.TiffFile(path) as file:
        assert file.asarray().shape == (5, 4, 3)


@pytest.mark.parametrize("character", ["\0", "\x1b", "\n", "\t", "\r", "\ud800", "\ufffe", "\x7f", "😀"])
def test_characters_that_break_a_reader_are_replaced(tmp_path, tifffile, character):
    planes = planes_of((2, 4, 3))
    name = f"A{character}B"
    path = written(tmp_path / "a.ome.tif", planes, [name, "C"], slide_name=name, bank_name=name)
    root = xml_of(tifffile, path)
    expected = name if character == "\x7f" else "A\ufffdB"
    assert [c.get("Name") for c in root.findall(".//ome:Channel", OME)] == [expected, "C"]
    assert root.find("ome:Image", OME).get("Name") == f"stinfer {expected}"


def test_bio_formats_finds_no_numeric_reference(tmp_path, tifffile):
    """It makes " #181;m" of "&#181;m" before it parses, and then takes the file for a plain TIFF."""
    path = written(tmp_path / "a.ome.tif", planes_of((1, 4, 3)), [HOSTILE + "\n"])
    data = path.read_bytes()
    assert b"&#" not in data
    assert 'PhysicalSizeXUnit="µm"'.encode() in data
    assert b'<?xml version="1.0" encoding="UTF-8"?><OME ' in data


# --- the pyramid ----------------------------------------------------------------------------------


def halved(plane):
    """Average in squares of 2 x 2, one by one."""
    shape = tuple(-(-length // 2) for length in plane.shape)
    result = np.full(shape, np.nan)
    for r in range(shape[0]):
        for c in range(shape[1]):
            square = plane[2 * r : 2 * r + 2, 2 * c : 2 * c + 2].astype(float)
            if not np.isnan(square).all():
                result[r, c] = square[~np.isnan(square)].mean()
    return result.astype(np.float32)


@pytest.mark.parametrize("shape", [(1024, 8), (8, 1024)])
def test_a_plane_of_1024_pixels_has_no_smaller_copies(tmp_path, tifffile, shape):
    path = written(tmp_path / "a.ome.tif", planes_of((2, *shape)))
    with tifffile.TiffFile(path) as file:
        assert [level.shape for level in file.series[0].levels] == [(2, *shape)]


def test_larger_planes_have_smaller_copies_that_leave_out_the_gaps(tmp_path, tifffile):
    planes = planes_of((2, 2051, 5))
    planes[:, :4] = np.nan
    path = written(tmp_path / "a.ome.tif", planes)
    with tifffile.TiffFile(path) as file:
        assert len(file.series) == 1
        # The smaller copies are not in the chain of pages.
        assert len(file.pages) == 2
        levels = file.series[0].levels
        assert [level.shape for level in levels] == [(2, 2051, 5), (2, 1026, 3), (2, 513, 2)]
        read = [level.asarray() for level in levels]
        for number in (0, 1):
            page = file.pages[number].aspage()
            assert page.subfiletype == 0
            assert [copy.aspage().subfiletype for copy in page.pages] == [1, 1]
            assert [copy.aspage().shape for copy in page.pages] == [(1026, 3), (513, 2)]
            assert len(page.tags["SubIFDs"].value) == 2
    np.testing.assert_array_equal(read[0], planes)
    for above, below in itertools.pairwise(read):
        for channel in (0, 1):
            np.testing.assert_allclose(below[channel], halved(above[channel]), rtol=2e-7, atol=1e-7)
    assert np.isnan(read[1][:, :2]).all()
    assert np.isnan(read[2][:, 0]).all()


def test_the_mean_of_a_square_by_hand(tmp_path, tifffile):
    plane = np.full((1025, 4), np.nan, dtype=np.float32)
    plane[:2] = [[1.0, 2.0, np.nan, 8.0], [3.0, 6.0, 4.0, np.nan]]
    plane[1024] = [5.0, 7.0, np.nan, np.nan]
    path = written(tmp_path / "a.ome.tif", plane[None])
    small = tifffile.imread(path, level=1)
    assert small.shape == (513, 2)
    assert small[0].tolist() == [3.0, 6.0]
    assert small[512, 0] == 6.0
    assert np.isnan(small[1:512]).all()
    assert np.isnan(small[512, 1])


# --- BigTIFF --------------------------------------------------------------------------------------


def test_what_may_not_fit_into_32_bit_offsets_is_bigtiff(tmp_path, tifffile, monkeypatch):
    planes = planes_of((3, 1100, 300))
    classic = written(tmp_path / "classic.tif", planes)
    # Random values hardly shrink; had the file been one byte too long, it should have been foreseen.
    monkeypatch.setattr(ome_tiff, "_CLASSIC_LIMIT_BYTES", classic.stat().st_size - 1)
    big = written(tmp_path / "big.tif", planes)
    for path, is_big in ((classic, False), (big, True)):
        with tifffile.TiffFile(path) as file:
            assert file.is_bigtiff == is_big
            assert [level.shape for level in file.series[0].levels] == [(3, 1100, 300), (3, 550, 150)]
            np.testing.assert_array_equal(file.asarray(), planes)


# --- failures -------------------------------------------------------------------------------------

WRITE = """
    import resource, sys
    from pathlib import Path
    import numpy as np
    from stinfer.errors import OutputWriteError
    from stinfer.ome_tiff import GridImage, write_ome_tiff
    planes = np.random.default_rng(0).random((3, 200, 200), dtype=np.float32)
    image = GridImage("ABC", "log1p CP10K", 200, 200, 55.0, lambda index: planes[index])
    path = Path(sys.argv[1]) / "out"
    write_ome_tiff(path, image, slide_name="a", bank_name="b")
    limit = round(path.stat().st_size * float(sys.argv[2])) - 1
    path.unlink()
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    try:
        write_ome_tiff(path, image, slide_name="a", bank_name="b")
    except OutputWriteError as error:
        print(error.what)
"""


@pytest.mark.parametrize("part", [0.001, 0.2, 0.5, 1.0])
def test_a_full_disk_leaves_nothing_and_is_told(tmp_path, tifffile, part):
    """A limit on the size of files fails every write beyond it, as a full disk does."""
    pytest.importorskip("resource")
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(WRITE), str(tmp_path), str(part)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"cannot write {tmp_path / 'out'}: File too large\n"
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_there(tmp_path, tifffile):
    with pytest.raises(OutputWriteError, match="cannot write"):
        written(tmp_path / "none" / "a.ome.tif", planes_of((1, 4, 3)))


def test_a_failing_plane_leaves_the_old_file_and_nothing_else(tmp_path, tifffile):
    path = tmp_path / "a.ome.tif"
    path.write_bytes(b"old")

    def plane(index):
        if index:
            msg = "bug"
            raise RuntimeError(msg)
        return np.ones((4, 3), dtype=np.float32)

    image = GridImage("AB", "log1p CP10K", 4, 3, 55.0, plane)
    with pytest.raises(RuntimeError, match="bug"):
        write_ome_tiff(path, image, slide_name="a", bank_name="b")
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("a.ome.tif", b"old")]


def test_a_plane_of_another_shape_is_a_bug_that_is_told(tmp_path, tifffile):
    image = GridImage("A", "log1p CP10K", 4, 3, 55.0, lambda _: np.ones((3, 4), dtype=np.float32))
    with pytest.raises(ValueError, match=r"plane 0 has shape \(3, 4\), not \(4, 3\)"):
        write_ome_tiff(tmp_path / "a.ome.tif", image, slide_name="a", bank_name="b")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("names", "n_rows", "n_columns", "pitch_um"),
    [
        ([], 4, 3, 55.0),
        (["A"], 0, 3, 55.0),
        (["A"], 4, 0, 55.0),
        (["A"], 4, 3, 0.0),
        (["A"], 4, 3, -1.0),
        (["A"], 4, 3, float("nan")),
        (["A"], 4, 3, float("inf")),
    ],
)
def test_an_image_that_cannot_be(names, n_rows, n_columns, pitch_um):
    with pytest.raises(SettingError, match=r"is empty|the image's pitch is"):
        GridImage(names, "log1p CP10K", n_rows, n_columns, pitch_um, lambda _: np.zeros((4, 3)))


def test_tifffile_missing_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tifffile", None)
    with pytest.raises(ExtraMissingError) as caught:
        written(tmp_path / "a.ome.tif", planes_of((1, 4, 3)))
    assert caught.value.what == "writing an OME-TIFF needs the package tifffile, which is not installed"
    assert caught.value.fix == "pip install 'stinfer[tiff]'"
    assert list(tmp_path.iterdir()) == []


def test_tifffile_is_loaded_only_to_write():
    code = "import sys, stinfer.ome_tiff; sys.exit('tifffile' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_other_readers_see_the_size_the_scale_and_the_values(tmp_path, tifffile):
    planes = planes_of((3, 300, 200))
    path = written(tmp_path / "a.ome.tif", planes, pitch_um=20.0)
    with openslide.OpenSlide(path) as slide:
        assert slide.dimensions == (200, 300)
        assert float(slide.properties[openslide.PROPERTY_NAME_MPP_X]) == 20.0
        assert float(slide.properties[openslide.PROPERTY_NAME_MPP_Y]) == 20.0
    with Image.open(path) as opened:
        assert (opened.size, opened.mode, opened.n_frames) == ((200, 300), "F", 3)
        opened.seek(2)
        np.testing.assert_array_equal(np.asarray(opened), planes[2])
