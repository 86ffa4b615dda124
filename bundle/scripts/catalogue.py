"""The page of networks: parameters, multiply-accumulates, memory and time of each, next to its authors' figures."""

from __future__ import annotations

import math
import multiprocessing
import os
import platform
import resource
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path

import torch
from monai.bundle import ConfigParser
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from scripts import BUNDLE_ROOT
from scripts.files import replacing

PAGE = BUNDLE_ROOT / "docs" / "networks.md"
INTRODUCTION = """# Networks

Written by `nny networks`. Every row is an overlay of `configs/` at the image size of its paper, image only.

- **M parameters, GMACs**: measured here; multiply-accumulates of convolutions and matrix products for one image, in
  eval mode, by torch's `FlopCounterMode`. *Paper*: what the authors print (they call multiply-accumulates FLOPs).
- **Seconds, GB**: one image in eval mode, and one training step with it (forward, cross-entropy at every scale of the
  network, backward, AdamW), float32, on {cpu}, threads: {threads}; what else the machine does makes it slower. Peak
  resident memory of a process that does nothing else, of which about 0.5 GB are torch and MONAI themselves; "none": the
  {memory:.0f} GB of this machine are not enough.
"""


@dataclass(frozen=True)
class Entry:
    """A network at the size of its paper.

    ``overlay`` is a file of ``configs/`` without ``network_`` and ``.yaml``, empty for the base; ``image`` the shape
    (C, *spatial) of its input; ``override`` what changes in the configuration; ``parameters`` (millions) and ``gmacs``
    are the authors' figures, from ``source``.
    """

    name: str
    overlay: str
    image: tuple[int, ...]
    classes: int
    override: Mapping[str, object] = field(default_factory=dict)
    parameters: float | None = None
    gmacs: float | None = None
    source: str = ""


MEDNEXT = "2303.09975"
UNETR_PP = "2212.04497, table 1"
K5 = {"kernel_size": 5}
FLAT = {  # thick slices
    "strides": [1, [4, 4, 1], [8, 8, 2], [16, 16, 4], [32, 32, 8]],
    "block::convolutions": 2,
    "block::projection": "$scripts.networks.SeparateProjections",
}
TUMOUR = {
    "strides": [1, 4, 8, 16, 32],
    "block::projection": "$scripts.networks.UnbiasedProjection",
    "block::merge": "$scripts.networks.SumBranches",
}
SYNAPSE, BTCV, CUBE, SLICE = (1, 128, 128, 64), (1, 96, 96, 96), (1, 128, 128, 128), (1, 256, 256)
ENTRIES = (
    Entry("Swin-NeXt (nnY-Net)", "", BTCV, 5),
    Entry("UNETR++, Synapse", "unetr_pp", SYNAPSE, 14, {}, 42.96, 47.98, UNETR_PP),
    Entry("UNETR++, ACDC", "unetr_pp", (1, 160, 160, 16), 4, FLAT, source="its code has 66.80 and 43.4"),
    Entry("UNETR++, lung", "unetr_pp", (1, 192, 192, 32), 2, FLAT, source="its code has 121.17 and 125.0"),
    Entry("UNETR++, BraTS", "unetr_pp", (4, 128, 128, 128), 4, TUMOUR, source="its code has 42.65 and 72.8"),
    Entry("MedNeXt-S k3", "mednext_s", CUBE, 14, {}, 5.6, None, MEDNEXT),
    Entry("MedNeXt-S k5", "mednext_s", CUBE, 14, K5, 5.9, None, MEDNEXT),
    Entry("MedNeXt-B k3", "mednext_b", CUBE, 14, {}, 10.5, None, MEDNEXT),
    Entry("MedNeXt-B k5", "mednext_b", CUBE, 14, K5, 11.0, None, MEDNEXT),
    Entry("MedNeXt-M k3", "mednext_m", CUBE, 14, {}, 17.6, None, MEDNEXT),
    Entry("MedNeXt-M k5", "mednext_m", CUBE, 14, K5, 18.3, None, MEDNEXT),
    Entry("MedNeXt-L k3", "mednext_l", CUBE, 14, {}, 61.8, None, MEDNEXT),
    Entry("MedNeXt-L k5", "mednext_l", CUBE, 14, K5, 63.0, None, MEDNEXT),
    Entry("UTNet", "utnet", SLICE, 4, {}, 9.5, None, "2107.00781; its code has 10.02"),
    Entry("UTNet, attention in the encoder only", "utnet", SLICE, 4, {"decoder_attention_levels": []}),
    Entry("SwinUNETR", "swin_unetr", BTCV, 14, {}, 62.83, 384.2, UNETR_PP),
    Entry("UNETR", "unetr", BTCV, 14, {}, 92.49, 75.76, UNETR_PP),
    Entry("U-Net", "unet", BTCV, 14),
    Entry("nnU-Net (DynUNet)", "dynunet", BTCV, 14),
    Entry("SegResNet", "segresnet", BTCV, 14),
    Entry("Residual-encoder U-Net", "res_unet", BTCV, 14),
    Entry("nnFormer", "nnformer", SYNAPSE, 14, {}, 150.5, 213.4, UNETR_PP),
    Entry("TransBTS", "transbts", (4, 128, 128, 128), 4, {}, 32.99, 333.0, "2103.04430"),
    Entry("3D UX-Net", "ux_net", BTCV, 14, {}, 53.0, None, "2209.15076"),
    Entry("ResNet50-UNet", "resnet50_unet", SLICE, 4),
    Entry("ResNet50-UTNet", "resnet50_utnet", SLICE, 4),
    Entry("TransUNet R50-B16", "transunet", SLICE, 4, {}, 105.3, None, "2102.04306"),
    Entry("Swin-UNet", "swin_unet", (1, 224, 224), 4),
)


