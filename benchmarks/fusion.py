"""Does clinical data help, and does missing clinical data hurt? Fusions compared on synthetic patients.

Trains image-only, add, concat and cross-attention networks with several seeds on one phantom cohort, in which some
nodules are tumour or not depending on the patient and the image does not say which. Then segments the held-out
patients with their own clinical values, with values shuffled between patients, and with half or all values removed.
Finished runs are kept, so an interrupted benchmark goes on where it stopped.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import pandas as pd
from scripts import workflows
from scripts.prepare.phantom import write_phantom_cohort

FUSIONS = ("none", "add", "concat", "cross_attention")
CONDITIONS = ("complete", "shuffled", "half missing", "all missing")
OVERLAYS = "dataset_phantom,network_swin_next_tiny"
# short runs on two CPU cores: two stages instead of three, small crops, and the tumour, which is asked for, weighs more
SHORT = {
    "network_def::encoder::depths": [2, 2],
    "network_def::encoder::num_heads": [3, 6],
    "network_def::decoder::channels": [8, 12, 24, 48],
    "network_def::decoder::blocks": [0, 1, 1, 1],
    "bottleneck_channels": 48,
    "train::loss::weight": [1, 1, 2, 1, 1],
    "inferer::overlap": 0.25,
}


def clinical_tables(data: Path, folder: Path, seed: int) -> dict[str, Path]:
    """Write the cohort's table as it is, shuffled between held-out patients, and with values removed."""
    table = pd.read_csv(data / "clinical.csv", dtype=str, keep_default_na=False)
    held_out = {c["patient_id"] for c in json.loads((data / "dataset.json").read_text())["training"] if c["fold"] == 0}
    rows = np.flatnonzero(table.iloc[:, 0].isin(held_out))
    rng = np.random.default_rng(seed)
    shuffled, half, empty = table.copy(), table.copy(), table.copy()
    # a rotation of a random order: every patient gets the values of another one
    order = rng.permutation(rows)
    shuffled.iloc[order, 1:] = table.iloc[np.roll(order, 1), 1:].to_numpy()
    hidden = np.zeros(table.shape, bool)
    hidden[rows, 1:] = rng.random((len(rows), table.shape[1] - 1)) < 0.5
    half = half.mask(hidden, "")
    empty.iloc[rows, 1:] = ""
    folder.mkdir(parents=True, exist_ok=True)
    paths = {}
    for name, content in zip(CONDITIONS, (table, shuffled, half, empty), strict=True):
        paths[name] = folder / f"{name.replace(' ', '_')}.csv"
        content.to_csv(paths[name], index=False)
    return paths


def tumour_dice(run: Path, table: Path, condition: str) -> float:
    """Evaluate a run with a clinical table and return the mean tumour Dice of the held-out patients."""
    folder = run / f"evaluation_{condition.replace(' ', '_')}"
    if not (folder / "summary.json").is_file():
        workflows.evaluate(str(run), evaluation_dir=str(folder), clinical_table_path=str(table))
    return json.loads((folder / "summary.json").read_text())["classes"]["tumour"]["dice"]["mean"]


def main() -> None:
    """Run the benchmark and print its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("work/fusion"), help="folder for cohort, runs and tables")
    parser.add_argument("--cases", type=int, default=100, help="patients, a fifth of them held out")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=45)
    parser.add_argument("--spacing", type=float, default=6.0, help="mm")
    parser.add_argument("--fusions", nargs="+", default=FUSIONS, choices=FUSIONS)
    args = parser.parse_args()
    remember_settings(args)
    data = args.output / "data"
    if not (data / "dataset.json").is_file():
        write_phantom_cohort(str(data), cases=args.cases, layout="msd", seed=11)
    tables = clinical_tables(data, args.output / "tables", seed=0)
    rows = []
    for seed in range(args.seeds):
        for fusion in args.fusions:
            begin = time.perf_counter()
            run = args.output / f"{fusion}_{seed}"
            if not (run / "evaluation_complete" / "summary.json").is_file():
                train_one(data, run, fusion, seed, args)
            if fusion == "none":  # sees no clinical value: every condition is the same
                scores = dict.fromkeys(tables, tumour_dice(run, tables["complete"], "complete"))
            else:
                scores = {name: tumour_dice(run, table, name) for name, table in tables.items()}
            rows.append({"fusion": fusion, "seed": seed} | scores)
            print(f"{fusion}, seed {seed}: {scores} in {time.perf_counter() - begin:.0f} s", flush=True)
    frame = pd.DataFrame(rows)
    (args.output / f"{'-'.join(args.fusions)}.json").write_text(frame.to_json(orient="records", indent=1))
    print_table(frame)


def train_one(data: Path, run: Path, fusion: str, seed: int, args: argparse.Namespace) -> None:
    """Train one network; the last epoch is the one that counts, so nothing is chosen on the held-out patients."""
    workflows.train(
        str(data),
        str(run),
        f"{OVERLAYS},fusion_{fusion}",
        seed=seed,
        epochs=args.epochs,
        val_interval=args.epochs,
        spacing=[args.spacing] * 3,
        patch_size=[24, 24, 24],
        batch_size=4,
        class_ratios=[1, 1, 4, 1, 1],
        learning_rate=0.005,
        warmup_epochs=1,
        num_workers=0,
        check_data=False,
        **SHORT,
    )


def remember_settings(args: argparse.Namespace) -> None:
    """Refuse to mix runs of different settings in one folder."""
    file = args.output / "settings.json"
    settings = {"cases": args.cases, "epochs": args.epochs, "spacing": args.spacing}
    if file.is_file() and json.loads(file.read_text()) != settings:
        raise SystemExit(f"{args.output} holds runs with {file.read_text()}; choose another --output.")
    args.output.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(settings))


def print_table(frame: pd.DataFrame) -> None:
    """Print mean and range over seeds, as Markdown."""
    print("| fusion | " + " | ".join(CONDITIONS) + " |")
    print("|---" * (len(CONDITIONS) + 1) + "|")
    for fusion, rows in frame.groupby("fusion", sort=False):
        cells = [f"{rows[c].mean():.3f} ({rows[c].min():.3f}–{rows[c].max():.3f})" for c in CONDITIONS]
        print(f"| {fusion.replace('_', '-')} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
