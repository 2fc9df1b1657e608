"""A bill of materials: what is inside a bundle, as CycloneDX 1.6 has it.

References
----------
https://cyclonedx.org/docs/1.6/json/
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from packaging.licenses import InvalidLicenseExpression, canonicalize_license_expression

from stinfer.files import write_text
from stinfer_export.errors import PackagingError
from stinfer_export.packaging.parts import Part

NAME = "sbom.cdx.json"
# Of the serial number, which is made from the content.
_OURS = uuid.UUID("9d1f6f6e-8a55-4a6c-9f0e-2f3c3f0b6b1d")


def bill_of_materials(
    program: Part,
    parts: Sequence[Part],
    banks: Sequence[Mapping[str, Any]],
    hashes: Mapping[str, str],
    time: int,
) -> dict[str, Any]:
    """List what is inside.

    Parameters
    ----------
    program : what the bundle is of
    parts : what it consists of
    banks : components of the data that go with it
    hashes : SHA-256 of every file, by its name in the bundle
    time : seconds since 1970

    Returns
    -------
    the document; the same for the same content
    """
    purls = {part.name: part.purl for part in [program, *parts]}
    known = [program, *parts]
    document: dict[str, Any] = {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {
            "timestamp": datetime.fromtimestamp(time, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "component": {**component(program, hashes), "type": "application"},
        },
        "components": [*(component(part, hashes) for part in parts), *banks],
        "dependencies": [
            {"ref": part.purl, "dependsOn": sorted(purls[name] for name in part.requires if name in purls)}
            for part in known
        ],
    }
    content = json.dumps(document, sort_keys=True)
    document["serialNumber"] = f"urn:uuid:{uuid.uuid5(_OURS, content)}"
    return document


def component(part: Part, hashes: Mapping[str, str]) -> dict[str, Any]:
    """Describe a part and, one below, each of its files of compiled code.

    Parameters
    ----------
    part : what it is
    hashes : SHA-256 by name in the bundle
    """
    found: dict[str, Any] = {
        "type": "library",
        "bom-ref": part.purl,
        "name": part.name,
        "version": part.version,
        "purl": part.purl,
    }
    if part.license:
        found["licenses"] = [license_choice(part.license)]
    if part.libraries:
        found["components"] = [_file(name, part.purl, hashes) for name in sorted(part.libraries)]
    return found


def bank_component(
    name: str, dataset: str, models: Mapping[str, str], hashes: Mapping[str, str]
) -> dict[str, Any]:
    """Describe a reference bank and the models inside it.

    Parameters
    ----------
    name : of its file in the bundle
    dataset : what it was made from
    models : SHA-256 of each, by the name of its backbone
    hashes : SHA-256 by name in the bundle
    """
    return {
        **_file(name, "bank", hashes),
        "type": "data",
        "description": f"reference bank of data set {dataset}",
        "components": [
            {
                "type": "machine-learning-model",
                "bom-ref": f"{name}#{model}",
                "name": model,
                "hashes": [{"alg": "SHA-256", "content": digest}],
            }
            for model, digest in models.items()
        ],
    }


def license_choice(text: str) -> dict[str, Any]:
    """Return how CycloneDX says terms: an SPDX expression where it is one, else a name."""
    try:
        return {"expression": str(canonicalize_license_expression(text))}
    except InvalidLicenseExpression:
        return {"license": {"name": text}}


def write_bill(path: Path, document: Mapping[str, Any]) -> None:
    """Write a bill of materials, once it is one that others can read.

    Raises
    ------
    PackagingError
        It does not follow CycloneDX's own rules.
    """
    text = json.dumps(document, indent=2, ensure_ascii=False) + "\n"
    error = JsonStrictValidator(SchemaVersion.V1_6).validate_str(text)
    if error is not None:
        purpose = "writing the bill of materials"
        raise PackagingError(purpose, f"it is not valid: {str(error)[:500]}")
    write_text(path, text)


def _file(name: str, owner: str, hashes: Mapping[str, str]) -> dict[str, Any]:
    return {
        "type": "file",
        "bom-ref": f"{owner}#{name}",
        "name": name,
        "hashes": [{"alg": "SHA-256", "content": hashes[name]}],
    }
