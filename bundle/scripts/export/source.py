"""What is exported: the network of a run or of a bundle, with its weights, and inputs of the shapes it serves."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from monai.bundle import ConfigParser
from torch import Tensor, nn

from scripts.networks import YNet, load_weights
from scripts.slices import network_patch

LAYOUTS = {"run": ("inference.yaml", "model.pt"), "bundle": ("configs/inference.yaml", "models/model.pt")}
BATCH = 2  # of example inputs: a batch of one may be taken for a constant


@dataclass(frozen=True, kw_only=True)
class Source:
    """A trained network.

    Args:
        folder: of the run or bundle.
        config: its inference configuration.
        network: the network with its weights, on the CPU, in eval mode.
        window: voxels of an inference window along each axis of the network.
    """

    folder: Path
    config: ConfigParser
    network: YNet
    window: tuple[int, ...]


def read_source(source: str | Path) -> Source:
    """Build the network of a run or bundle and load its weights.

    Args:
        source: folder of a run (``inference.yaml``, ``model.pt``) or of a bundle (``configs/inference.yaml``,
            ``models/model.pt``).

    Returns:
        The network and its configuration.

    Raises:
        FileNotFoundError: it is neither.
        ValueError: the weights are another network's.
    """
    folder = Path(source).expanduser().resolve()
    found = [layout for layout in LAYOUTS.values() if all((folder / name).is_file() for name in layout)]
    if not found:
        wanted = " nor ".join(" + ".join(layout) for layout in LAYOUTS.values())
        cure = "unpack the zip first" if folder.suffix == ".zip" else "give a finished run or a bundle with weights"
        raise FileNotFoundError(f"{folder} holds neither {wanted}: {cure}.")
    config = ConfigParser()
    config.read_config(str(folder / found[0][0]))
    if found[0] == LAYOUTS["bundle"]:
        config["bundle_root"] = str(folder)
    network = config.get_parsed_content("network_def").cpu()
    load_weights(network, str(folder / found[0][1]))
    spatial_dims = config.get_parsed_content("spatial_dims")
    window = tuple(network_patch(config.get_parsed_content("patch_size"), spatial_dims))
    return Source(folder=folder, config=config, network=network.eval(), window=window)


def clinical_features(network: nn.Module) -> int | None:
    """Length of the clinical vector that a network takes; None where it takes none."""
    encoder = getattr(getattr(network, "fusion", None), "clinical", None)
    return None if encoder is None else encoder.features


def example_inputs(network: YNet, window: Sequence[int], batch: int = BATCH) -> tuple[Tensor, ...]:
    """Inputs of the shapes that a network serves, always the same numbers.

    Args:
        network: the network.
        window: voxels of an inference window along each axis.
        batch: windows.

    Returns:
        Image `(batch, in_channels, *window)` of standard normal noise; and where the network takes clinical variables,
        those `(batch, F)`, the first of the first row unknown (NaN).
    """
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(batch, network.encoder.in_channels, *window, generator=generator)
    features = clinical_features(network)
    if features is None:
        return (image,)
    clinical = torch.randn(batch, features, generator=generator)
    clinical[0, 0] = math.nan
    return image, clinical


def describe(examples: Sequence[Tensor]) -> bytes:
    """JSON that an exported file carries: the shape of a window, and the number of clinical features (null: none)."""
    image, *clinical = examples
    return json.dumps({"image": list(image.shape[1:]), "clinical": clinical[0].shape[1] if clinical else None}).encode()


def check_same(name: str, exported: nn.Module, network: YNet, window: Sequence[int], tolerance: float = 1e-3) -> float:
    """Compare an exported form with its network at batches of one and three, and with nothing known of the patient.

    Args:
        name: of the file, for the message.
        exported: takes image and clinical variables as the network does.
        network: the network.
        window: voxels of an inference window along each axis.
        tolerance: largest difference of logits, relative to the largest logit.

    Returns:
        The largest relative difference.

    Raises:
        ValueError: a larger difference, or another shape.
    """
    worst = 0.0
    for batch in (1, 3):
        image, *clinical = example_inputs(network, window, batch)
        for vectors in [(), tuple(clinical)][: 1 + len(clinical)]:
            with torch.inference_mode():
                expected, found = network(image, *vectors), exported(image, *vectors)
            same_shape = found.shape == expected.shape
            difference = ((found - expected).abs().max() / expected.abs().max()).item() if same_shape else math.inf
            if not difference <= tolerance:  # NaN is not
                raise ValueError(
                    f"{name} does not compute what its network does: at a batch of {batch} the largest difference is "
                    f"{difference:.2g} of the largest logit; at most {tolerance:.0e} was expected. Report the network."
                )
            worst = max(worst, difference)
    return worst
