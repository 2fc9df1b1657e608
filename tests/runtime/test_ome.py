"""OME-TIFF: which planes are the slide, and its scale."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from stinfer.errors import ScaleUnknownError, SlideUnreadableError
from stinfer.ome import read_ome
from stinfer.slide import open_slide

NOISE = np.random.default_rng(1).integers(0, 256, (96, 128, 3), dtype=np.uint8)
RGB_CHANNELS = "".join(f'<Channel ID="Channel:0:{i}" Name="{name}"/>' for i, name in enumerate("RGB"))


def xml(attributes, inner="<TiffData/>", more=""):
    return (
        '<?xml version="1.0"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06">'
        f'{more}<Image ID="Image:0"><Pixels ID="Pixels:0" SizeX="30" SizeY="20" {attributes}>{inner}'
        "</Pixels></Image></OME>"
    )


def sizes(c, z, t, order="XYCZT"):
    return f'SizeC="{c}" SizeZ="{z}" SizeT="{t}" DimensionOrder="{order}"'


def test_one_plane_of_three_samples():
    found = read_ome(xml(sizes(3, 1, 1), '<Channel SamplesPerPixel="3"/><TiffData/>'))
    assert (found.size, found.mpp, found.planes, found.remarks) == ((30, 20), None, (0,), ())


@pytest.mark.parametrize(
    ("order", "planes"),
    [
        # The second of 4 planes at the first of 2 times: z = 2. The first letter runs fastest.
        ("XYCZT", (6, 7, 8)),
        ("XYZCT", (2, 6, 10)),
        ("XYZTC", (2, 10, 18)),
        ("XYTCZ", (12, 14, 16)),
        ("XYTZC", (4, 12, 20)),
        ("XYCTZ", (12, 13, 14)),
    ],
)
def test_the_middle_plane_in_any_order_of_dimensions(order, planes):
    found = read_ome(xml(sizes(3, 4, 2, order), f"{RGB_CHANNELS}<TiffData/>"))
    assert found.planes == planes
    assert found.remarks == (
        "the slide is a stack of 4 planes; the middle one, 3, is read",
        "the slide holds 2 times; the first is read",
    )


def test_planes_that_are_listed_one_by_one():
    listed = "".join(f'<TiffData FirstC="{c}" IFD="{7 - c}" PlaneCount="1"/>' for c in range(3))
    assert read_ome(xml(sizes(3, 1, 1), RGB_CHANNELS + listed)).planes == (7, 6, 5)
    block = '<TiffData FirstC="1" IFD="4" PlaneCount="2"/><TiffData FirstC="0" IFD="9"/>'
    assert read_ome(xml(sizes(3, 1, 1), RGB_CHANNELS + block)).planes == (9, 4, 5)


@pytest.mark.parametrize(
    ("said", "mpp"),
    [
        ('PhysicalSizeX="0.25" PhysicalSizeY="0.5"', (0.25, 0.5)),
        (
            'PhysicalSizeX="250" PhysicalSizeXUnit="nm" PhysicalSizeY="0.0005" PhysicalSizeYUnit="mm"',
            (0.25, 0.5),
        ),
        ('PhysicalSizeX="0.25"', None),
        ('PhysicalSizeX="1" PhysicalSizeXUnit="pixel" PhysicalSizeY="1" PhysicalSizeYUnit="pixel"', None),
        ('PhysicalSizeX="0" PhysicalSizeY="0"', None),
    ],
)
def test_the_scale_in_its_unit(said, mpp):
    found = read_ome(xml(f"{sizes(3, 1, 1)} {said}", '<Channel SamplesPerPixel="3"/><TiffData/>')).mpp
    assert found == (mpp if mpp is None else pytest.approx(mpp))


def test_the_largest_picture_counts():
    label = (
        '<Image><Pixels SizeX="9" SizeY="9" SizeC="1" SizeZ="1" SizeT="1" DimensionOrder="XYCZT"/></Image>'
    )
    found = read_ome(xml(sizes(3, 1, 1), '<Channel SamplesPerPixel="3"/><TiffData IFD="5"/>', label))
    assert (found.size, found.planes) == ((30, 20), (5,))
    assert found.remarks == ("the slide's file holds 2 pictures; the largest is read",)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("<OME><Image></OME>", "damaged"),
        ("<OME></OME>", "no picture"),
        (xml(sizes(4, 1, 1)), r"4 channels \(without names\)"),
        (
            xml(
                sizes(3, 1, 1), '<Channel Name="DAPI"/><Channel Name="FITC"/><Channel Name="Cy5"/><TiffData/>'
            ),
            "its channels are dapi, fitc, cy5",
        ),
        (xml(sizes(3, 1, 1), RGB_CHANNELS), "lacks planes"),
        (xml(sizes(3, 1, 1), RGB_CHANNELS + '<TiffData IFD="0" PlaneCount="2"/>'), "lacks planes"),
        (xml(sizes(3, 1, 1, "XYCCT")), "order of dimensions"),
        (xml(sizes(3, 10**6, 10**6)), "describes 3000000000000 planes"),
        (xml(sizes("three", 1, 1)), "SizeC 'three'"),
        (
            xml(
                sizes(3, 1, 1),
                RGB_CHANNELS + "".join(f'<TiffData><UUID FileName="{n}">u</UUID></TiffData>' for n in "ab"),
            ),
            "planes lie in 2 files",
        ),
    ],
)
def test_what_cannot_be_read_says_why(text, reason):
    with pytest.raises(ValueError, match=reason):
        read_ome(text)


# --- files ----------------------------------------------------------------------------------------


@pytest.fixture
def tifffile():
    pytest.importorskip("imagecodecs")
    return pytest.importorskip("tifffile")


def read_all(path, mpp=None):
    with open_slide(path, mpp) as slide:
        return slide.read((0.0, 0.0), slide.size_l0, slide.size_l0)


def test_a_pyramid_in_subifds(tmp_path, tifffile):
    # Every level in a grey of its own, near enough to be one picture: what is read says where from.
    levels = [np.full((512 >> i, 768 >> i, 3), 120 + 5 * i, dtype=np.uint8) for i in range(3)]
    path = tmp_path / "a.ome.tif"
    scale = {"axes": "YXS", "PhysicalSizeX": 0.25, "PhysicalSizeY": 0.5}
    with tifffile.TiffWriter(path, ome=True) as file:
        common = {"photometric": "rgb", "tile": (64, 64)}
        file.write(levels[0], subifds=2, metadata=scale, **common)
        for level in levels[1:]:
            file.write(level, subfiletype=1, **common)
    with open_slide(path) as slide:
        assert (slide.mpp, slide.mpp_source, slide.reader) == ((0.25, 0.5), "slide metadata", "tifffile")
        assert slide.size_l0 == (768, 512)
        for step, grey in ((1, 120), (2, 125), (3, 125), (4, 130), (8, 130)):
            found = slide.read((128.0, 128.0), (32.0 * step, 32.0 * step), (32, 32))
            assert np.unique(found).tolist() == [grey]


def test_red_green_and_blue_in_planes_of_their_own(tmp_path, tifffile):
    path = tmp_path / "a.ome.tif"
    metadata = {"axes": "CYX", "Channel": {"Name": ["red", "green", "blue"]}}
    tifffile.imwrite(
        path, NOISE.transpose(2, 0, 1), photometric="minisblack", tile=(32, 32), metadata=metadata
    )
    assert np.array_equal(read_all(path, 1.0), NOISE)


def test_the_middle_of_a_stack(tmp_path, tifffile):
    path = tmp_path / "a.ome.tif"
    stack = np.stack([NOISE // 2, NOISE // 3, NOISE, NOISE // 4])
    tifffile.imwrite(path, stack, photometric="rgb", metadata={"axes": "ZYXS"})
    assert np.array_equal(read_all(path, 1.0), NOISE)


def test_the_bits_that_the_xml_calls_significant(tmp_path, tifffile):
    path = tmp_path / "a.ome.tif"
    metadata = {"axes": "YXS", "SignificantBits": 10}
    tifffile.imwrite(path, (NOISE.astype(np.uint16) << 2) // 4, photometric="rgb", metadata=metadata)
    # Of 10 bits the upper 8, though no sample is above 255.
    assert np.array_equal(read_all(path, 1.0), NOISE >> 2)


def test_fluorescence_is_refused(tmp_path, tifffile):
    path = tmp_path / "a.ome.tif"
    metadata = {"axes": "CYX", "Channel": {"Name": ["DAPI", "FITC", "TRITC"]}}
    tifffile.imwrite(path, NOISE.transpose(2, 0, 1), photometric="minisblack", metadata=metadata)
    with pytest.raises(SlideUnreadableError, match="dapi, fitc, tritc, not red, green and blue"):
        open_slide(path, 1.0)


def test_an_ome_tiff_without_scale(tmp_path, tifffile):
    path = tmp_path / "a.ome.tif"
    tifffile.imwrite(path, NOISE, photometric="rgb", metadata={"axes": "YXS"})
    with pytest.raises(ScaleUnknownError):
        open_slide(path)


@pytest.fixture
def plain_pyramid(tmp_path, tifffile):
    """A plain tiled TIFF whose smaller copies are sub-images of the first, as vips --subifd writes them."""
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path) as file:
        common = {"photometric": "rgb", "tile": (64, 64), "metadata": None}
        scale = {"resolution": (20_000, 20_000), "resolutionunit": "CENTIMETER"}
        file.write(np.full((512, 768, 3), 120, dtype=np.uint8), subifds=2, **common, **scale)
        for step in (1, 2):
            copy = np.full((512 >> step, 768 >> step, 3), 120 + 5 * step, dtype=np.uint8)
            file.write(copy, subfiletype=1, **common)
    return path


def test_smaller_copies_in_sub_images_of_a_plain_tiff(plain_pyramid):
    with open_slide(plain_pyramid) as slide:
        assert (slide.mpp, slide.reader) == ((0.5, 0.5), "tifffile")
        for step, grey in ((1, 120), (2, 125), (3, 125), (4, 130)):
            found = slide.read((128.0, 128.0), (32.0 * step, 32.0 * step), (32, 32))
            assert np.unique(found).tolist() == [grey]


def test_without_the_extra_a_plain_tiff_is_read_without_them_and_that_is_said(plain_pyramid, monkeypatch):
    monkeypatch.setitem(sys.modules, "imagecodecs", None)
    with open_slide(plain_pyramid) as slide:
        assert (slide.mpp, slide.reader) == ((0.5, 0.5), "openslide")
        assert np.unique(slide.read((128.0, 128.0), (128.0, 128.0), (32, 32))).tolist() == [120]
        assert [remark for remark in slide.remarks if "smaller copies are not used" in remark]
