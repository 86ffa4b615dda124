"""What does the annotation server cost on top of the network? Its requests against the bundle's own inference.

A server on a folder of synthetic patients with the demo network, as `nny serve` starts it, and in this process the
evaluator that the network's own `inference.yaml` describes, on the same image, from file to file. Both are warm and
take turns, so that a busy machine slows both; each request is divided by the inference next to it. The server has
scored its images before, so nothing else of it runs.

    OMP_NUM_THREADS=1 PYTHONPATH=bundle:. python benchmarks/serving.py
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
import warnings
from collections.abc import Callable
from pathlib import Path

import requests
import torch
from monai.bundle import ConfigParser
from scripts.networks import load_weights
from scripts.prepare.phantom import write_phantom_cohort
from scripts.workflows import DEMO_RUN
from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[1]
PATIENCE = 300  # seconds
ROWS = {
    "infer, json": "infer, `output=json`",
    "infer, nii.gz": "infer, `output=image` (nii.gz)",
    "infer, entropy": "infer, `result: entropy` (nii.gz)",
    "next_sample": "next sample",
    "save_label": "save label",
    "info": "info",
}


class Server:
    """The annotation server on a free port; ends with the block."""

    def __init__(self, images: Path, table: Path, folder: Path) -> None:
        command = [sys.executable, "-m", "monailabel_app.serve", "--studies", str(images), "--port", "0"]
        command += ["--clinical", str(table), "--output", str(folder / "out")]
        paths = os.pathsep.join([str(ROOT / "bundle"), str(ROOT)])
        self.log = folder / "server.log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                command, stdout=log, stderr=log, cwd=folder, env=os.environ | {"PYTHONPATH": paths}
            )

    def __enter__(self) -> str:
        """Wait until requests are answered and every image has been scored; give the address."""
        sign, end = "Ready. 3D Slicer: give ", time.monotonic() + PATIENCE
        while sign not in self.log.read_text():
            if self.process.poll() is not None or time.monotonic() > end:
                raise SystemExit(f"The server did not start:\n{self.log.read_text()}")
            time.sleep(0.2)
        address = self.log.read_text().split(sign)[1].split()[0]
        while True:
            with urllib.request.urlopen(f"{address}/info/") as answer:
                state = json.load(answer)["scoring"]["uncertainty"]
            if not state["running"] and state["scored"] == state["images"]:
                return address
            if time.monotonic() > end:
                raise SystemExit(f"The images were not scored: {state}")
            time.sleep(1)

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.wait()


def own_inference(image: Path, table: Path, folder: Path) -> Callable[[], None]:
    """The bundle's own inference of one image, everything loaded."""
    config = ConfigParser()
    config.read_config(str(DEMO_RUN / "inference.yaml"))
    config.update(
        {
            "dataset_dir": str(image),
            "output_dir": str(folder / "own"),
            "clinical_statistics": str(DEMO_RUN / "clinical.json"),
            "clinical_table_path": str(table),
            "handlers": [],
        }
    )
    load_weights(config.get_parsed_content("network"), DEMO_RUN / "model.pt")
    evaluator = config.get_parsed_content("evaluator")
    return lambda: evaluator.run()


def seconds(call: Callable[[], object]) -> float:
    """How long a call takes."""
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def measure(address: str, own: Callable[[], None], case: str, label: Path, rounds: int) -> dict[str, list[float]]:
    """Seconds of every request and of the inference before it, round by round."""

    def post(path: str, **more: object) -> None:
        requests.post(address + path, timeout=PATIENCE, **more).raise_for_status()

    def save() -> None:
        with label.open("rb") as content:
            query = {"image": case, "tag": "final"}
            answer = requests.put(f"{address}/datastore/label", params=query, files={"label": (label.name, content)})
        answer.raise_for_status()

    def entropy() -> None:
        post(f"/infer/demo?image={case}&output=image", data={"params": '{"result": "entropy"}'})

    calls = {
        "infer, json": lambda: post(f"/infer/demo?image={case}&output=json"),
        "infer, nii.gz": lambda: post(f"/infer/demo?image={case}&output=image"),
        "infer, entropy": entropy,
        "next_sample": lambda: post("/activelearning/uncertain_and_diverse", json={"client_id": "benchmark"}),
        "save_label": save,
        "info": lambda: requests.get(f"{address}/info/", timeout=PATIENCE).raise_for_status(),
    }
    for call in (own, *calls.values()):  # once, so that all is loaded
        call()
    times: dict[str, list[float]] = {"own": []} | {name: [] for name in calls}
    for _ in tqdm(range(rounds), desc="rounds"):
        for name, call in calls.items():
            if name.startswith("infer"):
                times["own"].append(seconds(own))
                times.setdefault(f"own before {name}", []).append(times["own"][-1])
            times[name].append(seconds(call))
    return times


def table(times: dict[str, list[float]]) -> dict[str, dict[str, float]]:
    """Median seconds and ratios, with the smallest and largest ratio."""
    typical, rows = statistics.median(times["own"]), {}
    for name in ROWS:
        beside = times.get(f"own before {name}", [typical] * len(times[name]))
        ratios = [mine / other for mine, other in zip(times[name], beside, strict=True)]
        rows[name] = {
            "seconds": statistics.median(times[name]),
            "ratio": statistics.median(ratios),
            "smallest": min(ratios),
            "largest": max(ratios),
        }
    return rows


def main() -> None:
    """Measure, print the table and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--matrix", type=int, default=192, help="pixels of a slice's side (default %(default)s)")
    parser.add_argument("--slices", type=int, default=64)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "serving.json")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        size = {"matrix": args.matrix, "slices": args.slices}
        write_phantom_cohort(str(folder / "cohort"), cases=3, layout="msd", seed=1, workers=1, progress=False, **size)
        images, clinical = folder / "cohort" / "imagesTr", folder / "cohort" / "clinical.csv"
        image = sorted(images.glob("*.nii.gz"))[0]
        own = own_inference(image, clinical, folder)
        case = image.name.removesuffix(".nii.gz")
        with Server(images, clinical, folder) as address:
            times = measure(address, own, case, folder / "cohort" / "labelsTr" / image.name, args.rounds)
    rows = table(times)
    own_seconds = statistics.median(times["own"])
    settings = size | {"rounds": args.rounds, "threads": torch.get_num_threads(), "torch": torch.__version__}
    settings |= {"machine": platform.machine(), "system": platform.system()}
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps({"settings": settings, "own": own_seconds, "rows": rows}, indent=2) + "\n")
    print(f"The bundle's own inference of {args.matrix} x {args.matrix} x {args.slices} voxels: {own_seconds:.2f} s\n")
    print("| request | seconds | ratio to the inference | smallest and largest |\n|---|---|---|---|")
    for name, row in rows.items():
        spread = f"{row['smallest']:.2f} to {row['largest']:.2f}"
        print(f"| {ROWS[name]} | {row['seconds']:.3f} | {row['ratio']:.2f} | {spread} |")


if __name__ == "__main__":
    main()
