"""Which strategy needs the fewest labels? Annotation simulated on the left atrium.

Starts with 4 random labelled scans of 64, trains a small 3D network, lets a strategy choose 4 more, and so on to 24;
then again with another seed. Each training starts from the same weights (of its seed) and takes the same number of
steps, whatever the number of labels. The 16 held-out scans of fold 0 are segmented after each training; no strategy
was tuned on them, but network, grid and steps were chosen by trials scored on them. The first training of a seed is
shared by all strategies. Every (strategy, seed, round) is a file, so an interrupted benchmark goes on where it
stopped. Needs REAL_DATA_DIR.

    OMP_NUM_THREADS=1 PYTHONPATH=bundle python benchmarks/active_learning.py --output work/active_learning
    PYTHONPATH=bundle python benchmarks/active_learning.py --output work/active_learning --report
"""

from __future__ import annotations

import argparse
import json
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from monai.bundle import ConfigParser
from monai.transforms import ResizeWithPadOrCrop
from reports.learning_curves import report
from scripts import BUNDLE_ROOT
from scripts.acquisition import STRATEGIES, CaseScorer, Pool, select
from scripts.datalists import part
from scripts.files import replacing
from torch import Tensor, nn
from tqdm import tqdm

REAL_DATA = Path(os.environ.get("REAL_DATA_DIR", BUNDLE_ROOT.parents[1] / "shared" / "data"))
COMPARED = [name for name in STRATEGIES if name != "first"]  # the scans are in no order
UNSCORED = {"random", "first"}


@dataclass(frozen=True)
class Settings:
    """What results of one folder have in common."""

    spacing: float = 4.0  # mm
    steps: int = 600
    batch: int = 2
    learning_rate: float = 0.004
    dropout: float = 0.1
    start: int = 4
    added: int = 4
    last: int = 24

    @property
    def sizes(self) -> list[int]:
        """Numbers of labelled scans."""
        return list(range(self.start, self.last + 1, self.added))


@dataclass(frozen=True)
class Data:
    """Scans in memory: images and masks ``(N, 1, *spatial)``, and their names."""

    names: list[str]
    images: Tensor
    masks: Tensor


def configuration(settings: Settings) -> ConfigParser:
    """The bundle's own preprocessing, network and loss, small: a U-Net of a quarter of the width on a coarse grid."""
    parser = ConfigParser()
    names = ("inference", "train", "network_unet", "dataset_left_atrium")
    parser.read_config([str(BUNDLE_ROOT / "configs" / f"{name}.yaml") for name in names])
    unet = "network_def::encoder::network::"
    small = {unet + "channels": [16, 32, 64, 128], unet + "strides": [2, 2, 2], unet + "num_res_units": 0}
    small |= {"bottleneck_channels": 128, "network_def::dropout": settings.dropout}
    parser.update(small | {"spacing": [settings.spacing] * 3, "device": "$torch.device('cpu')"})
    return parser


def load(settings: Settings, name: str) -> Data:
    """Preprocess the training or validation scans of fold 0 and bring them to one size."""
    preprocess = configuration(settings).get_parsed_content("validate::preprocessing")
    size = [int(np.ceil(length / settings.spacing / 8)) * 8 for length in (138.0, 94.0, 62.0)]  # mm; holds every scan
    fit = ResizeWithPadOrCrop(size)
    cases = part(REAL_DATA / "left_atrium", 0, name)
    ready = [preprocess(case) for case in tqdm(cases, desc=f"{name} scans", leave=False)]
    images, masks = (torch.stack([fit(case[key]).as_tensor() for case in ready]) for key in ("image", "label"))
    return Data([case["case_id"] for case in cases], images.float(), masks.float())


def fit(settings: Settings, data: Data, labelled: list[int], seed: int) -> nn.Module:
    """Train a network on the labelled scans, always from the same weights and for the same number of steps."""
    torch.manual_seed(seed)
    parser = configuration(settings)
    network, loss = parser.get_parsed_content("network"), parser.get_parsed_content("train::loss")
    optimizer = torch.optim.AdamW(network.parameters(), lr=settings.learning_rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, settings.learning_rate, total_steps=settings.steps, pct_start=0.1
    )
    rng = np.random.default_rng([seed, len(labelled)])
    network.train()
    order: list[int] = []
    for _ in range(settings.steps):
        while len(order) < settings.batch:
            order += rng.permutation(labelled).tolist()
        chosen, order = order[: settings.batch], order[settings.batch :]
        images, masks = augment(data.images[chosen], data.masks[chosen], rng)
        optimizer.zero_grad()
        loss(network(images), masks).backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return network.eval()


