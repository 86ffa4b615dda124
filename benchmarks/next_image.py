"""How long does a client wait for the next image of 10,000, and for a label to be saved among them?

Images are empty files but for the one whose label is saved, scores are random; a tenth is labelled, and every request
is preceded by a new label.

    OMP_NUM_THREADS=1 PYTHONPATH=bundle:. python benchmarks/next_image.py
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import nibabel as nib
import numpy as np
from monailabel.config import settings
from scripts.acquisition import SCORES, STRATEGIES

from monailabel_app.lib.scoring.table import Table
from monailabel_app.main import NNYApp

FEATURES = 768  # of the base network; the demo's has 48
CLINICAL = 60
CLASSES = 4
SIDE = 64  # voxels of the image whose label is saved


def random_table(names: list[str]) -> Table:
    """Scores of a network that has seen every image; a third of the clinical values is unknown."""
    rng = np.random.default_rng(0)
    clinical = rng.normal(size=(len(names), CLINICAL)).astype(np.float32)
    columns = {
        "scores": rng.random((len(names), len(SCORES)), np.float32),
        "class_entropy": rng.random((len(names), CLASSES), np.float32),
        "class_volume": rng.random((len(names), CLASSES), np.float32),
        "features": rng.normal(size=(len(names), FEATURES)).astype(np.float32),
        "clinical": np.where(rng.random(clinical.shape) < 1 / 3, np.nan, clinical).astype(np.float32),
    }
    return Table(names, columns)


def measure(app: NNYApp, strategy: str, repeats: int) -> dict[str, float]:
    """Milliseconds of an answer, each to another client and after a new label; median and largest."""
    store, times = app.datastore(), []
    for _ in range(repeats):
        begin = time.perf_counter()
        given = app.next_sample({"strategy": strategy, "client_id": f"client {time.monotonic_ns()}"})
        store.get_image_info(given["id"])
        times.append(1000 * (time.perf_counter() - begin))
        (Path(store._datastore.label_path("final")) / f"{given['id']}.nii.gz").touch()
        store.refresh()
    return {"median": float(np.median(times)), "largest": float(np.max(times))}


def measure_saving(app: NNYApp, image: str, label: Path, repeats: int) -> dict[str, float]:
    """Milliseconds in which a label is checked, replaces the one before and is listed; median and largest."""
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        app.datastore().save_label(image, str(label), "final", {})
        times.append(1000 * (time.perf_counter() - begin))
    return {"median": float(np.median(times)), "largest": float(np.max(times))}


def main() -> None:
    """Measure every strategy and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--repeats", type=int, default=30, help="requests of each strategy (default %(default)s)")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "next_image.json")
    args = parser.parse_args()
    names = [f"case_{i:05d}" for i in range(args.images)]
    with tempfile.TemporaryDirectory() as folder:
        studies = Path(folder)
        (studies / "labels" / "final").mkdir(parents=True)
        for i, name in enumerate(names):
            (studies / f"{name}.nii.gz").touch()
            if i % 10 == 0:
                (studies / "labels" / "final" / f"{name}.nii.gz").touch()
        volume = nib.Nifti1Image((np.indices((SIDE,) * 3)[0] > SIDE // 2).astype(np.uint8), np.eye(4))
        nib.save(volume, studies / f"{names[-1]}.nii.gz")
        (studies / "sent").mkdir()
        nib.save(volume, studies / "sent" / "label.nii.gz")
        settings.MONAI_LABEL_DATASTORE_AUTO_RELOAD = False  # labels are announced below; nothing watches the folder
        app = NNYApp(str(Path(__file__).resolve().parents[1] / "monailabel_app"), folder, {})
        app.active.background._tables = {"0": random_table(names)}
        app.active._scored = app.active._state(names)  # nothing is left to score
        begin = time.perf_counter()
        app.active._published()
        prepared = 1000 * (time.perf_counter() - begin)
        rows = {name: measure(app, name, args.repeats) for name in STRATEGIES}
        saved = measure_saving(app, names[-1], studies / "sent" / "label.nii.gz", args.repeats)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    found = {"images": args.images, "repeats": args.repeats, "prepared": prepared, "rows": rows, "save_label": saved}
    args.output.write_text(json.dumps(found, indent=2) + "\n")
    print(f"{args.images} images, milliseconds; prepared in the background after new scores: {prepared:.0f}\n")
    print(f"a label of {SIDE}^3 voxels is saved in {saved['median']:.0f} (largest {saved['largest']:.0f})\n")
    print("| strategy | median | largest |\n|---|---|---|")
    for name, row in rows.items():
        print(f"| `{name}` | {row['median']:.0f} | {row['largest']:.0f} |")


if __name__ == "__main__":
    main()
