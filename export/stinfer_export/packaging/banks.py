"""The banks that go with the program."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stinfer.errors import SettingError
from stinfer.files import make_folder


def check_banks(banks: Sequence[Path]) -> None:
    """Check, before any long work, that banks can go along.

    Raises
    ------
    SettingError
        Two are of one name.
    BankError
        One is not there, or is none.
    """
    from stinfer.bank import Bank

    names = [bank.name for bank in banks]
    for bank in banks:
        Bank.open(bank)
        if names.count(bank.name) > 1:
            what = f"two banks are called {bank.name}"
            raise SettingError(what, "give each a name of its own")


def copy_banks(banks: Sequence[Path], folder: Path) -> None:
    """Copy banks into a folder, and check every copy as `stinfer bank verify` does.

    A bank whose model lies beside it does not pass: alone it cannot predict.

    Parameters
    ----------
    banks : the files, checked
    folder : where to; it is made, also for none

    Raises
    ------
    BankError, ModelError
        One does not stand its test.
    """
    from stinfer.inspect_bank import verify_bank

    make_folder(folder)
    for bank in banks:
        target = folder / bank.name
        shutil.copyfile(bank, target)
        target.chmod(0o644)
        for _ in verify_bank(target):
            pass


def bank_components(bundle: Path, hashes: Mapping[str, str]) -> list[dict[str, Any]]:
    """Describe the banks of a bundle for its bill of materials.

    Parameters
    ----------
    bundle : its folder
    hashes : SHA-256 of its files, by name
    """
    from stinfer.bank import Bank
    from stinfer_export.packaging.sbom import bank_component

    found = []
    for path in sorted((bundle / "banks").iterdir()):
        settings = Bank.open(path).settings
        models = dict(zip(settings.backbones, settings.models_sha256, strict=True))
        found.append(bank_component(f"banks/{path.name}", settings.dataset, models, hashes))
    return found
