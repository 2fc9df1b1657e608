"""Packaging: what is inside a bundle, its terms, its bill of materials and its archive."""

from __future__ import annotations

import ast
import gzip
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from click.testing import CliRunner
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

import stinfer_export.packaging
from stinfer.errors import BankNotFoundError, SettingError
from stinfer_export.errors import PackagingError
from stinfer_export.packaging.archives import write_archive
from stinfer_export.packaging.banks import bank_components, check_banks, copy_banks
from stinfer_export.packaging.bundle import find_parts, write_terms
from stinfer_export.packaging.cli import main
from stinfer_export.packaging.elf import elf_files, needed_glibc
from stinfer_export.packaging.parts import Part, installed_parts, license_of, read_frozen
from stinfer_export.packaging.sbom import bank_component, bill_of_materials, license_choice, write_bill
from stinfer_export.packaging.sums import files_of
from stinfer_export.packaging.system_parts import common_terms, system_parts

BOARD = Path(__file__).parents[1] / "data/board.h5"
PYTHON = Part("python", "3.11.7", "pkg:generic/python@3.11.7", "PSF-2.0", libraries=("lib/libpython.so",))
TOOL = Part("tool", "1.0", "pkg:pypi/tool@1.0", "MIT", requires=("bar", "absent"))
BAR = Part("bar", "2", "pkg:pypi/bar@2", "Dual: see text", libraries=("lib/bar/b.so", "lib/bar/a.so"))
HASHES = {"lib/libpython.so": "1" * 64, "lib/bar/a.so": "a" * 64, "lib/bar/b.so": "b" * 64}
HASHES["banks/her2st.h5"] = "c" * 64


def install(site, name, version, files, *fields):
    """Lay out a distribution as pip does."""
    info = f"{name}-{version}.dist-info"
    files = {
        **files,
        f"{info}/METADATA": "\n".join(
            ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}", *fields]
        ),
    }
    for path, text in files.items():
        (site / path).parent.mkdir(parents=True, exist_ok=True)
        (site / path).write_text(text)
    (site / info / "RECORD").write_text("".join(f"{path},,\n" for path in [*files, f"{info}/RECORD"]))


@pytest.fixture
def frozen(tmp_path):
    """A program of two distributions, Python, and a third that only lies beside."""
    prefix, base = tmp_path / "env", tmp_path / "python"
    site = prefix / "lib/python3.11/site-packages"
    install(
        site,
        "Tool",
        "1.0",
        {"tool.py": "", "tool/LICENSE.py": "", "Tool-1.0.dist-info/licenses/LICENSE": "terms of tool"},
        "License-Expression: MIT",
        "Requires-Dist: bar>=1; python_version > '3'",
        "Requires-Dist: unused",
    )
    install(
        site,
        "bar",
        "2",
        {
            "bar/a.so": "",
            "bar.libs/libz-1.so": "",
            "bar/licenses/LICENSE-zlib": "zlib",
            "bar/ThirdPartyNotices.txt": "3",
        },
    )
    install(site, "unused", "3", {"unused.py": ""})
    (base / "lib/python3.11/lib-dynload").mkdir(parents=True)
    (base / "lib/python3.11/LICENSE.txt").write_text("terms of python")
    parts = [
        ["tool", f"{site}/tool.py", "PYMODULE"],
        ["bar/a.so", f"{site}/bar/a.so", "EXTENSION"],
        ["bar.libs/libz-1.so", f"{site}/bar.libs/libz-1.so", "BINARY"],
        ["libz-1.so", "bar.libs/libz-1.so", "SYMLINK"],
        ["unused-3.dist-info/METADATA", f"{site}/unused-3.dist-info/METADATA", "DATA"],
        ["python3.11/lib-dynload/math.so", f"{base}/lib/python3.11/lib-dynload/math.so", "EXTENSION"],
        ["libpython3.11.so.1.0", f"{base}/lib/libpython3.11.so.1.0", "BINARY"],
    ]
    about = {"python": "3.11.7", "prefix": str(prefix), "base_prefix": str(base), "parts": parts}
    (tmp_path / "parts.json").write_text(json.dumps(about))
    return read_frozen(tmp_path / "parts.json"), site


# Parts


def test_distributions_are_found_by_their_files(frozen):
    found, site = frozen
    bar, tool = installed_parts(found, site)
    assert (tool.name, tool.version, tool.license, tool.requires) == ("tool", "1.0", "MIT", ("bar",))
    assert tool.purl == "pkg:pypi/tool@1.0"
    # Code that is called like a license is none.
    assert tool.terms == {"LICENSE": site / "Tool-1.0.dist-info/licenses/LICENSE"}
    assert tool.libraries == ()
    assert bar.libraries == ("bar.libs/libz-1.so", "bar/a.so")
    assert set(bar.terms) == {"bar/LICENSE-zlib", "bar/ThirdPartyNotices.txt"}