COLUMNS = ("network", "overlay", "image", "M parameters", "paper", "GMACs", "paper", "eval s", "eval GB")
COLUMNS += ("step s", "step GB", "paper's source")


def write_page(output: str = str(PAGE), *, forward: bool = True, train: bool = True) -> str:
    """Measure every network at its paper's size and write the page, each in a process of its own.

    Args:
        output: Markdown file.
        forward: False leaves out seconds and memory of an image, which take minutes.
        train: False leaves out those of a training step, which take half an hour.

    Returns:
        The file.
    """
    rows = []
    for entry in tqdm(ENTRIES, desc="networks"):
        measured = _alone(measure, entry, forward) or measure(entry, False) | _none("seconds", "gigabytes")
        if train:
            measured |= _alone(measure_step, entry) or _none("step_seconds", "step_gigabytes")
        rows.append(_row(entry, measured))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    text = INTRODUCTION.format(cpu=_cpu(), threads=torch.get_num_threads(), memory=memory)
    lines = [f"| {' | '.join(cells)} |" for cells in (COLUMNS, ["---"] * len(COLUMNS), *rows)]
    with replacing(output) as partial:
        Path(partial).write_text(text + "\n" + "\n".join(lines) + "\n")
    return output


def measure(entry: Entry, forward: bool = True) -> dict[str, float]:
    """Measure a network in this process.

    Args:
        entry: the network.
        forward: also run it, once to warm up and once for the time.

    Returns:
        parameters (millions), gmacs (1e9), and with ``forward`` seconds of an image in eval mode and gigabytes, the
        peak memory of the process (Linux).
    """
    network = build(entry)
    result = {"parameters": sum(p.numel() for p in network.parameters()) / 1e6}
    if forward:
        image = torch.randn(1, *entry.image)
        with torch.inference_mode():
            result["seconds"] = _second_time(lambda: network(image))
        result["gigabytes"] = _peak_memory()
    return result | {"gmacs": count_macs(network, entry.image)}


def measure_step(entry: Entry) -> dict[str, float]:
    """Measure a training step of a network in this process: forward, cross-entropy, backward and AdamW.

    Args:
        entry: the network.

    Returns:
        step_seconds and step_gigabytes, the peak memory of the process (Linux).
    """
    network = build(entry).train()
    optimizer = torch.optim.AdamW(network.parameters())
    image = torch.randn(1, *entry.image)

    def step() -> None:
        logits = network(image)
        scales = logits if isinstance(logits, list) else [logits]
        loss = sum(cross_entropy(y, torch.zeros(1, *y.shape[2:], dtype=torch.long)) for y in scales)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return {"step_seconds": _second_time(step), "step_gigabytes": _peak_memory()}


def build(entry: Entry) -> nn.Module:
    """Build the network of an entry as training would, image only, in eval mode."""
    parser = ConfigParser()
    overlays = ["inference", "fusion_none", *([f"network_{entry.overlay}"] if entry.overlay else [])]
    parser.read_config([str(BUNDLE_ROOT / "configs" / f"{name}.yaml") for name in overlays])
    sizes = {"in_channels": entry.image[0], "out_channels": entry.classes, "patch_size": list(entry.image[1:])}
    parser.update(sizes | dict(entry.override))
    return parser.get_parsed_content("network_def").eval()


def count_macs(network: nn.Module, image: Sequence[int]) -> float:
    """Multiply-accumulates, in 1e9, of convolutions and matrix products for one image (C, *spatial).

    The network is moved to the meta device: shapes are enough, and nothing is computed.
    """
    network = network.to("meta")
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(torch.empty(1, *image, device="meta"))
    return counter.get_total_flops() / 2e9


def _row(entry: Entry, measured: Mapping[str, float]) -> list[str]:
    def number(value: float | None, digits: int) -> str:
        return "" if value is None else "none" if math.isnan(value) else f"{value:.{digits}f}"

    return [
        entry.name,
        f"`network_{entry.overlay}`" if entry.overlay else "(base)",
        "×".join(str(n) for n in entry.image),
        number(measured["parameters"], 2),
        number(entry.parameters, 2),
        number(measured["gmacs"], 1),
        number(entry.gmacs, 1),
        number(measured.get("seconds"), 2),
        number(measured.get("gigabytes"), 2),
        number(measured.get("step_seconds"), 2),
        number(measured.get("step_gigabytes"), 2),
        entry.source,
    ]


def _alone(function: Callable[..., dict[str, float]], *arguments: object) -> dict[str, float]:
    """Call a function in a process of its own; nothing comes back where the system kills it for its memory."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        try:
            return pool.submit(function, *arguments).result()
        except BrokenProcessPool:
            return {}


def _none(*names: str) -> dict[str, float]:
    return dict.fromkeys(names, math.nan)


def _second_time(function: Callable[[], object]) -> float:
    """Seconds that the second call of a function takes; the first one warms up."""
    function()
    begin = time.perf_counter()
    function()
    return time.perf_counter() - begin


def _peak_memory() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # from kilobytes to GB


def _cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()
