"""Do the networks train on real data? Each one with its YAML, on the same CPU budget, scored on held-out patients.

Three tasks: cardiac cine MR slice by slice (2D) and as volumes (3D), and the left atrium (3D). The time of a step is
measured first, and each network gets the epochs that fit the budget; learning rates warm up and end in a cosine as in
any training. The last weights count, so nothing is chosen on the held-out patients. Needs REAL_DATA_DIR; finished runs
are kept, so an interrupted benchmark goes on where it stopped.

    OMP_NUM_THREADS=1 PYTHONPATH=bundle python benchmarks/training.py --minutes 4
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from monai.bundle import ConfigParser
from scripts import BUNDLE_ROOT, workflows
from scripts.datalists import part

REAL_DATA = Path(os.environ.get("REAL_DATA_DIR", BUNDLE_ROOT.parents[1] / "shared" / "data"))
ONE = "$scripts.datalists.part(@dataset_dir, @fold, 'validation')[:1]"  # evaluation scores them all
ATRIUM = {"spacing": [1.6, 1.6, 1.75], "flip_axes": []}
UNETR_PP_FLAT = {"strides": [1, [4, 4, 1], [8, 8, 2], [16, 16, 4], [32, 32, 8]]}  # strides of the authors' ACDC network


@dataclass(frozen=True)
class Task:
    """Data, patch and networks of a task; what differs in a network's configuration stands beside it."""

    data: str
    overlays: str
    patch: tuple[int, ...]
    networks: dict[str, dict]
    settings: dict
    voxel: float = 1.0  # mm along each axis, 1 where it is not known


TASKS = {
    "ACDC 2D": Task(
        "acdc",
        "dataset_acdc,dataset_acdc_2d",
        (128, 128),
        {"swin_next_small": {}, "mednext_s": {}, "utnet": {}, "unet": {}},
        {},
    ),
    "ACDC 3D": Task(
        "acdc",
        "dataset_acdc",
        (128, 128, 16),
        {"swin_next_small": {}, "unetr_pp": UNETR_PP_FLAT, "mednext_s": {}, "unet": {}},
        {},
    ),
    "left atrium": Task(
        "left_atrium",
        "dataset_left_atrium",
        (64, 64, 32),
        {"swin_next_small": {}, "unetr_pp": {}, "mednext_s": {}, "unet": {}},
        ATRIUM,
        1.25,
    ),
}


def settings(task: Task, network: str, args: argparse.Namespace) -> dict:
    """Overrides of a run, the same for every network but for what its shape asks for."""
    common = {"patch_size": list(task.patch), "num_workers": 0, "check_data": False, "seed": args.seed}
    return common | {"learning_rate": args.learning_rate, "warmup_epochs": 1} | task.settings | task.networks[network]


def overlays(task: Task, network: str) -> str:
    """Overlays of a run: those of the data over that of the network."""
    return f"network_{network},{task.overlays}"


def seconds_per_step(task: Task, network: str, args: argparse.Namespace) -> tuple[float, int]:
    """Median time of a forward and backward pass on random images, in seconds, and the number of steps of an epoch."""
    parser = ConfigParser()
    names = ["inference", "train", *overlays(task, network).split(",")]
    parser.read_config([str(BUNDLE_ROOT / "configs" / f"{name}.yaml") for name in names])
    parser.update(settings(task, network, args) | {"device": "$torch.device('cpu')"})
    net, loss = parser.get_parsed_content("network"), parser.get_parsed_content("train::loss")
    cases = parser.get_parsed_content("batch_size")
    batch = cases * parser.get_parsed_content("crops_per_case")
    image = torch.randn(batch, 1, *task.patch)
    label = torch.randint(0, parser.get_parsed_content("out_channels"), image.shape)
    times = []
    for _ in range(4):
        begin = time.perf_counter()
        loss(net(image), label).backward()
        times.append(time.perf_counter() - begin)
    return statistics.median(times[1:]), -(-len(part(REAL_DATA / task.data, 0, "training")) // cases)


def train_and_score(name: str, network: str, args: argparse.Namespace) -> dict:
    """Train and evaluate one network in this process."""
    task, run = TASKS[name], args.output / name.replace(" ", "_") / network
    row_file = run / "row.json"
    if row_file.is_file():
        return json.loads(row_file.read_text())
    step, steps = seconds_per_step(task, network, args)
    epochs = int(args.minutes * 60 / (step * steps))
    if epochs < 2:
        raise SystemExit(f"{name}, {network}: two epochs take {step * steps / 30:.1f} minutes; give more --minutes.")
    options = settings(task, network, args) | {"epochs": epochs, "val_interval": epochs, "validate::dataset::data": ONE}
    workflows.train(str(REAL_DATA / task.data), str(run), overlays(task, network), **options)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    workflows.evaluate(str(run))
    losses = pd.read_csv(run / "log.csv")["train_loss"]
    total = json.loads((run / "evaluation" / "summary.json").read_text())["total"]
    row = {
        "task": name,
        "network": network,
        "Dice": total["dice"]["mean"],
        "HD95 (voxels)": total["hd95"]["mean"] / task.voxel,
        "epochs": epochs,
        "minutes": epochs * steps * step / 60,
        "first loss": losses.iloc[0],
        "last loss": losses.iloc[-1],
        "s per step": step,
        "GB": memory,
    }
    row_file.write_text(json.dumps(row))
    return row


def main() -> None:
    """Run the benchmark and print its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("work/training"), help="folder for runs and table")
    parser.add_argument("--minutes", type=float, default=4, help="training time of each network (default %(default)s)")
    parser.add_argument("--learning-rate", type=float, default=0.002, help="peak, AdamW (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    args = parser.parse_args()
    args.output = args.output.absolute()
    if not REAL_DATA.is_dir():
        raise SystemExit(f"{REAL_DATA} is not there: set REAL_DATA_DIR to the folder of the real data.")
    rows = []
    for name in args.tasks:
        for network in TASKS[name].networks:  # each in a process of its own, for its memory
            with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
                rows.append(pool.submit(train_and_score, name, network, args).result())
            print({k: round(v, 3) if isinstance(v, float) else v for k, v in rows[-1].items()}, flush=True)
    args.output.mkdir(parents=True, exist_ok=True)
    (args.output / "results.json").write_text(json.dumps({"minutes": args.minutes, "rows": rows}, indent=1))
    print("| " + " | ".join(rows[0]) + " |\n" + "|---" * len(rows[0]) + "|")
    for row in rows:
        print("| " + " | ".join(f"{v:.3f}" if isinstance(v, float) else str(v) for v in row.values()) + " |")


if __name__ == "__main__":
    main()