def test_what_has_become_part_of_the_program_counts(frozen):
    found, site = frozen
    assert [part.name for part in installed_parts(found, site, also=["unused"])] == ["bar", "tool", "unused"]


def test_something_without_terms_is_refused_by_name(frozen):
    found, site = frozen
    install(site, "pyinstaller", "6", {"p.py": ""})
    with pytest.raises(PackagingError, match="there is no license text of pyinstaller"):
        find_parts(found, site)


def test_python_is_a_part_of_its_own(frozen, tmp_path):
    found, site = frozen
    install(site, "pyinstaller", "6", {"p.py": "", "pyinstaller-6.dist-info/licenses/COPYING.txt": "terms"})
    parts = {part.name: part for part in find_parts(found, site)}
    assert set(parts) == {"bar", "pyinstaller", "python", "tool"}
    assert parts["python"].version == "3.11.7"
    assert parts["python"].libraries == ("libpython3.11.so.1.0", "python3.11/lib-dynload/math.so")
    write_terms(list(parts.values()), tmp_path / "licenses")
    assert files_of(tmp_path / "licenses") == [
        "bar-2/bar/LICENSE-zlib",
        "bar-2/bar/ThirdPartyNotices.txt",
        "pyinstaller-6/COPYING.txt",
        "python-3.11.7/LICENSE.txt",
        "tool-1.0/LICENSE",
    ]
    assert (tmp_path / "licenses/python-3.11.7/LICENSE.txt").read_text() == "terms of python"


@pytest.mark.parametrize(
    ("expressions", "words", "classifiers", "said"),
    [
        (["MIT"], ["The MIT License"], ["License :: OSI Approved :: MIT License"], "MIT"),
        (None, ["BSD"], None, "BSD"),
        (None, ["A whole text\nof many lines"], ["License :: OSI Approved :: BSD License"], "BSD License"),
        (None, ["UNKNOWN"], ["Topic :: X", "License :: A :: One", "License :: Two"], "One AND Two"),
        (None, None, None, ""),
    ],
)
def test_terms_are_named_by_the_most_exact_that_is_said(expressions, words, classifiers, said):
    assert license_of(expressions, words, classifiers) == said


@pytest.mark.skipif(
    not Path("/var/lib/dpkg").is_dir(), reason="the system's packages are not those of Debian"
)
def test_a_library_of_the_system_is_traced_to_its_package(tmp_path):
    library = next(Path("/usr/lib").rglob("libgcc_s.so.1"))
    about = {"python": "3.11.7", "prefix": "/env", "base_prefix": "/python"}
    (tmp_path / "parts.json").write_text(
        json.dumps({**about, "parts": [["libgcc_s.so.1", str(library), "BINARY"]]})
    )
    (part,) = system_parts(read_frozen(tmp_path / "parts.json"))
    shown = subprocess.run(["dpkg-query", "-W", "-f=${Version}", "libgcc-s1"], capture_output=True, text=True)
    assert (part.name, part.version) == ("libgcc-s1", shown.stdout)
    assert part.purl.startswith("pkg:deb/debian/libgcc-s1@")
    assert part.terms["copyright"] == Path("/usr/share/doc/libgcc-s1/copyright")
    assert "GPL-3" in part.terms

    (tmp_path / "lib.so").write_bytes(b"")
    (tmp_path / "parts.json").write_text(
        json.dumps({**about, "parts": [["l", f"{tmp_path}/lib.so", "BINARY"]]})
    )
    with pytest.raises(PackagingError, match=r"no package of this system has .*lib\.so"):
        system_parts(read_frozen(tmp_path / "parts.json"))


def test_terms_that_are_only_named_are_found(tmp_path):
    (tmp_path / "GPL-3").write_text("text")
    text = f"see `{tmp_path}/GPL-3', {tmp_path}/GPL-3. and {tmp_path}/Absent-1"
    assert common_terms(text, tmp_path) == {"GPL-3": tmp_path / "GPL-3"}


# The bill of materials


def bill(banks=()):
    return bill_of_materials(TOOL, [BAR, PYTHON], list(banks), HASHES, 86400)


