"""Which image of a Visium section it is that was given, told by its size."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from stinfer.contract import F64, MPP_MIN_UM
from stinfer.report import MPP_TOLERANCE
from stinfer.slide import Slide, open_slide
from stinfer_export.bank_plan import DEFAULT_UM_PER_PX
from stinfer_export.datasets.section import COARSEST_MPP_UM
from stinfer_export.datasets.visium_scale import ScaleFactors
from stinfer_export.errors import DatasetError

# The longer side of Space Ranger's small picture, of every version.
_LOWRES_PX = 600
# Sizes of scaled pictures are rounded to whole pixels, so scale factors are that exact.
_TOLERANCE = 0.01
# An image this much coarser than what backbones see is said to be coarse.
_COARSE_UM = 1.5 * DEFAULT_UM_PER_PX
_EXAMPLE_FOV_UM = 154.0
_SMALLEST_SPOT_PX = 2
_THUMBNAIL_PX = 512
# Levels of 255 between the darkest and the brightest pixel; of tissue there are tens.
_LARGEST_BLANK = 2


@dataclass(frozen=True)
class SectionImage:
    """An image, and how it lies under the spots.

    Parameters
    ----------
    factor : its px per px of the full-resolution image
    mpp : its µm per pixel
    notices : what a user should know of it
    """

    factor: float
    mpp: float
    notices: tuple[str, ...]


def settle_image(image: Path, centers_fullres: F64, mpp_fullres: float, scale: ScaleFactors) -> SectionImage:
    """Find out whether an image is the full-resolution one, or one of Space Ranger's two pictures.

    Parameters
    ----------
    image : any that `stinfer.slide.open_slide` reads
    centers_fullres : (n, 2), spots on tissue, px of the full-resolution image
    mpp_fullres : µm per px of that
    scale : of the same section

    Raises
    ------
    DatasetError
        It is too small for the spots, of another size than any of the three, too coarse or empty.
    SlideError
        It cannot be read.
    """
    _refuse_scale(image, mpp_fullres, scale)
    with open_slide(image, mpp_fullres, mpp_max_um=COARSEST_MPP_UM) as slide:
        factor, name = _choose_factor(slide, centers_fullres, scale)
        _refuse_blank(slide)
        said_mpp = slide.said_mpp
    mpp = mpp_fullres / factor
    _refuse_scale(image, mpp, scale)
    notices = []
    if said_mpp is not None and any(abs(said / mpp - 1) > MPP_TOLERANCE for said in said_mpp):
        notices.append(
            f"{image.name} says {said_mpp[0]:.4g} µm per px; the {mpp:.4g} of the spots' lattice "
            "are used instead"
        )
    if mpp > _COARSE_UM:
        notices.append(_coarse_notice(image, name, mpp))
    return SectionImage(factor, mpp, tuple(notices))


def _coarse_notice(image: Path, name: str, mpp: float) -> str:
    return (
        f"{image.name} is {name} of {mpp:.3g} µm per px: patches are coarse, {_EXAMPLE_FOV_UM:g} µm are "
        f"{_EXAMPLE_FOV_UM / mpp:.0f} px of it; give the full-resolution image where there is one"
    )


def _choose_factor(slide: Slide, centers_fullres: F64, scale: ScaleFactors) -> tuple[float, str]:
    """Return the image's px per full-resolution px, and what it is."""
    longest_px = max(slide.size_l0)
    known = {
        "the low-resolution picture": scale.lowres,
        "the high-resolution picture": scale.hires,
        "a full-resolution image": 1.0,
    }
    needed = centers_fullres.max(axis=0)
    if scale.lowres is not None:
        full_px = _LOWRES_PX / scale.lowres
        for name, factor in known.items():
            if factor is not None and abs(longest_px / (full_px * factor) - 1) <= _TOLERANCE:
                _refuse_small(slide, needed * factor, name)
                return factor, name
        expected = f"{full_px:.0f} px, or {_LOWRES_PX} px of the low-resolution picture"
        if scale.hires is not None:
            expected += f", or {full_px * scale.hires:.0f} px of the high-resolution one"
        cause = (
            f"its longer side is {longest_px} px, and by the scale factors the image that Space Ranger was "
            f"given has {expected}"
        )
        fix = "give the very image that Space Ranger was given, neither cropped nor scaled"
        raise DatasetError(slide.path, cause, fix)
    _refuse_small(slide, needed, "a full-resolution image")
    return 1.0, "a full-resolution image"


def _refuse_small(slide: Slide, needed: F64, name: str) -> None:
    if (needed > np.asarray(slide.size_l0)).any():
        width, height = slide.size_l0
        cause = (
            f"it is too small for the spots: {width} x {height} px, expected more than "
            f"{needed[0]:.0f} x {needed[1]:.0f} px of {name}"
        )
        fix = "give the very image that Space Ranger was given, neither cropped, turned nor scaled"
        raise DatasetError(slide.path, cause, fix)


def _refuse_blank(slide: Slide) -> None:
    # Its outermost pixels are mixed with the white beyond the image.
    pixels = slide.thumbnail(_THUMBNAIL_PX)[1:-1, 1:-1].reshape(-1, 3)
    if len(pixels) and np.ptp(pixels.astype(np.int64), axis=0).max() <= _LARGEST_BLANK:
        red, green, blue = pixels[0]
        cause = f"it is blank: every pixel is ({red}, {green}, {blue})"
        raise DatasetError(slide.path, cause, "give an image that shows the tissue")


def _refuse_scale(image: Path, mpp: float, scale: ScaleFactors) -> None:
    coarsest = min(scale.spot_diameter_um / _SMALLEST_SPOT_PX, COARSEST_MPP_UM)
    if not MPP_MIN_UM <= mpp <= coarsest:
        cause = f"it has {mpp:.4g} µm per px, expected {MPP_MIN_UM:g} to {coarsest:g}"
        if mpp > coarsest:
            cause += f": of so coarse an image a spot of {scale.spot_diameter_um:g} µm is less than 2 px"
        raise DatasetError(image, cause, "give the full-resolution image that Space Ranger was given")
