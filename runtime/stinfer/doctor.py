"""What `stinfer doctor` looks at: whether this machine, as it is, can predict.

Every check says what was found, in words and as facts for programs, and what to do where a run would fail.
None of them stops another.

What a program reads, with ``--json``: ``schema_version``, ``works`` (true or false) and ``checks``, by
name, each with ``status`` (``ok``, ``note`` or ``failed``), ``found`` and ``fix`` in words, and ``facts``;
null is what is not known. More names may come; those that are there stay as they are while
``schema_version`` does.

Facts of each check:

- ``program``: ``stinfer``, ``frozen``, ``python``, ``executable``, ``system``, ``architecture``
- ``openslide``: ``version``, ``formats``, ``decoders`` that were tried
- ``libraries``: ``versions`` by name, null where one cannot be loaded
- ``extras``: ``versions`` by name, null where one is not there; ``extra_of``, what to install for each
- ``cpu``: ``name``; ``features`` ``avx2``, ``avx512``, ``vnni``; ``cores_allowed``, ``cores_of_machine``,
  ``cgroup_cores``
- ``memory``: ``total_bytes``, ``allowed_bytes``, ``limited_by``
- ``onnxruntime``: ``version``, ``providers``; ``cuda``, null where it is not built in, ``works``, or what
  it lacks
- ``self_test``: ``provider``, ``largest_error``, ``tolerance``, ``same_twice``, ``patches_per_second``,
  ``patch_px``
- ``output_folder``, ``temporary_folder``: ``path``, ``free_bytes``
- ``bank_keys``: ``accepted``, names of the keys; null where any bank is accepted
- ``bank``: ``path``, ``sha256``, ``signed_by``, ``verified``; with a bank only, and so the next
- ``bank_test``: ``provider``, ``same_twice``, ``patches_per_second``, ``mm2_per_second``
- ``defaults``: ``provider``, ``threads``, ``search``, ``batch_size``
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stinfer import machine
from stinfer.checkup import Check, guarded
from stinfer.doctor_system import (
    check_cpu,
    check_extras,
    check_folder,
    check_libraries,
    check_memory,
    check_openslide,
    check_program,
    check_temporary_folder,
)

if TYPE_CHECKING:
    from stinfer.open_bank import OpenBank


def examine(
    bank: Path | None = None, *, bank_key: Path | None = None, out_dir: Path | None = None
) -> Iterator[Check]:
    """Look at everything a run needs.

    Parameters
    ----------
    bank : to check too
    bank_key : see `stinfer.open_bank.OpenBank`
    out_dir : where predictions will go; the working folder by default

    Yields
    ------
    a check at a time, as they are made
    """
    yield check_program()
    yield guarded("openslide", check_openslide)
    yield guarded("libraries", check_libraries)
    yield guarded("extras", check_extras)
    yield guarded("cpu", check_cpu)
    yield guarded("memory", check_memory)
    yield guarded("onnxruntime", _onnxruntime)
    yield guarded("self_test", _self_test)
    yield guarded("output_folder", lambda: check_folder("output_folder", out_dir or Path()))
    yield guarded("temporary_folder", check_temporary_folder)
    yield guarded("bank_keys", lambda: _bank_keys(bank_key))
    if bank is None:
        yield guarded("defaults", _defaults)
    else:
        yield from _bank(bank, bank_key)


def _onnxruntime() -> Check:
    from stinfer.onnx_runtime import ort

    installed = list(ort.get_available_providers())
    facts: dict[str, Any] = {"version": str(ort.__version__), "providers": installed, "cuda": None}
    unused = [name for name in installed if name not in ("CPUExecutionProvider", "CUDAExecutionProvider")]
    others = f"; never used: {', '.join(unused)}" if unused else ""
    if "CUDAExecutionProvider" not in installed:
        found = f"ONNX Runtime {ort.__version__} for the CPU; it has no CUDA{others}; its telemetry is off"
        return Check("onnxruntime", "ok", found, facts=facts)
    from stinfer.self_test import open_self_test

    trouble = open_self_test("auto", threads=1).fallback
    facts["cuda"] = trouble or "works"
    found = f"ONNX Runtime {ort.__version__} with CUDA{others}; its telemetry is off"
    if trouble:
        fix = "install the NVIDIA driver, CUDA and cuDNN it asks for; or leave it: runs use the CPU"
        return Check("onnxruntime", "note", f"{found}; {trouble}", fix, facts)
    return Check("onnxruntime", "ok", f"{found}, which works", facts=facts)


def _self_test() -> Check:
    from stinfer.self_test import PATCH_PX, TOLERANCE, run_self_test

    found = run_self_test("auto", threads=None)
    facts = {
        "provider": found.provider,
        "largest_error": found.largest_error,
        "tolerance": TOLERANCE,
        "same_twice": found.same_twice,
        "patches_per_second": round(found.per_second, 1),
        "patch_px": PATCH_PX,
    }
    provider = found.provider.removesuffix("ExecutionProvider")
    words = (
        f"stain_texture on {provider}: off by {found.largest_error:.1g} "
        f"at most (allowed {TOLERANCE:g}), {found.per_second:.0f} patches of {PATCH_PX} px a second"
    )
    if not found.passed:
        fix = "do not use this machine; unpack the bundle again, or install another version of onnxruntime"
        return Check("self_test", "failed", f"{words}: it computes something else", fix, facts)
    if not found.same_twice:
        return Check("self_test", "note", f"{words}; twice the same gave different bits", facts=facts)
    return Check("self_test", "ok", words, facts=facts)


def _defaults(**known: Any) -> Check:
    """Say what a run would use; `known` is what a bank says more exactly."""
    from stinfer.encoder_stack import default_batch_size
    from stinfer.gpu import CUDA
    from stinfer.neighbors import annoy_installed
    from stinfer.self_test import open_self_test

    provider = known.get("provider") or open_self_test("auto", threads=1).provider
    facts = {
        "provider": provider,
        "threads": machine.cores_allowed(),
        "search": "exact, or annoy where a bank is large" if annoy_installed() else "exact",
        "batch_size": default_batch_size(on_gpu=provider == CUDA),
        **known,
    }
    words = (
        f"{provider.removesuffix('ExecutionProvider')}, {facts['threads']} threads, search {facts['search']}",
        f"patches {facts['batch_size']} at a time",
    )
    return Check("defaults", "ok", ", ".join(words), facts=facts)


def _bank_keys(key: Path | None) -> Check:
    """Say which banks are accepted; raises where that cannot be checked."""
    from stinfer.signing import accepted_keys, require_cryptography

    keys = accepted_keys(key)
    if keys is None:
        return Check("bank_keys", "ok", "any bank is accepted, signed or not", facts={"accepted": None})
    require_cryptography("checking a bank's signature")
    names = [one.name for one in keys]
    facts = {"accepted": names}
    if not names:
        fix = "give a key that STINFER_BANK_KEYS names too, or change that"
        return Check("bank_keys", "failed", "no key is accepted, and so no bank", fix, facts)
    return Check("bank_keys", "ok", f"only banks signed by {' or '.join(names)} are accepted", facts=facts)


def _bank(path: Path, key: Path | None) -> Iterator[Check]:
    """Check a bank as `stinfer bank verify` does, encode with its models, and say what a run would use."""
    from stinfer.open_bank import OpenBank

    checked = guarded("bank", lambda: _verified(path, key))
    yield checked
    if checked.status == "failed":
        yield guarded("defaults", _defaults)
        return
    opened = OpenBank(path, device="auto", threads=None, search="auto", bank_key=key)
    yield guarded("bank_test", lambda: _bank_test(opened))
    yield guarded("defaults", lambda: _defaults_with(opened))


def _defaults_with(opened: OpenBank) -> Check:
    return _defaults(provider=opened.encoders.provider, search=opened.searcher.name)


def _verified(path: Path, key: Path | None) -> Check:
    from stinfer.files import sha256_file
    from stinfer.inspect_bank import verify_bank

    lines = list(verify_bank(path, key))
    signed_by = lines[0].removeprefix("signed by key ") if lines[0].startswith("signed by") else None
    facts = {"path": str(path), "sha256": sha256_file(path), "signed_by": signed_by, "verified": lines}
    return Check("bank", "ok", f"{path.name}: {'; '.join(lines)}", facts=facts)


def _bank_test(opened: OpenBank) -> Check:
    from stinfer.self_test import run_bank_test

    settings = opened.bank.settings
    found = run_bank_test(opened.encoders, settings.um_per_px)
    facts = {
        "provider": opened.encoders.provider,
        "same_twice": found.same_twice,
        "patches_per_second": round(found.patches_per_second, 1) or None,
        "mm2_per_second": float(f"{found.mm2_per_second:.3g}") or None,
    }
    speed = (
        f"{found.mm2_per_second:.3g} mm² of tissue a second"
        if found.mm2_per_second
        else f"{found.patches_per_second:.0f} patches a second"
    )
    words = f"the bank's own {' and '.join(settings.backbones)}: {speed}"
    if not found.same_twice:
        found_words = f"{words}; twice the same gave different bits: so would two runs"
        return Check("bank_test", "note", found_words, "use --device cpu", facts)
    return Check("bank_test", "ok", f"{words}, twice the same bits", facts=facts)
