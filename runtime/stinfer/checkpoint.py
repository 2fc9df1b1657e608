"""A run that goes on where it was: what it has encoded is kept beside its output until that is complete."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path
from typing import Any

from stinfer.contract import F32
from stinfer.errors import OutputExistsError, OutputWriteError
from stinfer.files import cause_of, is_file
from stinfer.integrity import hash_json
from stinfer.record import logger
from stinfer.step_file import StepFile, is_step_file, read_key

Steps = Generator[F32, None, None]


def checkpoint_path(out: Path) -> Path:
    """Return where the checkpoint of an output lies."""
    return out.with_name(f"{out.name}.checkpoint")


class Checkpoint:
    """The steps of one run: regions of a map, or batches of patches.

    Its file is made with the first step that is computed, and removed when the block ends well; else it
    stays, and that is said. What is said here is not of the result, and so not recorded with it.

    Parameters
    ----------
    path : where it lies, or will; that no other run has it open is the caller's to see to
    recipe : what every step depends on, beside the plan: texts, numbers and lists of them
    """

    def __init__(self, path: Path, recipe: Mapping[str, Any]) -> None:
        self.path = path
        self._recipe = dict(recipe)
        self._file: StepFile | None = None
        self._n_steps = 0
        self._unit = ""

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.sync()
            self._file.close()
        if kind is None:
            if is_step_file(self.path):
                self.path.unlink()
        elif self._file is not None and not self._file.n_done:
            self.path.unlink()
        elif self._file is not None:
            n_done = self._file.n_done
            logger.warning(
                f"{n_done} of {self._n_steps} {self._unit} are kept in {self.path}: "
                "run the same command again to go on there"
            )

    def steps(
        self,
        plan: Mapping[str, Any],
        shapes: Sequence[tuple[int, ...]],
        unit: str,
        compute: Callable[[int], Steps],
    ) -> Steps:
        """Give the values of all steps: those that are done from the file, the others computed and kept.

        Parameters
        ----------
        plan : what the steps are: with the recipe, all that they depend on
        shapes : of each step's values
        unit : what a step is, in the plural
        compute : gives the steps from the one of that number on

        Raises
        ------
        OutputWriteError
            The disk is full, or the file cannot be read.
        """
        key = bytes.fromhex(hash_json({"recipe": self._recipe, "plan": dict(plan)}))
        self._n_steps, self._unit = len(shapes), unit
        with self._refusals():
            self._file = self._resume(key, shapes)
        n_kept = 0
        if self._file is not None:
            n_kept = self._file.n_done
            for step in range(n_kept):
                with self._refusals():
                    values = self._file.read(step)
                yield values
        if n_kept == len(shapes):
            return
        with contextlib.closing(compute(n_kept)) as computed:
            for values in computed:
                with self._refusals():
                    if self._file is None:
                        self._file = StepFile.create(self.path, key, shapes)
                    self._file.add(values)
                yield values

    def note_outputs(self, partials: Mapping[Path, Path]) -> None:
        """Note which files are about to get their names, before any of them does.

        A run that is killed between two of them finds the first there, and knows it for its own.

        Parameters
        ----------
        partials : the complete file beside each output
        """
        if self._file is not None:
            with self._refusals():
                self._file.note_outputs(partials)

    def _resume(self, key: bytes, shapes: Sequence[tuple[int, ...]]) -> StepFile | None:
        if not is_file(self.path):
            return None
        found = read_key(self.path)
        if found != key:
            cause = "is damaged" if found is None else "is of another slide, bank or setting"
            logger.warning(f"checkpoint {self.path} {cause}: it is not used, and will be replaced")
            return None
        kept = StepFile(self.path, key, shapes)
        logger.warning(f"going on from {self.path}: {kept.n_done} of {self._n_steps} {self._unit} are done")
        return kept

    @contextlib.contextmanager
    def _refusals(self) -> Generator[None, None, None]:
        try:
            yield
        except OutputWriteError:
            raise
        except OSError as error:
            raise OutputWriteError(self.path, cause_of(error)) from error


def refuse_foreign_file(path: Path) -> None:
    """Check that what lies in a checkpoint's place is one.

    Raises
    ------
    OutputExistsError
        It is another file.
    """
    if is_file(path) and not is_step_file(path):
        raise OutputExistsError(path)