def augment(images: Tensor, masks: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Shift by up to 3 voxels, change contrast and brightness, add noise."""
    shift = rng.integers(-3, 4, 3).tolist()
    images, masks = (values.roll(shift, dims=(2, 3, 4)) for values in (images, masks))
    gain, bias = (torch.tensor(rng.normal(mean, 0.15, (len(images), 1, 1, 1, 1))).float() for mean in (1.0, 0.0))
    noise = torch.from_numpy(rng.standard_normal(images.shape, dtype=np.float32))
    return images * gain + bias + 0.1 * noise, masks


@torch.inference_mode()
def dice(network: nn.Module, data: Data) -> list[float]:
    """Dice of every scan, on the network's grid."""
    found = torch.cat([network(image[None]).argmax(1, keepdim=True) for image in data.images])
    both = (found * data.masks).flatten(1).sum(1)
    return (2 * both / (found.flatten(1).sum(1) + data.masks.flatten(1).sum(1))).tolist()


def choose(settings: Settings, data: Data, network: nn.Module, strategy: str, labelled: list[int], seed: int) -> list:
    """Let a strategy choose the next scans, on scores of this network only."""
    scorer = CaseScorer(
        network=network,
        inferer=lambda image, net: net(image),
        samples=5 if strategy == "epistemic" else 0,
        flip_axes=(0, 1, 2) if strategy == "tta" else (),
    )
    unscored = strategy in UNSCORED
    cases = {
        name: None if unscored else scorer(image[None], seed=index)
        for index, (name, image) in enumerate(zip(data.names, data.images, strict=True))
    }
    rounds = len(settings.sizes) - 2
    done = (len(labelled) - settings.start) // settings.added
    return select(
        strategy,
        Pool.of(cases, labelled=[data.names[index] for index in labelled]),
        settings.added,
        rng=np.random.default_rng([seed, len(labelled), list(STRATEGIES).index(strategy)]),
        progress=done / max(rounds, 1),
    )


def simulate(args: argparse.Namespace, settings: Settings) -> None:
    """Run what is not there yet, seed by seed."""
    train, held_out = load(settings, "training"), load(settings, "validation")
    jobs = [(seed, name) for seed in args.seeds for name in ("full", *args.strategies)]
    for seed, strategy in tqdm(jobs, desc="strategies"):
        first = np.random.default_rng(seed).permutation(len(train.names))[: settings.start].tolist()
        labelled = list(range(len(train.names))) if strategy == "full" else first
        for size in [len(labelled)] if strategy == "full" else settings.sizes:
            file = args.output / strategy / f"seed_{seed}" / f"{size:02d}.json"
            if not file.is_file():
                begin = time.perf_counter()
                network = trained(args, settings, train, labelled, seed)
                row = {"labelled": [train.names[index] for index in labelled], "dice": dice(network, held_out)}
                row["seconds of training"] = time.perf_counter() - begin
                if strategy != "full" and size < settings.last:
                    row["next"] = choose(settings, train, network, strategy, labelled, seed)
                row["seconds"] = time.perf_counter() - begin
                write(file, row)
                tqdm.write(f"seed {seed}, {strategy}, {size}: Dice {np.mean(row['dice']):.3f}, {row['seconds']:.0f} s")
            labelled = labelled + json.loads(file.read_text()).get("next", [])


def trained(args: argparse.Namespace, settings: Settings, data: Data, labelled: list[int], seed: int) -> nn.Module:
    """Train, or load the first network of a seed, which all strategies share."""
    file = args.output / "start" / f"seed_{seed}.pt"
    if len(labelled) == settings.start and file.is_file():
        network = configuration(settings).get_parsed_content("network")
        network.load_state_dict(torch.load(file, weights_only=True))
        return network.eval()
    network = fit(settings, data, labelled, seed)
    if len(labelled) == settings.start:
        with replacing(file) as temporary:
            torch.save(network.state_dict(), temporary)
    return network


def write(file: Path, content: dict) -> None:
    """Write JSON, whole or not at all."""
    with replacing(file) as temporary:
        temporary.write_text(json.dumps(content))


def remember(args: argparse.Namespace, settings: Settings) -> Settings:
    """Settings of the folder's results; refuses to mix others in."""
    file = args.output / "settings.json"
    if not file.is_file():
        if args.report:
            raise SystemExit(f"{args.output} holds no results.")
        write(file, asdict(settings))
    found = Settings(**json.loads(file.read_text()))
    if found != settings and not args.report:
        raise SystemExit(f"{args.output} holds results of {found}; choose another --output.")
    return found


def main() -> None:
    """Run the benchmark, then print its table and draw its curves."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("work/active_learning"), help="folder for results")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--strategies", nargs="+", choices=list(STRATEGIES), default=COMPARED)
    parser.add_argument("--steps", type=int, default=Settings.steps, help="of each training (default %(default)s)")
    parser.add_argument("--last", type=int, default=Settings.last, help="labels at the end (default %(default)s)")
    parser.add_argument("--report", action="store_true", help="table and curves of what is there, nothing is trained")
    args = parser.parse_args()
    settings = remember(args, Settings(steps=args.steps, last=args.last))
    if not args.report:
        if not (REAL_DATA / "left_atrium").is_dir():
            raise SystemExit(f"{REAL_DATA}/left_atrium is not there: set REAL_DATA_DIR to the folder of the real data.")
        simulate(args, settings)
    report(args.output, list(STRATEGIES), settings.sizes)


if __name__ == "__main__":
    main()
