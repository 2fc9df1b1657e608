"""The files that a run writes: their names, and whether they may be written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from stinfer.checkpoint import checkpoint_path, refuse_foreign_file
from stinfer.errors import OutputExistsError
from stinfer.files import refuse_existing, refuse_same_file
from stinfer.finished import Finished, read_finished
from stinfer.step_file import own_outputs

MAP_SUFFIX = ".map.h5"


@dataclass(frozen=True)
class Outputs:
    """Where a run's results go.

    Parameters
    ----------
    prediction : the `.h5ad` file
    csv, ome_tiff, map : table, dense image and the slide's map; None where not asked for
    pictures : of genes
    preview : picture of tissue and places; a product of its own, which stays if the run fails
    """

    prediction: Path
    csv: Path | None = None
    pictures: tuple[Path, ...] = ()
    ome_tiff: Path | None = None
    map: Path | None = None
    preview: Path | None = None

    @property
    def together(self) -> list[Path]:
        """What is written together, or not at all."""
        found = (self.prediction, self.csv, self.ome_tiff, self.map, *self.pictures)
        return [path for path in found if path is not None]

    @property
    def all(self) -> tuple[Path, ...]:
        """All files, the prediction first."""
        others = (self.preview, self.csv, *self.pictures, self.ome_tiff, self.map)
        return (self.prediction, *(path for path in others if path is not None))

    @property
    def checkpoint(self) -> Path:
        """What is encoded, kept until the run is complete."""
        return checkpoint_path(self.prediction)

    def refuse_inputs(self, inputs: Sequence[Path], log: Path | None) -> None:
        """Refuse to write over what is read.

        Raises
        ------
        SettingError
            An output, the checkpoint or the log is an input, or another output.
        """
        others = [path for path in (self.preview, log) if path is not None]
        refuse_same_file(inputs, [*self.together, self.checkpoint, *others])

    def refuse_existing(self, *, overwrite: bool) -> None:
        """Refuse to write over what is there and is no leftover of this very run.

        Raises
        ------
        OutputExistsError
            It says which.
        """
        own = own_outputs(self.checkpoint, self.together)
        for path in self.together:
            refuse_existing(path, overwrite=overwrite or path in own)
        refuse_existing(self.checkpoint, overwrite=True)
        refuse_foreign_file(self.checkpoint)

    def finished(self) -> Finished | None:
        """Look for what an earlier run has written; None where there is nothing yet.

        Raises
        ------
        OutputExistsError
            There is something, but not all of it.
        """
        there = [path for path in self.together if path.exists()]
        if set(there) <= own_outputs(self.checkpoint, self.together):
            return None
        found = read_finished(self.prediction)
        if there != self.together or found is None:
            raise OutputExistsError(there[0])
        return found


@dataclass(frozen=True)
class PredictionResult:
    """Where a run's results are.

    Parameters
    ----------
    path : the `.h5ad` file
    csv_path : the CSV file, if asked for
    png_paths : the pictures, in the order asked for
    ome_tiff_path, map_path : the dense image and the slide's map, if asked for
    preview_path : the picture of tissue and places, if asked for
    n_spots, n_genes : size of the prediction
    notices : what a user should know, as recorded in the file
    """

    path: Path
    csv_path: Path | None
    png_paths: tuple[Path, ...]
    ome_tiff_path: Path | None
    map_path: Path | None
    preview_path: Path | None
    n_spots: int
    n_genes: int
    notices: tuple[str, ...]

    @property
    def paths(self) -> tuple[Path, ...]:
        """All files, the prediction first."""
        return Outputs(
            self.path, self.csv_path, self.png_paths, self.ome_tiff_path, self.map_path, self.preview_path
        ).all


def default_output(slide: str | Path) -> Path:
    """Return where a slide's prediction goes unless told: the working folder, named after it."""
    name = Path(slide).name
    stem = name.removesuffix(MAP_SUFFIX) if name.endswith(MAP_SUFFIX) else Path(name).stem
    return Path(f"{stem}.stinfer.h5ad")


def picture_path(prediction: Path, gene: str) -> Path:
    """Return where a gene's picture goes: beside the prediction, named after both."""
    # A gene's name comes from a file: it must not lead out of the folder.
    safe = "".join(c if c.isalnum() or c in "-_." else "_" for c in gene)
    return prediction.with_name(f"{prediction.name.removesuffix('.h5ad')}.{safe}.png")
