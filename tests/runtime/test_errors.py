from __future__ import annotations

import ast
import builtins
import inspect
import re
import sys
from pathlib import Path

import pytest

from stinfer import errors
from stinfer.errors import StInferError

PATH = Path("folder/file.svs")
EXAMPLES = [
    errors.SlideNotFoundError(PATH),
    errors.SlideUnreadableError(PATH, "a tile is damaged"),
    errors.SlideTooLargeError(PATH, 60_000, 50_000, 500_000_000),
    errors.ScaleUnknownError(PATH),
    errors.ScaleImpossibleError("file.svs", (352.8, 352.8), 0.05, 20.0),
    errors.SlideForeignError(PATH, Path("bank.h5"), "C5", "0" * 64, "1" * 64),
    errors.NoTissueError(PATH, "nothing is stained"),
    errors.TissueMaskError(PATH, "it is empty"),
    errors.SpotsFormatError(PATH, "it is empty"),
    errors.SpotsOutsideError(PATH, 2, 9, "10x2", 3.25, (100, 50)),
    errors.ModelFormatError("file.svs", "it is cut short"),
    errors.ProviderUnavailableError("there is no CUDA in file.svs"),
    errors.BankNotFoundError(PATH),
    errors.BankFormatError(PATH, "it is cut short"),
    errors.BankVersionError(PATH, 2, 1),
    errors.BankAlteredError(PATH, "embedding", "another hash"),
    errors.BankSignatureError(PATH, "it has no signature"),
    errors.KeyFileError(PATH, "it is no key", "give another"),
    errors.MapFormatError(PATH, "it is cut short"),
    errors.MapVersionError(PATH, 2, 1),
    errors.MapAlteredError(PATH, "cells", "another hash"),
    errors.MapForeignError(PATH, Path("bank.h5"), "another model"),
    errors.MapTooSmallError(PATH, 7),
    errors.GeneUnknownError(["file.svs"], [[]], 10),
    errors.SettingError("--k 0 in file.svs", "give more"),
    errors.OutputExistsError(PATH),
    errors.OutputBusyError(PATH, " (process 7 on here)"),
    errors.OutputWriteError(PATH, "disk full"),
    errors.ExtraMissingError("file.svs", "annoy", "--search annoy"),
]


def documented_tree():
    """Read class, parent and builtin of every line of the tree that the module's docstring draws."""
    tree, parents = {}, {}
    for line in inspect.getdoc(errors).splitlines():
        match = re.match(r"^([ │├└─]*)(\w+Error)\b(?:\s+\((\w+)\))?", line)
        if match:
            depth = len(match[1]) // 4 - 1  # the whole tree is indented once
            parents[depth] = match[2]
            # The builtin stands in brackets; so does no other word of the tree.
            tree[match[2]] = (parents[depth - 1] if depth else "Exception", match[3])
    return tree


TREE = documented_tree()


def classes():
    return {
        name: item
        for name, item in vars(errors).items()
        if inspect.isclass(item) and issubclass(item, StInferError)
    }


def test_the_tree_drawn_is_the_tree_that_is():
    assert len(TREE) > 20
    assert set(TREE) == set(classes())


@pytest.mark.parametrize("name", TREE)
def test_every_class_has_the_bases_that_the_tree_says(name):
    parent, builtin = TREE[name]
    expected = [parent] if builtin is None else [parent, builtin]
    assert [base.__name__ for base in classes()[name].__bases__] == expected
    if builtin is not None:
        assert issubclass(getattr(builtins, builtin), Exception)


def test_there_is_an_example_of_every_class_that_is_raised():
    groups = {parent for parent, _ in TREE.values()}
    assert {type(example).__name__ for example in EXAMPLES} == set(TREE) - groups


@pytest.mark.parametrize("error", EXAMPLES, ids=lambda error: type(error).__name__)
def test_every_error_says_what_and_what_to_do(error):
    assert "file.svs" in error.what
    assert str(error) == error.what
    for text in (error.what, error.fix):
        assert len(text) > 5
        assert text == text.strip()
        # One line of the terminal's each, in words.
        assert not re.search(r"\n|Traceback|Errno|<[a-z]|\b0x[0-9a-f]|PosixPath|None|\{|\}", text)
        assert not text.endswith(".")


@pytest.mark.parametrize("error", EXAMPLES, ids=lambda error: type(error).__name__)
def test_every_error_can_be_caught_as_its_builtin(error):
    builtin = getattr(builtins, TREE[type(error).__name__][1])
    with pytest.raises(builtin) as caught:
        raise error
    assert caught.value is error


def test_every_error_is_raised_somewhere():
    used = set()
    for path in Path(errors.__file__).parent.glob("*.py"):
        if path.name != "errors.py":
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
                    used.add(ast.unparse(node.exc.func))
    groups = {parent for parent, _ in TREE.values()}
    assert set(TREE) - groups <= used


def test_messages_by_hand():
    found = {type(error): error for error in EXAMPLES}
    assert found[errors.SlideTooLargeError].what == (
        f"slide {PATH} is a flat image of 60000 x 50000 px; "
        "images without tiles are read whole, up to 500 megapixels"
    )
    assert found[errors.SpotsOutsideError].what == (
        f"spots file {PATH}: 2 of 9 spots lie outside the image of 100 x 50 px; spot 10x2 by 3.2 px"
    )
    assert "gives 352.8 µm per pixel, outside the 0.05 to 20" in found[errors.ScaleImpossibleError].what
    other = errors.ScaleImpossibleError("it", (0.01, 0.5), 0.05, 20.0)
    assert "gives 0.01 x 0.5 µm per pixel" in other.what
    assert "--mpp" in other.fix
    assert found[errors.ExtraMissingError].fix == "pip install 'stinfer[annoy]'"


def test_the_remedy_of_a_missing_package_in_a_bundle_is_no_pip(monkeypatch):
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    error = errors.ExtraMissingError("cryptography", "sign", "signing a bank")
    assert error.fix == "use a bundle that was made with cryptography"


def test_the_remedy_of_a_version_depends_on_which_is_newer():
    assert "newer stinfer" in errors.BankVersionError(PATH, 2, 1).fix
    assert "build it again" in errors.BankVersionError(PATH, 1, 2).fix
    assert errors.BankVersionError(PATH, 2, 1).what == (
        f"bank {PATH} has format version 2; this program reads version 1"
    )


def test_unknown_genes_one_some_and_many():
    one = errors.GeneUnknownError(["ERB2"], [["ERBB2", "ERBB3"]], 758)
    assert one.what == "1 gene is not among the 758 of the bank: ERB2 (nearest: ERBB2, ERBB3)"
    some = errors.GeneUnknownError(["A", "B"], [[], ["B2M"]], 758)
    assert some.what == "2 genes are not among the 758 of the bank: A, B (nearest: B2M)"
    many = errors.GeneUnknownError(list("ABCDEFG"), [[]] * 5, 758)
    assert many.what == "7 genes are not among the 758 of the bank: A, B, C, D, E, and 2 more"
