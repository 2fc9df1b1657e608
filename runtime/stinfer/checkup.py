"""What a look at a machine has found: for a person, and for programs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from stinfer.errors import StInferError, first_line

# Counts up where a name of the report is renamed, removed or changes its meaning; more may be added.
SCHEMA_VERSION = 1

Status = Literal["ok", "note", "failed"]


@dataclass(frozen=True)
class Check:
    """What one look has found.

    Parameters
    ----------
    name : of the check; the same in every version of the report
    status : ``failed`` where a run would not work, ``note`` where something is worth knowing
    found : in words
    fix : what to do; empty where nothing is to be done
    facts : the same for programs: texts, numbers, None for what is not known, lists and mappings of them
    """

    name: str
    status: Status
    found: str
    fix: str = ""
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Examination:
    """All checks, in the order they were made."""

    checks: tuple[Check, ...]

    @property
    def works(self) -> bool:
        """Whether a run would work."""
        return all(check.status != "failed" for check in self.checks)

    def to_json(self) -> dict[str, Any]:
        """Return it for programs: version, whether a run would work, and all checks by name."""
        return {
            "schema_version": SCHEMA_VERSION,
            "works": self.works,
            "checks": {
                check.name: {
                    "status": check.status,
                    "found": check.found,
                    "fix": check.fix,
                    "facts": check.facts,
                }
                for check in self.checks
            },
        }


def guarded(name: str, look: Callable[[], Check]) -> Check:
    """Make a check of whatever goes wrong in one: a broken library is what is looked for."""
    try:
        return look()
    except StInferError as error:
        return Check(name, "failed", error.what, error.fix)
    except (ImportError, OSError, RuntimeError, AttributeError, ValueError) as error:
        # Of libraries that are there in part, or of the wrong machine.
        found = f"{type(error).__name__}: {first_line(error)}"
        return Check(name, "failed", found, "unpack the bundle again, or install stinfer[cpu] anew")
