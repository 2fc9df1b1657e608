"""Which sections are predicted from which others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from stinfer.errors import SettingError

HoldOut = Literal["section", "patient"]


@dataclass(frozen=True)
class Split:
    """One fold: sections that are predicted from others.

    Parameters
    ----------
    name : of what is held out
    train, test : names of sections, none in both
    """

    name: str
    train: tuple[str, ...]
    test: tuple[str, ...]


def split_sections(patients: Mapping[str, str], hold_out: HoldOut) -> list[Split]:
    """Hold out each section, or each patient, in turn.

    Parameters
    ----------
    patients : patient of each section, by the section's name
    hold_out : what is predicted from all the rest

    Raises
    ------
    SettingError
        There is only one.
    """
    groups: dict[str, list[str]] = {}
    for section, patient in patients.items():
        groups.setdefault(section if hold_out == "section" else patient, []).append(section)
    if len(groups) < 2:
        what = f"--hold-out {hold_out} needs two of them, and there is {len(groups)}"
        fix = "use --hold-out section" if len(patients) > 1 else "give more sections"
        raise SettingError(what, fix)
    return [
        Split(name, tuple(section for section in patients if section not in held), tuple(held))
        for name, held in groups.items()
    ]


def split_once(known: Sequence[str], test: Sequence[str]) -> list[Split]:
    """Predict some sections from all others.

    Parameters
    ----------
    known : names of all sections
    test : those to predict

    Raises
    ------
    SettingError
        One is not there, or none is left to predict from.
    """
    missing = [name for name in test if name not in known]
    if missing:
        what = f"--test-on names {', '.join(missing)}, which is not among the sections {', '.join(known)}"
        raise SettingError(what, "correct --test-on, or add it to --sections")
    train = tuple(name for name in known if name not in test)
    if not train:
        what = "--test-on names every section: none is left to predict from"
        raise SettingError(what, "add sections to --sections")
    return [Split("+".join(test), train, tuple(test))]
