"""The usual way, to compare with: timm in PyTorch, fed by a DataLoader that cuts patches off the slide.

A process of its own: ``python -m stinfer_export.bench.torch_pipeline SPEC RESULT``. What is timed begins when
the slide is opened and ends with the last embedding; imports, the network and its first batch are not in it.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import openslide
import timm
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from stinfer_export.registry import resolve


class SlidePatches(Dataset[torch.Tensor]):
    """Patches of a slide, cut with OpenSlide or, from a flat image, with Pillow.

    Parameters
    ----------
    path : of the slide
    corners_l0 : of each patch, level-0 px
    side_l0 : of a patch, level-0 px
    transform : from a picture to what the network takes
    """

    def __init__(
        self, path: str, corners_l0: list[tuple[int, int]], side_l0: int, transform: transforms.Compose
    ) -> None:
        self._corners, self._side, self._transform = corners_l0, side_l0, transform
        self._slide: Any = None
        self._image: Image.Image | None = None
        try:
            self._slide = openslide.OpenSlide(path)
        except openslide.OpenSlideUnsupportedFormatError:
            Image.MAX_IMAGE_PIXELS = None
            self._image = Image.open(path).convert("RGB")

    def __len__(self) -> int:
        return len(self._corners)

    def __getitem__(self, index: int) -> torch.Tensor:
        x, y = self._corners[index]
        if self._image is not None:
            patch = self._image.crop((x, y, x + self._side, y + self._side))
        else:
            patch = self._slide.read_region((x, y), 0, (self._side, self._side)).convert("RGB")
        found: torch.Tensor = self._transform(patch)
        return found


def run(spec: dict[str, Any]) -> dict[str, float]:
    """Encode patches.

    Parameters
    ----------
    spec : `slide`, `centers_l0`, `side_l0`, `backbone`, `channels_last`, `batch_size`, `threads`, `device`,
        and `half`, whether in half precision

    Returns
    -------
    `seconds` and `n`
    """
    torch.set_num_threads(spec["threads"])
    known = resolve(spec["backbone"])
    network = timm.create_model(known.name, pretrained=False, num_classes=0).eval()
    layout = torch.channels_last if spec["channels_last"] else torch.contiguous_format
    kind = torch.float16 if spec["half"] else torch.float32
    network = network.to(spec["device"], kind).to(memory_format=layout)
    size = (known.input_size_px, known.input_size_px)
    transform = transforms.Compose(
        [transforms.Resize(size), transforms.ToTensor(), transforms.Normalize(known.mean, known.std)]
    )
    side = round(spec["side_l0"])
    corners = [(round(x - side / 2), round(y - side / 2)) for x, y in spec["centers_l0"]]
    n = 0
    with torch.inference_mode():
        nothing = torch.zeros(spec["batch_size"], 3, *size, device=spec["device"], dtype=kind)
        network(nothing.contiguous(memory_format=layout)).cpu()
        start = time.perf_counter()
        patches = SlidePatches(spec["slide"], corners, side, transform)
        loader = DataLoader(
            patches,
            batch_size=spec["batch_size"],
            num_workers=spec["threads"],
            pin_memory=spec["device"] == "cuda",
        )
        found = []
        for batch in loader:
            there = batch.to(spec["device"], kind, non_blocking=True).contiguous(memory_format=layout)
            found.append(network(there).float().cpu().numpy())
            n += len(batch)
        seconds = time.perf_counter() - start
    if not np.isfinite(np.concatenate(found)).all():
        msg = "the network gives what is not finite"
        raise FloatingPointError(msg)
    return {"seconds": seconds, "n": n}


if __name__ == "__main__":
    asked, result = (Path(argument) for argument in sys.argv[1:3])
    result.write_text(json.dumps(run(json.loads(asked.read_text(encoding="utf-8")))), encoding="utf-8")
