"""Do the networks train on real data? Each with its YAML on one equal CPU budget, scored on held-out patients.

Three comparisons as `nny compare` makes them: cardiac cine MR slice by slice (2D) and as volumes (3D), and the left
atrium (3D). The weights of the last epoch count, so nothing is chosen on the held-out patients. Needs REAL_DATA_DIR;
finished runs are kept, so an interrupted benchmark goes on where it stopped.

    OMP_NUM_THREADS=1 PYTHONPATH=bundle python benchmarks/training.py --minutes 5
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from scripts import BUNDLE_ROOT
from scripts.compare import compare

REAL_DATA = Path(os.environ.get("REAL_DATA_DIR", BUNDLE_ROOT.parents[1] / "shared" / "data"))
# Strides of the authors' ACDC network: thick slices are not merged at first.
FLAT = "strides: [1, [4, 4, 1], [8, 8, 2], [16, 16, 4], [32, 32, 8]]\n"
COMMON = {"warmup_epochs": 1, "num_workers": 0, "check_data": False, "learning_rate": 0.002}
TASKS = {
    "acdc_2d": {
        "dataset": "acdc",
        "overlays": "dataset_acdc,dataset_acdc_2d",
        "networks": "swin_next_small,mednext_s,utnet,unet",
        "patch_size": [128, 128],
        "crops_per_case": 2,
    },
    "acdc_3d": {
        "dataset": "acdc",
        "overlays": "dataset_acdc",
        "networks": "swin_next_small,unetr_pp+{flat},mednext_s,unet",
        "patch_size": [96, 96, 16],
    },
    "left_atrium": {
        "dataset": "left_atrium",
        "overlays": "dataset_left_atrium",
        "networks": "swin_next_small,unetr_pp,mednext_s,unet",
        "patch_size": [64, 64, 32],
        "spacing": [1.6, 1.6, 1.75],
        "flip_axes": [],
    },
}


def main() -> None:
    """Run the comparisons."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("work/training"), help="folder of the comparisons")
    parser.add_argument("--minutes", type=float, default=5, help="training of each run (default %(default)s)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    args = parser.parse_args()
    if not REAL_DATA.is_dir():
        raise SystemExit(f"{REAL_DATA} is not there: set REAL_DATA_DIR to the folder of the real data.")
    flat = args.output.absolute() / "flat.yaml"
    flat.parent.mkdir(parents=True, exist_ok=True)
    flat.write_text(FLAT)
    for name in args.tasks:
        task = COMMON | TASKS[name]
        dataset, networks = str(REAL_DATA / task.pop("dataset")), task.pop("networks").format(flat=flat)
        folder = str(args.output / name)
        compare(dataset=dataset, networks=networks, seeds=args.seeds, minutes=args.minutes, output=folder, **task)
        print((Path(folder) / "leaderboard.md").read_text())


if __name__ == "__main__":
    main()
