"""DICOM slides: one file, or the folder that a scanner writes."""

from __future__ import annotations

import numpy as np
import pytest

from stinfer.errors import SlideUnreadableError
from stinfer.slide import open_slide
from stinfer.subject import open_subject

pydicom = pytest.importorskip("pydicom")

PIXELS = np.random.default_rng(4).integers(0, 256, (130, 200, 3), dtype=np.uint8)
TILE_PX = 64
WHOLE_SLIDE = "1.2.840.10008.5.1.4.1.1.77.1.6"
EXPLICIT_LITTLE_ENDIAN = "1.2.840.10008.1.2.1"


@pytest.fixture
def folder(tmp_path):
    """A slide of 0.5 x 0.25 µm per pixel, uncompressed, in a folder with a file that is none."""
    (tmp_path / "slide").mkdir()
    (tmp_path / "slide" / "README.txt").write_text("no slide")
    padded = np.pad(PIXELS, ((0, -130 % TILE_PX), (0, -200 % TILE_PX), (0, 0)))
    frames = [
        padded[y : y + TILE_PX, x : x + TILE_PX].tobytes()
        for y in range(0, padded.shape[0], TILE_PX)
        for x in range(0, padded.shape[1], TILE_PX)
    ]
    measures, shared = pydicom.Dataset(), pydicom.Dataset()
    measures.PixelSpacing = [0.00025, 0.0005]  # mm, of rows, then of columns
    measures.SliceThickness = 0.001
    shared.PixelMeasuresSequence = [measures]
    path_of_light = pydicom.Dataset()
    path_of_light.OpticalPathIdentifier = "0"
    slide = pydicom.Dataset()
    slide.file_meta = pydicom.dataset.FileMetaDataset()
    slide.file_meta.MediaStorageSOPClassUID = slide.SOPClassUID = WHOLE_SLIDE
    slide.file_meta.MediaStorageSOPInstanceUID = slide.SOPInstanceUID = "1.2.3.4.5"
    slide.file_meta.TransferSyntaxUID = EXPLICIT_LITTLE_ENDIAN
    slide.SeriesInstanceUID, slide.StudyInstanceUID, slide.Modality = "1.2.3.4", "1.2.3", "SM"
    slide.ImageType = ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]
    slide.DimensionOrganizationType = "TILED_FULL"
    slide.TotalPixelMatrixColumns, slide.TotalPixelMatrixRows = 200, 130
    slide.Columns = slide.Rows = TILE_PX
    slide.NumberOfFrames = len(frames)
    slide.SamplesPerPixel, slide.PhotometricInterpretation, slide.PlanarConfiguration = 3, "RGB", 0
    slide.BitsAllocated, slide.BitsStored, slide.HighBit, slide.PixelRepresentation = 8, 8, 7, 0
    slide.SharedFunctionalGroupsSequence = [shared]
    slide.OpticalPathSequence = [path_of_light]
    slide.TotalPixelMatrixFocalPlanes, slide.NumberOfOpticalPaths = 1, 1
    slide.PixelData = b"".join(frames)
    slide.save_as(tmp_path / "slide" / "level_0.dcm", enforce_file_format=True)
    return tmp_path / "slide"


@pytest.mark.parametrize("name", ["", "level_0.dcm"])
def test_a_folder_or_one_of_its_files(folder, name):
    with open_slide(folder / name) as slide:
        assert slide.reader == "openslide"
        assert slide.mpp == pytest.approx((0.5, 0.25))
        assert slide.size_l0 == (200, 130)
        assert np.array_equal(slide.read((0.0, 0.0), (200.0, 130.0), (200, 130)), PIXELS)
        assert np.array_equal(slide.read((60.0, 50.0), (90.0, 70.0), (90, 70)), PIXELS[50:120, 60:150])


def test_a_folder_has_its_own_name_and_no_one_hash(folder):
    with open_subject(folder, None) as subject:
        assert (subject.name, subject.sha256) == ("slide", "")


def test_a_folder_without_a_slide(folder):
    (folder / "level_0.dcm").unlink()
    with pytest.raises(SlideUnreadableError, match="a folder that holds no DICOM slide"):
        open_slide(folder)
