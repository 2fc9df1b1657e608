"""Everything that can go wrong for a reason outside this program.

Each error says what is wrong (with the path, gene or spot it is about, what was found and what was
expected) and what to do about it. The command line prints the two as ``Error:`` and ``Try:``; a
library user catches the class, or the builtin it also is::

    StInferError
    ├── SlideError                     the image
    │   ├── SlideNotFoundError         (FileNotFoundError)
    │   ├── SlideUnreadableError       (OSError)
    │   ├── SlideTooLargeError         (ValueError)
    │   ├── ScaleUnknownError          (ValueError)   no µm per pixel
    │   ├── ScaleImpossibleError       (ValueError)   µm per pixel outside 0.05 to 20
    │   ├── SlideForeignError          (ValueError)   not the section that the bank is of
    │   └── NoTissueError              (ValueError)
    ├── TissueMaskError                (ValueError)   the user's own tissue mask
    ├── SpotsError                     the spots file
    │   ├── SpotsFormatError           (ValueError)
    │   └── SpotsOutsideError          (ValueError)
    ├── ModelError                     the ONNX file
    │   ├── ModelFormatError           (ValueError)
    │   └── ProviderUnavailableError   (RuntimeError)
    ├── BankError                      the reference bank
    │   ├── BankNotFoundError          (FileNotFoundError)
    │   ├── BankFormatError            (ValueError)   not a bank, or cut short
    │   ├── BankVersionError           (ValueError)   written by a newer program
    │   ├── BankAlteredError           (ValueError)   a part does not match its hash
    │   └── BankSignatureError         (ValueError)   not signed by a key that is accepted
    ├── MapError                       the saved feature map
    │   ├── MapFormatError             (ValueError)   not a map, or cut short
    │   ├── MapVersionError            (ValueError)   written by a newer program
    │   ├── MapAlteredError            (ValueError)   a part does not match its hash
    │   ├── MapForeignError            (ValueError)   made for another bank
    │   └── MapTooSmallError           (ValueError)   it has no cells where they are needed
    ├── KeyFileError                   (ValueError)   of a signature or a pseudonym
    ├── GeneUnknownError               (KeyError)
    ├── SettingError                   (ValueError)   an argument out of range
    ├── OutputError                    what is written
    │   ├── OutputExistsError          (FileExistsError)
    │   ├── OutputBusyError            (BlockingIOError)   another run is writing it
    │   └── OutputWriteError           (OSError)
    └── ExtraMissingError              (ImportError)  an optional dependency is not installed
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path


class StInferError(Exception):
    """Base of every error a user can cause and mend.

    Parameters
    ----------
    what : what is wrong, and where
    fix : what to do about it
    """

    def __init__(self, what: str, fix: str) -> None:
        super().__init__(what)
        self.what = what
        self.fix = fix

    def __str__(self) -> str:
        # KeyError and OSError would print their arguments in their own way.
        return self.what


def first_line(error: Exception) -> str:
    """Return the first line of another library's words, for a message of ours."""
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__


class SlideError(StInferError):
    """The slide cannot be used."""


class SlideNotFoundError(SlideError, FileNotFoundError):
    """There is no file at the slide's path."""

    def __init__(self, path: Path) -> None:
        super().__init__(f"slide {path} does not exist", "check the path")


class SlideUnreadableError(SlideError, OSError):
    """The file is no image that can be opened, or a part of it cannot be read."""

    def __init__(self, path: Path, cause: str) -> None:
        super().__init__(
            f"slide {path} cannot be read: {cause}",
            "give a whole-slide file that OpenSlide opens, or a JPEG, PNG or TIFF image; "
            "if it is one, it may be damaged: copy it again from its source",
        )


class SlideTooLargeError(SlideError, ValueError):
    """A flat image holds more pixels than are decoded into memory at once."""

    def __init__(self, path: Path, width_px: int, height_px: int, limit_px: int) -> None:
        super().__init__(
            f"slide {path} is a flat image of {width_px} x {height_px} px; "
            f"images without tiles are read whole, up to {limit_px / 1e6:.0f} megapixels",
            "convert it to a tiled pyramid: vips tiffsave IN OUT.tif --tile --pyramid --compression jpeg",
        )


class ScaleUnknownError(SlideError, ValueError):
    """The slide does not say how many µm a pixel is."""

    def __init__(self, path: Path, magnification: float | None = None) -> None:
        what = f"slide {path} does not say how many µm one pixel is"
        fix = "give it with --mpp, for example --mpp 0.5 for a 20x scan, 0.25 for 40x"
        if magnification is not None:
            # A camera's pixel of about 10 µm, divided: what most scanners have, and no more than that.
            what += f", only that it was scanned at {magnification:g}x, which scanners differ in"
            fix = f"give it with --mpp; at {magnification:g}x it is probably about {10 / magnification:.3g}"
        super().__init__(what, fix)


