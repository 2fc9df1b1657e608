"""Packaging: what wheels say, whether a set of them is complete elsewhere, and the sums of a folder."""

from __future__ import annotations

import shutil
import subprocess
import zipfile

import pytest
from packaging.requirements import Requirement

from stinfer.errors import SettingError
from stinfer_export.errors import PackagingError
from stinfer_export.packaging import wheelhouse
from stinfer_export.packaging.sums import files_of, write_sums
from stinfer_export.packaging.wheelhouse import pin_of
from stinfer_export.packaging.wheels import platform_tags, read_wheel, resolve, target_markers

WINDOWS = target_markers("win_amd64", "3.11")
LINUX = target_markers("manylinux_2_28_x86_64", "3.11")


def write_wheel(folder, name, version, *requires, tag="py3-none-any"):
    path = folder / f"{name.replace('-', '_')}-{version}-{tag}.whl"
    lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
    lines += [f"Requires-Dist: {text}" for text in requires]
    with zipfile.ZipFile(path, "w") as file:
        file.writestr(f"{path.stem.split('-')[0]}-{version}.dist-info/METADATA", "\n".join(lines) + "\n\n")
    return path


def resolved(folder, markers, root="tool"):
    wheels = [read_wheel(path) for path in sorted(folder.glob("*.whl"))]
    return resolve([Requirement(root)], wheels, markers)


def test_a_wheel_says_its_name_version_and_needs(tmp_path):
    path = write_wheel(tmp_path, "My-Tool", "1.2", "numpy>=1", tag="cp311-cp311-win_amd64")
    wheel = read_wheel(path)
    assert (wheel.name, wheel.version, wheel.path) == ("my-tool", "1.2", path)
    assert [str(need) for need in wheel.requires] == ["numpy>=1"]


@pytest.mark.parametrize("content", [b"", b"PK no zip"])
def test_what_is_no_wheel_is_refused(tmp_path, content):
    (tmp_path / "tool-1.0-py3-none-any.whl").write_bytes(content)
    with pytest.raises(PackagingError, match=r"reading tool-1\.0-py3-none-any\.whl failed: it is no wheel"):
        read_wheel(tmp_path / "tool-1.0-py3-none-any.whl")


def test_what_only_windows_needs_is_missing_there_alone(tmp_path):
    write_wheel(tmp_path, "tool", "1", "bar")
    write_wheel(tmp_path, "bar", "2", 'colorama>=0.4; platform_system == "Windows"')
    assert resolved(tmp_path, LINUX).missing == ()
    assert resolved(tmp_path, WINDOWS).missing == ("colorama>=0.4",)

    write_wheel(tmp_path, "colorama", "0.4.6")
    assert resolved(tmp_path, WINDOWS).missing == ()
    assert resolved(tmp_path, WINDOWS).needed == {"tool", "bar", "colorama"}
    assert resolved(tmp_path, LINUX).needed == {"tool", "bar"}


def test_a_wheel_too_old_does_not_satisfy(tmp_path):
    write_wheel(tmp_path, "tool", "1", "bar>=2")
    write_wheel(tmp_path, "bar", "1.9")
    assert resolved(tmp_path, LINUX).missing == ("bar>=2",)


def test_extras_are_followed_where_they_are_asked_for(tmp_path):
    write_wheel(tmp_path, "tool", "1", 'bar; extra == "cpu"', 'other; extra == "gpu"')
    write_wheel(tmp_path, "bar", "1")
    assert resolved(tmp_path, LINUX).needed == {"tool"}
    assert resolved(tmp_path, LINUX, "tool[cpu]") == resolve(
        [Requirement("Tool[cpu]")], [read_wheel(path) for path in tmp_path.glob("*.whl")], LINUX
    )
    assert resolved(tmp_path, LINUX, "tool[cpu]").needed == {"tool", "bar"}
    assert resolved(tmp_path, LINUX, "tool[gpu]").missing == ("other",)


def test_wheels_that_need_each_other_are_followed_once(tmp_path):
    write_wheel(tmp_path, "tool", "1", "bar")
    write_wheel(tmp_path, "bar", "1", "tool")
    assert resolved(tmp_path, LINUX).needed == {"tool", "bar"}


def test_markers_are_those_of_the_other_computer():
    assert (WINDOWS["sys_platform"], WINDOWS["os_name"], WINDOWS["platform_machine"]) == (
        "win32",
        "nt",
        "AMD64",
    )
    assert (LINUX["sys_platform"], LINUX["os_name"], LINUX["platform_machine"]) == (
        "linux",
        "posix",
        "x86_64",
    )
    mac = target_markers("macosx_14_0_arm64", "3.12")
    assert (mac["sys_platform"], mac["platform_machine"], mac["python_version"]) == (
        "darwin",
        "arm64",
        "3.12",
    )
    # As packaging names its variables, all of them: one that lacks would be that of this computer.
    from packaging.markers import default_environment

    assert set(WINDOWS) == set(default_environment())


def test_a_linux_takes_wheels_of_every_older_glibc_and_by_former_names():
    assert platform_tags("manylinux_2_6_x86_64") == [
        "manylinux_2_6_x86_64",
        "manylinux_2_5_x86_64",
        "manylinux1_x86_64",
    ]
    tags = platform_tags("manylinux_2_28_aarch64")
    assert (tags[0], tags[-2]) == ("manylinux_2_28_aarch64", "manylinux_2_5_aarch64")
    assert tags.index("manylinux2014_aarch64") == tags.index("manylinux_2_17_aarch64") + 1
    assert platform_tags("win_amd64") == ["win_amd64"]


