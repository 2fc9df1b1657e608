"""How a bank is to be made, and what the backbone decides where nobody says."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

from stinfer.bank_settings import MAX_FOV_UM, MAX_WINDOWS
from stinfer.contract import MPP_MAX_UM, ModelCard, Pooling, WindowShape
from stinfer.embed import FieldOfView
from stinfer.errors import SettingError
from stinfer.neighbors import Distance
from stinfer.predict import Weighting

GeneJoin = Literal["union", "intersection"]
MetricKind = Literal["none", "standardize", "pca", "supervised"]
Preset = Literal["fast", "best", "custom"]

DEFAULT_MAX_OUTSIDE = 0.25
# 224 px at the 0.69 µm per pixel of most sections of her2st: what the published method cuts.
DEFAULT_UM_PER_PX = 154.0 / 224
DEFAULT_PATCH_FOV_UM = (154.0,)
DEFAULT_MAP_FOV_UM = (110.0, 220.0, 440.0, 880.0)
# Of the principal components; more add nothing on her2st, see the README.
N_COMPONENTS = 64


@dataclass(frozen=True)
class BankPlan:
    """How to make a bank.

    Parameters
    ----------
    dataset : name of the data set
    pitch_um, spot_diameter_um : of its platform
    pooling : ``map``, ``patch``, or None: ``map`` where the backbone can
    fov_um : sides of the windows around each spot that are embedded, ascending; None is 110, 220, 440 and
        880 µm, and with ``patch``, which takes one, 154 µm
    window : ``square`` or ``disc``
    gene_join : keep the genes of any section (one that a section does not list counts 0 there), or
        only those of every section
    max_outside : drop a spot if more than this part of its patch, or smallest window, is not on the image,
        0 to 1
    metric : ``supervised`` is learned from the references' expression, which needs two sections;
        ``standardize`` gives every component of the embedding the same spread; ``pca`` keeps 64
        principal components of that, of every window; ``none`` changes nothing; None is ``supervised`` where
        there are two sections
    distance : None is ``euclidean`` with a supervised metric, else ``cosine``
    k, weighting : how the runtime averages; k None is chosen with the supervised metric, else 100, or a fifth
        of the references where that is fewer
    include_model : write the ONNX files into the bank
    preset : what these settings follow, for the record
    orientations : in how many orientations networks see the tissue, 1, 4 or 8
    reductions : with ``map``, how many times coarser the tissue is seen too: (1,), or (1, 2)
    stain : ``macenko`` brings every section's stains to their common middle before it is encoded; ``auto``
        does so where held-out sections are predicted better then
    own_section : the bank is of one section and predicts between its spots, by appearance and place
    """

    dataset: str
    pitch_um: float
    spot_diameter_um: float
    pooling: Pooling | None = None
    fov_um: tuple[float, ...] | None = None
    window: WindowShape = "square"
    gene_join: GeneJoin = "union"
    max_outside: float = DEFAULT_MAX_OUTSIDE
    metric: MetricKind | None = None
    distance: Distance | None = None
    k: int | None = None
    weighting: Weighting = "softmax"
    include_model: bool = True
    preset: Preset = "custom"
    orientations: int = 1
    reductions: tuple[int, ...] = (1,)
    stain: Literal["none", "macenko", "auto"] = "none"
    own_section: bool = False


def with_preset(plan: BankPlan, preset: Preset) -> BankPlan:
    """Fill in what a preset says; `reference_bank/FORMAT.md` says it in words.

    Parameters
    ----------
    plan : what is asked for beside the preset
    preset : ``fast``: one pass of the backbones over the tissue, and `stain_texture` beside networks;
        ``best``: that, and the same at half the scale; ``custom``: the plan as it is
    """
    reductions = (1, 2) if preset == "best" else plan.reductions
    return replace(plan, preset=preset, reductions=reductions)


def choose_view(plan: BankPlan, cards: Sequence[ModelCard]) -> FieldOfView:
    """Settle what is looked at, where the plan leaves it to the backbones.

    Raises
    ------
    SettingError
        A backbone has no map, or the windows are not such as the pooling takes.
    """
    without = next((card for card in cards if card.map_traits is None), None)
    pooling = plan.pooling or ("patch" if without is not None else "map")
    if pooling == "map" and without is not None:
        what = f"{without.backbone} cannot encode a slide as a map: {without.map_refusal}"
        raise SettingError(what, "use --pooling patch, or another backbone")
    default_um = DEFAULT_PATCH_FOV_UM if pooling == "patch" else DEFAULT_MAP_FOV_UM
    sides_um = default_um if plan.fov_um is None else plan.fov_um
    if list(sides_um) != sorted(set(sides_um)) or not 1 <= len(sides_um) <= MAX_WINDOWS:
        what = f"--fov-um {_listed(sides_um)} are not 1 to {MAX_WINDOWS} ascending sides"
        raise SettingError(what, "give each once, the smallest first")
    if not all(1 <= side_um <= MAX_FOV_UM for side_um in sides_um):
        what = f"--fov-um {_listed(sides_um)} is not between 1 and {MAX_FOV_UM:g} µm"
        raise SettingError(what, f"her2st and Visium need {_listed(DEFAULT_MAP_FOV_UM)}")
    if pooling == "map":
        return FieldOfView(pooling, tuple(sides_um), plan.window, DEFAULT_UM_PER_PX)
    if len(sides_um) > 1 or plan.window != "square":
        what = "--pooling patch encodes one square around each spot"
        raise SettingError(what, "give one --fov-um and no --window, or use --pooling map")
    smallest = min(cards, key=lambda card: card.input_size_px)
    um_per_px = sides_um[0] / smallest.input_size_px
    if um_per_px > MPP_MAX_UM:
        what = (
            f"--fov-um {sides_um[0]:g} is {um_per_px:.5g} µm per pixel on the {smallest.input_size_px} px "
            f"that {smallest.backbone} takes, more than {MPP_MAX_UM:g}"
        )
        fix = f"give at most {MPP_MAX_UM * smallest.input_size_px:g}, or use --pooling map"
        raise SettingError(what, fix)
    return FieldOfView(pooling, tuple(sides_um), plan.window, um_per_px)


def _listed(sides_um: Sequence[float]) -> str:
    return ",".join(f"{side_um:g}" for side_um in sides_um)


def common_preset(presets: Collection[str]) -> Preset:
    """Return the preset that all banks follow; a custom one where they follow several."""
    known: tuple[Preset, ...] = get_args(Preset)
    return next((preset for preset in known if set(presets) == {preset}), "custom")