def test_the_bill_names_every_part_file_and_dependency():
    found = bill([bank_component("banks/her2st.h5", "her2st", {"resnet18": "d" * 64}, HASHES)])
    assert found["metadata"]["timestamp"] == "1970-01-02T00:00:00Z"
    program = found["metadata"]["component"]
    assert (program["type"], program["name"], program["version"]) == ("application", "tool", "1.0")
    bar, python, bank = found["components"]
    assert (bar["name"], bar["version"], bar["purl"]) == ("bar", "2", "pkg:pypi/bar@2")
    assert bar["licenses"] == [{"license": {"name": "Dual: see text"}}]
    assert [(file["name"], file["hashes"][0]["content"][0]) for file in bar["components"]] == [
        ("lib/bar/a.so", "a"),
        ("lib/bar/b.so", "b"),
    ]
    assert python["licenses"] == [{"expression": "PSF-2.0"}]
    assert (bank["type"], bank["hashes"]) == ("data", [{"alg": "SHA-256", "content": "c" * 64}])
    assert bank["components"][0]["type"] == "machine-learning-model"
    assert bank["components"][0]["hashes"] == [{"alg": "SHA-256", "content": "d" * 64}]
    assert found["dependencies"] == [
        {"ref": "pkg:pypi/tool@1.0", "dependsOn": ["pkg:pypi/bar@2"]},
        {"ref": "pkg:pypi/bar@2", "dependsOn": []},
        {"ref": "pkg:generic/python@3.11.7", "dependsOn": []},
    ]


def test_the_same_content_gives_the_same_bill():
    assert bill() == bill()
    other = bill_of_materials(TOOL, [BAR, PYTHON], [], {**HASHES, "lib/bar/a.so": "e" * 64}, 86400)
    assert other["serialNumber"] != bill()["serialNumber"]


def test_the_bill_is_one_by_cyclonedx_own_rules(tmp_path):
    found = bill([bank_component("banks/her2st.h5", "her2st", {"resnet18": "d" * 64}, HASHES)])
    write_bill(tmp_path / "sbom.json", found)
    text = (tmp_path / "sbom.json").read_text()
    assert json.loads(text) == found
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None

    found["components"][0]["type"] = "thing"
    with pytest.raises(
        PackagingError, match=r"writing the bill of materials failed: it is not valid: .*thing"
    ):
        write_bill(tmp_path / "bad.json", found)
    assert not (tmp_path / "bad.json").exists()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("mit", {"expression": "MIT"}),
        ("BSD-3-Clause AND (MIT OR Zlib)", {"expression": "BSD-3-Clause AND (MIT OR Zlib)"}),
        ("MIT License", {"license": {"name": "MIT License"}}),
    ],
)
def test_terms_are_an_expression_where_they_are_one(text, said):
    assert license_choice(text) == said


# Banks


def test_banks_are_copied_checked_and_described(tmp_path):
    copy_banks([BOARD], tmp_path / "banks")
    assert (tmp_path / "banks/board.h5").read_bytes() == BOARD.read_bytes()
    (found,) = bank_components(tmp_path, {"banks/board.h5": "f" * 64})
    assert (found["name"], found["hashes"][0]["content"]) == ("banks/board.h5", "f" * 64)
    assert len(found["components"]) == 1


def test_banks_that_cannot_go_along_are_refused(tmp_path):
    with pytest.raises(SettingError, match=r"two banks are called board\.h5"):
        check_banks([BOARD, BOARD])
    with pytest.raises(BankNotFoundError, match="nowhere"):
        check_banks([BOARD, tmp_path / "nowhere.h5"])
    copy_banks([], tmp_path / "none")
    assert list((tmp_path / "none").iterdir()) == []


# The commands


@pytest.mark.parametrize("name", ["wheelhouse", "bundle"])
def test_the_commands_say_what_they_do_and_what_is_wrong(name, tmp_path):
    shown = CliRunner().invoke(main, [name, "--help"])
    assert shown.exit_code == 0
    assert f"Example: python -m stinfer_export.packaging {name}" in shown.output
    for option in main.commands[name].params:
        assert option.help, option.name
        assert option.help.endswith((".", "]")), option.name

    found = CliRunner().invoke(main, [name, "--bank", str(tmp_path / "none.h5"), "--out-dir", str(tmp_path)])
    assert found.exit_code == 1
    assert f"Error: bank {tmp_path}/none.h5 does not exist\nTry:   check the path" in found.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_platform_that_is_none_is_refused_before_any_work():
    found = CliRunner().invoke(main, ["wheelhouse", "--platform", "windows"])
    assert found.exit_code == 1
    assert "Error: PLATFORM is 'windows'\nTry:   give a wheel's tag: win_amd64" in found.stderr


