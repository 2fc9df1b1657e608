"""Embeddings of sections, computed once and kept beside the evaluation."""

from __future__ import annotations

import time
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from stinfer.contract import F32, I64
from stinfer.embed import FieldOfView
from stinfer.encoder_stack import EncoderStack
from stinfer.feature_map import Progress
from stinfer.files import make_folder, sha256_file, written_beside
from stinfer.integrity import hash_arrays, hash_json
from stinfer.record import Notices, software_versions
from stinfer.stain import Stain
from stinfer_export.bank_plan import BankPlan
from stinfer_export.datasets.section import Section
from stinfer_export.section_encoding import Part, encode_section, part_of

_UNREADABLE = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error)
# What a file holds beside embeddings and rows: headers, notices.
_SPARE_BYTES = 1 << 20


@dataclass
class SectionCache:
    """Embeds sections, or reads what it embedded before.

    An embedding depends on no expression, so the same serves training and held-out sections. Files are
    named after a hash of all it does depend on: image, places, models, view, stain and software.

    Parameters
    ----------
    folder : of the files; made when the first is written
    plan : of the bank
    encoders : backbones, nothing projected
    batch_size : patches encoded at a time; None for what suits the encoders
    notices : told what is dropped
    progress : called with what is done, how much there is, and of what
    """

    folder: Path
    plan: BankPlan
    encoders: EncoderStack
    batch_size: int | None
    notices: Notices
    progress: Progress | None
    _images: dict[Path, str] = field(default_factory=dict)

    def part(
        self, section: Section, view: FieldOfView, stain: Stain | None = None, *, quiet: bool = False
    ) -> tuple[Part, float]:
        """Embed a section.

        Parameters
        ----------
        section : measured
        view : what a spot's embedding looks at
        stain : that it is brought to; None to leave it as it is
        quiet : do not say what becomes of its spots

        Returns
        -------
        part : embedded
        seconds : that the encoding took, when it was done
        """
        key = self._key(section, view, stain)
        path = self.folder / f"{section.name}-{key[:32]}.npz"
        dim = len(view.sides_um) * sum(self.encoders.widths)
        found = self._read(path, key, section, dim)
        if found is not None:
            kept, embeddings, seconds, texts = found
            for text in () if quiet else texts:
                self.notices.add(text)
            return part_of(section, kept, embeddings), seconds
        heard = Notices() if not quiet else Silent()
        started = time.perf_counter()
        part = encode_section(
            section, self.plan, view, self.encoders, stain, self.batch_size, heard, self.progress
        )
        seconds = time.perf_counter() - started
        row_of = {spot: i for i, spot in enumerate(section.spots)}
        kept = np.asarray([row_of[spot] for spot in part.spots], dtype=np.int64)
        self._write(path, key, kept, part.embeddings, seconds, heard.texts)
        if not quiet:
            self.notices.texts += heard.texts
        return part, seconds

    def _key(self, section: Section, view: FieldOfView, stain: Stain | None) -> str:
        if section.image_path not in self._images:
            self._images[section.image_path] = sha256_file(section.image_path)
        return hash_json(
            {
                "image": self._images[section.image_path],
                "mpp_um": section.mpp,
                "spots": list(section.spots),
                "places": hash_arrays(section.centers_l0, section.counts.totals() > 0),
                "said": [*section.notices, section.n_places_only, section.n_counts_only],
                "models": [[m.encoder.sha256, m.orientations, m.reduction] for m in self.encoders.members],
                "view": asdict(view),
                "plan": [self.plan.max_outside, self.plan.pitch_um],
                "stain": None if stain is None else hash_arrays(stain.directions, stain.amounts),
                "software": [self.encoders.provider, software_versions()],
            }
        )

    def _write(
        self, path: Path, key: str, kept: I64, embeddings: F32, seconds: float, texts: Sequence[str]
    ) -> None:
        make_folder(self.folder)
        with written_beside(path) as partial, partial.open("wb") as file:
            np.savez(
                file,
                kept=kept,
                embeddings=embeddings,
                seconds=np.asarray(seconds, dtype=np.float64),
                notices=np.asarray("\n".join(texts)),
                sha256=np.asarray(_digest(key, kept, embeddings, seconds, texts)),
            )

    def _read(
        self, path: Path, key: str, section: Section, dim: int
    ) -> tuple[I64, F32, float, list[str]] | None:
        """Return what was written; None, and say so, where that is damaged."""
        if not path.exists():
            return None
        n_spots = len(section.spots)
        try:
            with zipfile.ZipFile(path) as archive:
                n_bytes = sum(entry.file_size for entry in archive.infolist())
            if n_bytes > n_spots * (4 * dim + 8) + _SPARE_BYTES:
                msg = f"it would be {n_bytes} bytes"
                raise ValueError(msg)
            with np.load(path, allow_pickle=False) as file:
                kept, embeddings = file["kept"], file["embeddings"]
                seconds = float(file["seconds"])
                texts = str(file["notices"]).split("\n") if str(file["notices"]) else []
                stated = str(file["sha256"])
            if (
                stated != _digest(key, kept, embeddings, seconds, texts)
                or embeddings.shape != (len(kept), dim)
                or embeddings.dtype != np.float32
            ):
                msg = "it is not what was written"
                raise ValueError(msg)
        except _UNREADABLE as error:
            self.notices.add(f"embeddings {path.name} are damaged ({error}); encoded again")
            return None
        return kept, embeddings, seconds, texts


class Silent(Notices):
    """Keeps what is said, and passes nothing on."""

    def add(self, text: str) -> None:
        """Keep a text."""
        self.texts.append(text)


def _digest(key: str, kept: I64, embeddings: F32, seconds: float, texts: Sequence[str]) -> str:
    return hash_json([key, hash_arrays(kept, embeddings), repr(seconds), list(texts)])
