"""What a prediction is of: an open slide, or the saved map of one."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from stinfer.bank import Bank
from stinfer.contract import U8
from stinfer.errors import SettingError, SlideForeignError
from stinfer.files import sha256_file
from stinfer.map_file import MapFile, is_map
from stinfer.map_header import MapSubject
from stinfer.record import plain_name
from stinfer.slide import Slide, open_slide
from stinfer.slide_scale import BY_BANK, BY_USER
from stinfer.tissue import TissueMask, find_tissue
from stinfer.tissue_file import read_tissue_mask

if TYPE_CHECKING:
    from stinfer.pseudonym import Pseudonyms

HIRES_PX = 2000
LOWRES_PX = 600
# Scales of one image that differ by less are the same but for rounding and fits.
_SAME_MPP = 0.01


class Subject:
    """A slide's facts, its thumbnails and its tissue, whichever file they come from.

    Parameters
    ----------
    source : open slide, or open map
    tissue_mask : file of the user's own mask; None to find the tissue

    Attributes
    ----------
    path : Path
        The file that was opened.
    name, sha256 : str
        Of the slide's file; a slide that is a folder of files has no one hash, and an empty one here.
    file_name : str
        Of the file that was opened.
    size_l0 : tuple of int
        Width and height in level-0 pixels.
    mpp : tuple of float
        µm per level-0 pixel, x and y.
    mpp_source : str
        Where the scale comes from.
    """

    def __init__(self, source: Slide | MapFile, tissue_mask: Path | None = None) -> None:
        self.source = source
        self.path = source.path
        self.file_name = plain_name(source.path.name)
        self.size_l0 = source.size_l0
        self.mpp = source.mpp
        self._tissue: TissueMask | None = None
        if isinstance(source, MapFile):
            held = source.subject
            self.name, self.sha256, self.mpp_source = held.name, held.sha256, held.mpp_source
            self._tissue = held.tissue
        else:
            self.name = self.file_name
            self.sha256 = sha256_file(source.path) if source.path.is_file() else ""
            self.mpp_source = source.mpp_source
            if tissue_mask is not None:
                # Read before any long work.
                self._tissue = read_tissue_mask(tissue_mask, source)

    @cached_property
    def hires(self) -> U8:
        """The whole slide, (height, width, 3) uint8 RGB, its longer side at most 2000 px; read once."""
        if isinstance(self.source, MapFile):
            return self.source.subject.hires
        return self.source.thumbnail(HIRES_PX)

    @cached_property
    def lowres(self) -> U8:
        """The same, its longer side at most 600 px."""
        if isinstance(self.source, MapFile):
            return self.source.subject.lowres
        return _reduced(self.hires, LOWRES_PX)

    def hide_names(self, name: str, names: Pseudonyms) -> None:
        """Call the slide, and the files it came with, by their pseudonyms in everything that is written."""
        self.name, self.file_name, self.sha256 = name, name, ""
        if self._tissue is not None and self._tissue.given_sha256:
            given_name = names.of_file(self._tissue.given_sha256)
            self._tissue = replace(self._tissue, given_name=given_name)

    @property
    def said_mpp(self) -> tuple[float, float] | None:
        """What the slide's file says of its scale, where the user said something else."""
        return self.source.said_mpp if isinstance(self.source, Slide) else None

    @property
    def reader(self) -> str | None:
        """The library that decodes the slide; None of a map."""
        return self.source.reader if isinstance(self.source, Slide) else None

    @property
    def remarks(self) -> tuple[str, ...]:
        """What was converted, guessed or left out when the slide was opened, in words."""
        return self.source.remarks if isinstance(self.source, Slide) else ()

    def tissue(self) -> TissueMask:
        """Find the tissue, once."""
        if self._tissue is None:
            if isinstance(self.source, MapFile):
                return self.source.subject.tissue
            self._tissue = find_tissue(self.source)
        return self._tissue

    def to_map(self) -> MapSubject:
        """Return what a saved map holds of the slide."""
        return MapSubject(
            name=self.name,
            sha256=self.sha256,
            size_l0=self.size_l0,
            mpp=self.mpp,
            mpp_source=self.mpp_source,
            hires=self.hires,
            lowres=self.lowres,
            tissue=self.tissue(),
        )


def _reduced(image: U8, longest_px: int) -> U8:
    """Reduce a picture until its longer side is at most `longest_px`; never enlarge it."""
    reduced = Image.fromarray(image)
    reduced.thumbnail((longest_px, longest_px), Image.Resampling.BOX)
    return np.asarray(reduced, dtype=np.uint8)


@contextlib.contextmanager
def open_subject(
    path: str | Path,
    mpp: float | tuple[float, float] | None,
    tissue_mask: str | Path | None = None,
    bank: Bank | None = None,
) -> Iterator[Subject]:
    """Open a slide or a saved map.

    Parameters
    ----------
    path : slide or map
    mpp : µm per level-0 pixel, or those of x and y, where the slide does not say or is wrong
    tissue_mask : file of the user's own mask
    bank : that predicts; one of a section knows that section's scale, and is of use for it alone

    Raises
    ------
    SlideError, MapError, TissueMaskError
        It cannot be used.
    SettingError
        A scale or a mask is given for a map, whose cells have theirs; or a scale for a section that the bank
        knows otherwise.
    """
    own = None if bank is None else bank.own_section
    path = Path(path)
    if is_map(path):
        if mpp is not None:
            what = f"--mpp is given for map {path}, whose cells were cut at the scale it holds"
            raise SettingError(what, "leave it out, or predict from the slide itself")
        if tissue_mask is not None:
            what = f"--tissue-mask is given for map {path}, whose cells were weighed by the mask it holds"
            raise SettingError(what, "leave it out, or predict from the slide itself")
        subject = Subject(MapFile(path))
        _refuse_other_section(subject, bank)
        yield subject
        return
    given_by = BY_USER
    if own is not None and mpp is None:
        mpp, given_by = own.mpp, BY_BANK
    with open_slide(path, mpp, given_by=given_by) as slide:
        subject = Subject(slide, None if tissue_mask is None else Path(tissue_mask))
        _refuse_other_section(subject, bank)
        yield subject


def _refuse_other_section(subject: Subject, bank: Bank | None) -> None:
    """Refuse what a bank of one section does not know the places of.

    Raises
    ------
    SlideForeignError
        It is not the section's image.
    SettingError
        It is, at another scale.
    """
    if bank is None or bank.own_section is None:
        return
    own = bank.own_section
    if subject.sha256 != own.slide_sha256:
        raise SlideForeignError(subject.path, bank.path, bank.sections[0], subject.sha256, own.slide_sha256)
    if any(abs(a / b - 1) > _SAME_MPP for a, b in zip(subject.mpp, own.mpp, strict=True)):
        what = (
            f"{subject.path} is taken to have {subject.mpp[0]:g} x {subject.mpp[1]:g} µm per pixel, "
            f"{own.mpp[0]:g} x {own.mpp[1]:g} in bank {bank.path} of this very section"
        )
        raise SettingError(what, "leave --mpp out, and give the slide, not a map of another scale")
