"""One backbone by name, or every one whose weights are at hand."""

from __future__ import annotations

from pathlib import Path

from stinfer.errors import SettingError

STAIN_TEXTURE = "stain_texture"


def export_backbone(
    name: str, checkpoint: Path | None, out_dir: Path, *, pretrained: bool = False, overwrite: bool = False
) -> Path:
    """Write the ONNX file of a backbone, of timm's or our own.

    Parameters
    ----------
    name : timm name, with or without tag, or ``stain_texture``
    checkpoint, pretrained, overwrite, out_dir : as for `stinfer_export.convert.convert_backbone`

    Returns
    -------
    Path of the file

    Raises
    ------
    StInferError
        See `convert_backbone`.
    """
    if name != STAIN_TEXTURE:
        from stinfer_export.convert import convert_backbone

        return convert_backbone(name, checkpoint, out_dir, pretrained=pretrained, overwrite=overwrite)
    from stinfer.files import refuse_existing
    from stinfer_export.stain_texture import write_stain_texture

    if checkpoint is not None or pretrained:
        what = f"{STAIN_TEXTURE} has no weights"
        raise SettingError(what, "leave out --checkpoint and --pretrained")
    out_dir.mkdir(parents=True, exist_ok=True)
    path = out_dir / f"{STAIN_TEXTURE}.onnx"
    refuse_existing(path, overwrite)
    write_stain_texture(path)
    return path