class ScaleImpossibleError(SlideError, ValueError):
    """The µm per pixel is out of the range of microscopes."""

    def __init__(
        self,
        source: str,
        mpp: tuple[float, float],
        minimum_um: float,
        maximum_um: float,
        screen_dpi: int | None = None,
    ) -> None:
        shown = f"{mpp[0]:g}" if mpp[0] == mpp[1] else f"{mpp[0]:g} x {mpp[1]:g}"
        why = "" if screen_dpi is None else f", just the {screen_dpi} dpi of a screen"
        super().__init__(
            f"{source} gives {shown} µm per pixel{why}, "
            f"outside the {minimum_um:g} to {maximum_um:g} of slide scans",
            "give the true value with --mpp, for example --mpp 0.5 for a 20x scan, 0.25 for 40x",
        )


class SlideForeignError(SlideError, ValueError):
    """The bank predicts its own section alone, and this is another."""

    def __init__(self, path: Path, bank: Path, section: str, found: str, expected: str) -> None:
        found = f"SHA-256 {found[:12]}…" if found else "a folder"
        super().__init__(
            f"slide {path} is not the image of section {section}, whose places bank {bank} compares: it is "
            f"{found}, expected SHA-256 {expected[:12]}…",
            "give the very file that the bank was built with, or a bank built without --own-section",
        )


class NoTissueError(SlideError, ValueError):
    """No tissue was found on the slide."""

    def __init__(self, path: Path, detail: str) -> None:
        super().__init__(
            f"no tissue found on slide {path}: {detail}",
            "check that it is an H&E slide and that its scale (--mpp) is right; "
            "or say where to predict with --spots FILE",
        )


class TissueMaskError(StInferError, ValueError):
    """The user's own tissue mask cannot be used."""

    def __init__(self, path: Path, cause: str) -> None:
        super().__init__(
            f"tissue mask {path}: {cause}",
            "give a PNG or TIFF of the whole slide, of any size but the slide's proportions, "
            "with 0 where there is no tissue",
        )


class SpotsError(StInferError):
    """The spots file cannot be used."""


class SpotsFormatError(SpotsError, ValueError):
    """The spots file is none of the known kinds, or a value in it is not a number."""

    def __init__(self, path: Path, cause: str) -> None:
        super().__init__(
            f"spots file {path}: {cause}",
            "give a her2st selection file (columns pixel_x, pixel_y), Space Ranger tissue positions, "
            "or a CSV with columns x,y in level-0 pixels",
        )


class SpotsOutsideError(SpotsError, ValueError):
    """Some spots do not lie on the image."""

    def __init__(
        self, path: Path, n_outside: int, n_spots: int, worst: str, excess_px: float, size_l0: tuple[int, int]
    ) -> None:
        super().__init__(
            f"spots file {path}: {n_outside} of {n_spots} spots lie outside the image of "
            f"{size_l0[0]} x {size_l0[1]} px; spot {worst} by {excess_px:.2g} px",
            "check that the file belongs to this slide and that its coordinates are level-0 pixels "
            "of the full-resolution image",
        )


class ModelError(StInferError):
    """The backbone cannot be used."""


class ModelFormatError(ModelError, ValueError):
    """The ONNX file is not one of ours, is damaged, or needs what is not allowed."""

    def __init__(self, source: str, cause: str) -> None:
        super().__init__(
            f"model {source}: {cause}",
            "export it again with stinfer-export backbone, of the same version as this program",
        )


class ProviderUnavailableError(ModelError, RuntimeError):
    """CUDA was asked for and is not there."""

    def __init__(self, cause: str) -> None:
        super().__init__(
            f"--device cuda: {cause}",
            "install stinfer[gpu] in place of stinfer[cpu], on a machine with an NVIDIA driver, "
            "CUDA and cuDNN; or use --device cpu",
        )


class BankError(StInferError):
    """The reference bank cannot be used."""


class BankNotFoundError(BankError, FileNotFoundError):
    """There is no file at the bank's path."""

    def __init__(self, path: Path) -> None:
        super().__init__(
            f"bank {path} does not exist",
            "check the path, or build one with stinfer-export bank",
        )


class BankFormatError(BankError, ValueError):
    """The file is no bank, is cut short, or lacks a part."""

    def __init__(self, path: Path, cause: str) -> None:
        super().__init__(
            f"bank {path}: {cause}",
            "copy it again from where it was built, or build it again with stinfer-export bank",
        )


class BankVersionError(BankError, ValueError):
    """The bank is of a format this program does not know."""

    def __init__(self, path: Path, found: int, known: int) -> None:
        super().__init__(
            f"bank {path} has format version {found}; this program reads version {known}",
            "install a newer stinfer" if found > known else "build it again with stinfer-export bank",
        )


class BankAlteredError(BankError, ValueError):
    """A part of the bank is not what was written."""

    def __init__(self, path: Path, part: str, cause: str) -> None:
        super().__init__(
            f"bank {path}: its {part} was altered or damaged ({cause})",
            "do not use it; copy it again from where it was built",
        )


