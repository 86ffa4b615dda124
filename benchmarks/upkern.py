"""Does UpKern help? MedNeXt with kernels of 5 from random weights against the same from a trained network of kernel 3.

On the left atrium (REAL_DATA_DIR), for several seeds: a small MedNeXt with kernels of 3 is trained; then two networks
with kernels of 5 are trained alike, one from random weights, one from the enlarged kernels. Printed are the training
loss of their first epoch and the Dice of the held-out patients at the end. Finished runs are kept.

    OMP_NUM_THREADS=1 PYTHONPATH=bundle python benchmarks/upkern.py
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

import pandas as pd
from scripts import BUNDLE_ROOT, workflows

REAL_DATA = Path(os.environ.get("REAL_DATA_DIR", BUNDLE_ROOT.parents[1] / "shared" / "data"))
SMALL = {  # MedNeXt-S at a quarter of its width, one block a stage
    "network_def::encoder::channels": [8, 16, 32, 64, 128],
    "network_def::decoder::channels": [8, 16, 32, 64, 128],
    "network_def::encoder::blocks": 1,
    "network_def::decoder::blocks": 1,
    "bottleneck_channels": 128,
    "spacing": [2.5, 2.5, 2.5],
    "patch_size": [48, 48, 32],
    "flip_axes": [],
    "num_workers": 0,
    "check_data": False,
    "warmup_epochs": 1,
}


def run_one(folder: Path, overlays: str, **options: object) -> dict[str, float]:
    """Train and score one network: loss of the first epoch, and Dice of the held-out patients."""
    epochs = options["epochs"]
    workflows.train(str(REAL_DATA / "left_atrium"), str(folder), overlays, **SMALL, val_interval=epochs, **options)
    if not (folder / "evaluation" / "summary.json").is_file():
        workflows.evaluate(str(folder))
    dice = json.loads((folder / "evaluation" / "summary.json").read_text())["total"]["dice"]["mean"]
    return {"first loss": float(pd.read_csv(folder / "log.csv")["train_loss"].iloc[0]), "Dice": dice}


def main() -> None:
    """Run the benchmark and print its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("work/upkern"), help="folder for the runs")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--learning-rate", type=float, default=0.003)
    args = parser.parse_args()
    if not REAL_DATA.is_dir():
        raise SystemExit(f"{REAL_DATA} is not there: set REAL_DATA_DIR to the folder of the real data.")
    overlays, rows = "network_mednext_s,dataset_left_atrium", []
    for seed in range(args.seeds):
        options = {"epochs": args.epochs, "learning_rate": args.learning_rate, "seed": seed}
        folders = {name: args.output.absolute() / f"{name}_{seed}" for name in ("k3", "k5", "upkern")}
        starts = {"upkern_source": str(folders["k3"] / "model.pt")}
        scores = {
            "k3": run_one(folders["k3"], overlays, **options),
            "k5 from random weights": run_one(folders["k5"], overlays, kernel_size=5, **options),
            "k5 by UpKern": run_one(folders["upkern"], f"{overlays},start_upkern", **starts, **options),
        }
        rows += [{"seed": seed, "network": name} | score for name, score in scores.items()]
    (args.output / "results.json").write_text(json.dumps(rows, indent=1))
    print("| seed | network | loss of the first epoch | Dice, held out |\n|---|---|---|---|")
    for row in rows:
        print(f"| {row['seed']} | {row['network']} | {row['first loss']:.3f} | {row['Dice']:.3f} |")


if __name__ == "__main__":
    main()
