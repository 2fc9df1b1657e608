"""From measured sections to a bank: embed, normalise, and pack.

References are embedded by the runtime's own code and ONNX files, as a query will be.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

from stinfer.blas import one_thread_a_product
from stinfer.contract import MPP_MAX_UM, MPP_MIN_UM, ModelCard, Pooling
from stinfer.embed import FieldOfView
from stinfer.encoder import Device, Encoder
from stinfer.encoder_stack import EncoderStack, Member
from stinfer.errors import SettingError
from stinfer.feature_map import Progress
from stinfer.files import refuse_existing, refuse_same_file
from stinfer.record import Notices
from stinfer.slide import open_slide
from stinfer.slide_scale import is_possible
from stinfer.stain import Stain, mean_stain
from stinfer.stained_slide import slide_stain
from stinfer.tissue import find_tissue
from stinfer_export.bank_fit import BankFit, fit_bank, refuse_several_sections
from stinfer_export.bank_packing import BankSummary, EncodedSections, pack_bank
from stinfer_export.bank_plan import BankPlan, choose_view
from stinfer_export.datasets.section import Section
from stinfer_export.joining import join_parts
from stinfer_export.registry import STAIN_TEXTURE
from stinfer_export.section_encoding import encode_section
from stinfer_export.stain_choice import Stains, choose_stain, cross_validated, refuse_one_section

# Cells of another backbone lie on the same map as those of `stain_texture` if they are as large.
_TEXTURE_STRIDE_PX = 32


@one_thread_a_product()
def build_bank(
    sections: Iterable[Section],
    plan: BankPlan,
    model_paths: Sequence[Path],
    out: Path,
    *,
    device: Device = "auto",
    threads: int | None = None,
    batch_size: int | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> BankSummary:
    """Build a bank and write it.

    Parameters
    ----------
    sections : measured sections, one after the other
    plan : how to make it
    model_paths : ONNX files of the backbones
    out : the bank to write
    device, threads, batch_size : as for prediction
    overwrite : replace an existing bank
    progress : called with what is done of a section, how much there is, and of what

    Raises
    ------
    StInferError
        Of the sections, the slides, the models, the settings or the output; nothing is left half-written.
    """
    refuse_same_file(model_paths, [out])
    refuse_existing(out, overwrite=overwrite)
    notices = Notices()
    if plan.stain == "auto":
        sections = list(sections)
        refuse_one_section(plan.stain, len(sections))

    def attempt(stain: Stains) -> tuple[EncodedSections, BankFit]:
        encoded = encode_sections(
            sections, replace(plan, stain=stain), model_paths, notices, device=device, threads=threads,
            batch_size=batch_size, progress=progress,
        )  # fmt: skip
        return encoded, fit_bank(encoded.joined, encoded.layout, plan, notices)

    encoded, fit = choose_stain(
        plan.stain, attempt, lambda made: cross_validated(made[1], made[0].joined), notices
    )
    return pack_bank(encoded, fit, plan, out, notices)


def encode_sections(
    sections: Iterable[Section],
    plan: BankPlan,
    model_paths: Sequence[Path],
    notices: Notices,
    *,
    device: Device = "auto",
    threads: int | None = None,
    batch_size: int | None = None,
    progress: Progress | None = None,
) -> EncodedSections:
    """Embed sections, and join them.

    Parameters
    ----------
    sections, plan, model_paths, device, threads, batch_size, progress : see `build_bank`
    notices : told what is dropped, guessed or left out

    Raises
    ------
    StInferError
        Of the sections, the slides, the models or the settings.
    """
    if plan.own_section:
        sections = list(islice(sections, 2))
        refuse_several_sections(len(sections))
        _refuse_unknown_again(sections)
    members, models, view = open_models(plan, model_paths, notices, device=device, threads=threads)
    encoders = EncoderStack(members, view.pooling)
    stain = None
    if plan.stain == "macenko":
        sections = list(sections)
        stain = common_stain(sections)
    parts = [
        encode_section(section, plan, view, encoders, stain, batch_size, notices, progress)
        for section in sections
    ]
    parts = [part for part in parts if part.spots]
    if not parts:
        what = "no section has a spot that can be used"
        raise SettingError(what, "allow more of a patch to lie outside with --max-outside")
    joined = join_parts(parts, plan.gene_join, notices)
    return EncodedSections(joined, encoders, models, view, stain)


def _refuse_unknown_again(sections: Sequence[Section]) -> None:
    """Refuse an image that a run could not know again, or not open.

    Raises
    ------
    SettingError
        It is a folder of files, which have no one hash; or a picture coarser than a slide may be.
    """
    for section in sections:
        image = f"--own-section: the image of section {section.name}, {section.image_path},"
        if section.image_path.is_dir():
            what = f"{image} is a folder"
            raise SettingError(what, "give one file, by whose hash a run knows it again")
        if not is_possible((section.mpp, section.mpp)):
            what = f"{image} has {section.mpp:.3g} µm per pixel; slides have {MPP_MIN_UM} to {MPP_MAX_UM:g}"
            raise SettingError(what, "give the full-resolution image")


def open_models(
    plan: BankPlan, model_paths: Sequence[Path], notices: Notices, *, device: Device, threads: int | None
) -> tuple[tuple[Member, ...], tuple[bytes, ...], FieldOfView]:
    """Load the backbones, and settle how they see the tissue.

    Parameters
    ----------
    plan, model_paths, device, threads : see `build_bank`
    notices : told of what runs otherwise than asked

    Returns
    -------
    members : every backbone at every scale, nothing projected
    models : of each, its ONNX file
    view : what a spot's embedding looks at

    Raises
    ------
    SettingError, ModelError
        A file cannot be read, is no model of ours, or does not fit the plan.
    """
    files = [read_model(path) for path in model_paths]
    if len(set(files)) != len(files):
        what = "--model names one backbone twice"
        raise SettingError(what, "give each once")

    def open_for(pooling: Pooling) -> list[Encoder]:
        return [
            Encoder(model, str(path), pooling=pooling, device=device, threads=threads)
            for model, path in zip(files, model_paths, strict=True)
        ]

    opened = open_for(plan.pooling or "map")
    if opened[0].fallback:
        notices.add(f"running on the CPU: {opened[0].fallback}")
    view = choose_view(plan, [encoder.card for encoder in opened])
    if plan.pooling is None and view.pooling == "patch":
        refusal = next(e.card.map_refusal for e in opened if e.card.map_traits is None)
        notices.add(f"patches are encoded, not a map: {refusal}")
        opened = open_for("patch")
    if plan.preset != "custom" and view.pooling == "map" and _wants_texture(opened):
        texture = _stain_texture_model()
        files.append(texture)
        opened.append(Encoder(texture, STAIN_TEXTURE, pooling="map", device=device, threads=threads))
    if plan.metric == "pca" and view.pooling == "map":
        _refuse_heads([encoder.card for encoder in opened])
    members, models = [], []
    for reduction in plan.reductions if view.pooling == "map" else (1,):
        for encoder, model in zip(opened, files, strict=True):
            # Formulas of stain and texture hardly change with the orientation.
            orientations = plan.orientations if encoder.card.checkpoint_sha256 else 1
            members.append(Member(encoder, orientations, reduction))
            models.append(model)
    return tuple(members), tuple(models), view


def _stain_texture_model() -> bytes:
    from stinfer_export.stain_texture import build_graph

    model: bytes = build_graph().SerializeToString(deterministic=True)
    return model


def _wants_texture(opened: Sequence[Encoder]) -> bool:
    """Say whether `stain_texture` is to be added: it is not there, and its cells lie on the same map."""
    names = [encoder.card.backbone for encoder in opened]
    return STAIN_TEXTURE not in names and opened[0].card.stride == _TEXTURE_STRIDE_PX


def _refuse_heads(cards: Sequence[ModelCard]) -> None:
    """Refuse principal components of cells that may not be projected before they are averaged."""
    for card in cards:
        if card.map_traits is not None and card.map_traits.head:
            what = (
                f"--metric pca projects cells before they are averaged, which {card.backbone} does not allow"
            )
            fix = "its embeddings are not linear in them; use --metric standardize"
            raise SettingError(what, f"{fix}, or --preset custom to leave {STAIN_TEXTURE} out")


def read_model(path: Path) -> bytes:
    """Read the ONNX file of a backbone.

    Raises
    ------
    SettingError
        It cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        what = f"model {path} cannot be read: {error.strerror}"
        raise SettingError(what, "write one with stinfer-export backbone NAME") from error


def common_stain(sections: Sequence[Section]) -> Stain:
    """Find the middle of some sections' stains.

    Raises
    ------
    SettingError
        No section has two stains that can be told apart.
    """
    found = []
    for section in sections:
        with open_slide(section.image_path, section.mpp) as slide:
            stain = slide_stain(slide, find_tissue(slide))
        if stain is not None:
            found.append(stain)
    if not found:
        what = "--stain macenko: hematoxylin and eosin cannot be told apart in any section"
        raise SettingError(what, "use --stain none")
    return mean_stain(found)