@pytest.mark.parametrize("platform", ["windows", "manylinux2014_x86_64", "linux_x86_64", "win_", ""])
def test_what_is_no_platform_is_refused(platform):
    with pytest.raises(SettingError, match="PLATFORM is"):
        platform_tags(platform)


@pytest.mark.parametrize("python", ["3", "cp311", "3.11.2", "2.7"])
def test_what_is_no_version_of_python_is_refused(python):
    with pytest.raises(SettingError, match="PYTHON is"):
        target_markers("win_amd64", python)


def test_a_pin_names_one_file_by_its_hash(tmp_path):
    path = write_wheel(tmp_path, "tool", "1.0")
    path.write_bytes(path.read_bytes())
    digest = subprocess.run(["sha256sum", path], capture_output=True, text=True, check=True).stdout.split()[0]
    assert pin_of(read_wheel(path), ("cpu", "tiff")) == f"tool[cpu,tiff]==1.0 --hash=sha256:{digest}"
    assert pin_of(read_wheel(path)) == f"tool==1.0 --hash=sha256:{digest}"


# Collecting them


@pytest.fixture
def registry(tmp_path, monkeypatch):
    """Downloads from a folder as pip does on Linux: markers hold or not as they do here."""
    folder = tmp_path / "registry"
    folder.mkdir()
    extra = 'extra == "cpu"'
    own = write_wheel(folder, "stinfer", "0.1", "bar", f"ort; {extra}")
    write_wheel(
        folder, "bar", "1", 'colorama>=0.4; sys_platform == "win32"', 'only-here; sys_platform == "linux"'
    )
    write_wheel(folder, "ort", "1")
    write_wheel(folder, "only-here", "1")

    def download(target, wanted, *_):
        target.mkdir(exist_ok=True)
        names = {"bar", "ort", "only_here", *(Requirement(text).name for text in wanted[1:])}
        for path in folder.glob("*.whl"):
            if path.name.split("-")[0] in {"stinfer", *names}:
                shutil.copy(path, target)

    monkeypatch.setattr(wheelhouse, "_download", download)
    return own


def test_what_pip_leaves_out_is_added_and_what_it_adds_is_left_out(registry, tmp_path, caplog):
    caplog.set_level("INFO", "stinfer_export")
    write_wheel(registry.parent, "colorama", "0.4.6")
    target = wheelhouse._Target("win_amd64", "3.11")
    found = wheelhouse._fetch(tmp_path / "wheels", registry, target, WINDOWS)
    assert [wheel.name for wheel in found] == ["bar", "colorama", "ort", "stinfer"]
    assert sorted(path.name.split("-")[0] for path in (tmp_path / "wheels").iterdir()) == [
        "bar",
        "colorama",
        "ort",
        "stinfer",
    ]
    assert "pip left out what only the target needs: colorama>=0.4" in caplog.text


def test_what_is_nowhere_is_named(registry, tmp_path):
    target = wheelhouse._Target("win_amd64", "3.11")
    with pytest.raises(PackagingError, match=r"Python 3\.11 failed: nothing satisfies colorama>=0\.4"):
        wheelhouse._fetch(tmp_path / "wheels", registry, target, WINDOWS)


def test_without_a_wheel_of_annoy_it_is_left_out_and_said(tmp_path, monkeypatch, caplog):
    def fail(cause):
        def download(*_):
            purpose = "looking"
            raise PackagingError(purpose, cause)

        return download

    target = wheelhouse._Target("win_amd64", "3.11")
    monkeypatch.setattr(wheelhouse, "_download", fail("ERROR: No matching distribution found for annoy"))
    assert wheelhouse._fetch_annoy(tmp_path, target) == []
    assert "annoy has no wheel for win_amd64: left out, search will be exact" in caplog.text
    monkeypatch.setattr(wheelhouse, "_download", fail("the network is down"))
    with pytest.raises(PackagingError, match="the network is down"):
        wheelhouse._fetch_annoy(tmp_path, target)


def test_pip_is_told_the_target():
    options = wheelhouse._Target("manylinux_2_5_x86_64", "3.12").pip_options
    assert options[:4] == ["--platform", "manylinux_2_5_x86_64", "--platform", "manylinux1_x86_64"]
    assert options[4:] == ["--python-version", "3.12", "--implementation", "cp", "--abi", "cp312"]


# SHA256SUMS


def test_sums_are_those_of_sha256sum(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / "b/empty").write_bytes(b"")
    (tmp_path / "a b.txt").write_bytes(b"abc")
    assert write_sums(tmp_path).read_text() == (
        # Of the empty text and of abc, as FIPS 180-4 has them.
        "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad  a b.txt\n"
        "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855  b/empty\n"
    )
    subprocess.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=tmp_path, check=True)


def test_files_are_in_the_order_of_their_bytes(tmp_path):
    for name in ("ä", "z", "A", "a", "SHA256SUMS"):
        (tmp_path / name).write_bytes(b"")
    assert files_of(tmp_path) == ["A", "a", "z", "ä"]