class BankSignatureError(BankError, ValueError):
    """The bank is not signed by a key that is accepted here."""

    def __init__(self, path: Path, cause: str) -> None:
        super().__init__(
            f"bank {path} is not accepted: {cause}",
            "get the bank, with its .minisig file, from those who release banks here, or their public key",
        )


class KeyFileError(StInferError, ValueError):
    """A key cannot be used."""

    def __init__(self, path: Path, cause: str, fix: str) -> None:
        super().__init__(f"key {path}: {cause}", fix)


class MapError(StInferError):
    """The saved feature map cannot be used."""


class MapFormatError(MapError, ValueError):
    """The file is no map, is cut short, or lacks a part."""

    def __init__(self, path: Path, cause: str) -> None:
        super().__init__(
            f"map {path}: {cause}",
            "copy it again from where it was made, or make it again with stinfer-run SLIDE --save-map FILE",
        )


class MapVersionError(MapError, ValueError):
    """The map is of a format this program does not know."""

    def __init__(self, path: Path, found: int, known: int) -> None:
        super().__init__(
            f"map {path} has format version {found}; this program reads version {known}",
            "install a newer stinfer" if found > known else "make it again with stinfer-run SLIDE --save-map",
        )


class MapAlteredError(MapError, ValueError):
    """A part of the map is not what was written."""

    def __init__(self, path: Path, part: str, cause: str) -> None:
        super().__init__(
            f"map {path}: its {part} was altered or damaged ({cause})",
            "do not use it; copy it again, or make it again with stinfer-run SLIDE --save-map FILE",
        )


class MapForeignError(MapError, ValueError):
    """The map's cells were not made as the bank's."""

    def __init__(self, path: Path, bank: Path, cause: str) -> None:
        super().__init__(
            f"map {path} was not made for bank {bank}: {cause}",
            "give the bank that it was made with, or predict from the slide itself",
        )


class MapTooSmallError(MapError, ValueError):
    """Places lie where the map holds no cells."""

    def __init__(self, path: Path, n_missing: int) -> None:
        super().__init__(
            f"map {path} holds tissue only, and {n_missing} cells that these places need are not in it",
            "predict from the slide itself; with --save-map and the same --spots or --pitch-um the new map "
            "holds them",
        )


class GeneUnknownError(StInferError, KeyError):
    """A gene is not in the bank.

    Parameters
    ----------
    genes : names that are not
    nearest : of the first five, the genes of the bank that are called most alike
    n_genes : of the bank
    has_ids : the bank has Ensembl IDs, or none was asked for

    Attributes
    ----------
    genes : tuple of str
        The names.
    """

    def __init__(
        self,
        genes: Sequence[str],
        nearest: Sequence[Sequence[str]],
        n_genes: int,
        *,
        has_ids: bool = True,
    ) -> None:
        self.genes = tuple(genes)
        shown = [
            f"{gene} (nearest: {', '.join(near)})" if near else gene
            for gene, near in zip(genes[:5], nearest, strict=False)
        ]
        more = f", and {len(genes) - 5} more" if len(genes) > 5 else ""
        verb = "gene is" if len(genes) == 1 else "genes are"
        super().__init__(
            f"{len(genes)} {verb} not among the {n_genes} of the bank: {', '.join(shown)}{more}"
            + ("" if has_ids else "; the bank knows no Ensembl IDs"),
            "correct or leave out these names; stinfer bank info BANK --genes lists what it holds",
        )


class SettingError(StInferError, ValueError):
    """An argument cannot be right for this slide or bank."""


def check_choice(name: str, value: str, allowed: Sequence[str]) -> None:
    """Refuse an argument that is none of the allowed.

    Raises
    ------
    SettingError
        It is none of them.
    """
    if value not in allowed:
        what = f"{name} is {value!r}"
        raise SettingError(what, f"use one of {', '.join(allowed)}")


class OutputError(StInferError):
    """The output cannot be written."""


class OutputExistsError(OutputError, FileExistsError):
    """The output is there already."""

    def __init__(self, path: Path, detail: str = "") -> None:
        super().__init__(
            f"output {path} exists{detail}",
            "choose another name, or remove it; --overwrite, where there is, does that",
        )


class OutputBusyError(OutputError, BlockingIOError):
    """Another run is writing the output."""

    def __init__(self, path: Path, holder: str) -> None:
        super().__init__(
            f"output {path} is being written by another run{holder}",
            "wait for that run, end it, or choose another name",
        )


class OutputWriteError(OutputError, OSError):
    """The disk is full, or the folder cannot be written."""

    def __init__(self, path: Path, cause: str) -> None:
        super().__init__(
            f"cannot write {path}: {cause}",
            "make room, make the folder, or choose another place; nothing is left half-written",
        )
        self.path = path
        self.cause = cause


class ExtraMissingError(StInferError, ImportError):
    """A part of the program that was not installed is needed."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        # A bundle has no pip, and takes in nothing.
        is_frozen = getattr(sys, "frozen", False)
        super().__init__(
            f"{purpose} needs the package {package}, which is not installed",
            f"use a bundle that was made with {package}" if is_frozen else f"pip install 'stinfer[{extra}]'",
        )