# Compiled files


def test_the_newest_glibc_that_is_asked_for_counts():
    one = b"\x7fELF...\0GLIBC_2.2.5\0GLIBC_2.17\0memcpy\0"
    two = b"\x7fELF...\0GLIBC_2.9\0GLIBCXX_3.4.30\0text GLIBC_2.99 text\0"
    assert needed_glibc([two]) == (2, 9)
    assert needed_glibc([one, two]) == (2, 17)
    assert needed_glibc([b"nothing"]) is None


def test_compiled_files_are_told_by_their_first_bytes(tmp_path):
    (tmp_path / "b").write_bytes(b"\x7fELF\x02")
    (tmp_path / "a.so").write_bytes(b"text")
    (tmp_path / "link").symlink_to("b")
    assert elf_files(tmp_path) == [tmp_path / "b"]


@pytest.mark.skipif(not shutil.which("objdump"), reason="objdump is not installed")
def test_glibc_of_a_real_program_is_what_the_loader_reads():
    program = Path(sys.executable).resolve()
    shown = subprocess.run(["objdump", "-T", program], capture_output=True, text=True, check=True).stdout
    wanted = {
        tuple(map(int, word[6:].rstrip(")").split(".")[:2]))
        for word in shown.replace("(", " ").split()
        if word.startswith("GLIBC_2")
    }
    assert needed_glibc([program.read_bytes()]) == max(wanted)


# Archives


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "prog ä"
    (made / "lib").mkdir(parents=True)
    (made / "run").write_bytes(b"#!")
    (made / "run").chmod(0o700)
    (made / "lib/a").write_bytes(b"abc")
    (made / "lib/a").chmod(0o600)
    (made / "SHA256SUMS").write_bytes(b"")
    return made


def test_an_archive_is_sorted_without_owners_and_of_one_time(folder, tmp_path):
    write_archive(folder, tmp_path / "p.tar.gz", 86400)
    with tarfile.open(tmp_path / "p.tar.gz") as archive:
        found = [(m.name, m.mode, m.mtime, m.uid, m.uname, m.size) for m in archive.getmembers()]
    assert found == [
        ("prog ä/lib/a", 0o644, 86400, 0, "", 3),
        ("prog ä/run", 0o755, 86400, 0, "", 2),
        ("prog ä/SHA256SUMS", 0o644, 86400, 0, "", 0),
    ]
    first = hashlib.sha256((tmp_path / "p.tar.gz").read_bytes()).digest()
    os.utime(folder / "run", (5, 5))
    write_archive(folder, tmp_path / "q.tar.gz", 86400)
    assert hashlib.sha256((tmp_path / "q.tar.gz").read_bytes()).digest() == first
    with gzip.open(tmp_path / "q.tar.gz") as packed:
        assert b"abc" in packed.read()


def test_on_windows_it_is_a_zip(folder, tmp_path):
    write_archive(folder, tmp_path / "p.zip", 1700000000)
    with zipfile.ZipFile(tmp_path / "p.zip") as archive:
        assert archive.namelist() == ["prog ä/lib/a", "prog ä/run", "prog ä/SHA256SUMS"]
        assert archive.read("prog ä/lib/a") == b"abc"
        assert archive.infolist()[0].date_time == (2023, 11, 14, 22, 13, 20)


# The recipe


def test_every_decoder_that_tiff_files_may_ask_for_goes_along():
    import imagecodecs
    import tifffile

    recipe = ast.parse((Path(stinfer_export.packaging.__file__).parent / "stinfer.spec").read_text())
    kept = set()
    for line in recipe.body:
        target = line.targets[0] if isinstance(line, ast.Assign) else getattr(line, "target", None)
        if isinstance(target, ast.Name) and target.id == "CODECS":
            kept |= ast.literal_eval(line.value)
    home = {
        function: module[1:]
        for module, functions in imagecodecs.imagecodecs._MODULES.items()
        for function in functions
        if module  # that without a name is for what is not built
    }
    wanted = {"jpeg8", "ljpeg"}  # jpeg_decode chooses among these
    for known, decoders in (
        (tifffile.COMPRESSION, tifffile.TIFF.DECOMPRESSORS),
        (tifffile.PREDICTOR, tifffile.TIFF.UNPREDICTORS),
    ):
        names = {decoders[key].__name__ for key in known if key in decoders}
        wanted |= {home[name] for name in names if name in home}
    assert {"imcd", "jpeg2k", "zstd", "webp", "deflate"} <= wanted <= kept
