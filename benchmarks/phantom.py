"""How well does a phantom's clinical row tell whether its indeterminate nodules are tumour?

Fits a logistic regression on the clinical vectors that the networks get (unknown values at the mean) of synthetic
patients and tests it on new ones: complete, and with half of the variables removed. Run it with `make bench`, or alone:

    OMP_NUM_THREADS=1 PYTHONPATH=bundle python benchmarks/phantom.py
"""

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np
from scripts.clinical import HCC_TACE_SCHEMA, ClinicalSchema, ClinicalTable
from scripts.prepare.phantom_clinical import MALIGNANT_RATE, draw_row, write_spreadsheet
from sklearn.linear_model import LogisticRegression


def cohort(patients: int, train: int, seed: int) -> tuple[np.ndarray, np.ndarray, ClinicalSchema]:
    """Clinical vectors (patients, F), NaN where unknown, scaled on the first ``train``, and the truth (patients,)."""
    rng = np.random.default_rng(seed)
    malignant = rng.random(patients) < MALIGNANT_RATE
    rows = [draw_row(f"P{i}", rng, malignant=bool(t)) for i, t in enumerate(malignant)]
    schema = ClinicalSchema.from_yaml(HCC_TACE_SCHEMA, "pre_treatment")
    with tempfile.TemporaryDirectory() as folder:
        write_spreadsheet(path := Path(folder) / "clinical.xlsx", rows)
        table = ClinicalTable(path=path, schema=schema)
    table.fit(table.patient_ids[:train])
    return np.stack([table.vector(patient) for patient in table.patient_ids]), malignant, schema


def main() -> None:
    """Measure, print the table and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", type=int, default=1000, help="patients to learn from (default %(default)s)")
    parser.add_argument("--test", type=int, default=2000, help="new patients (default %(default)s)")
    parser.add_argument("--seeds", type=int, default=3, help="cohorts (default %(default)s)")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "phantom.json")
    args = parser.parse_args()
    scores: dict[str, list[float]] = {"complete": [], "half missing": [], "always tumour": []}
    for seed in range(args.seeds):
        vectors, truth, schema = cohort(args.train + args.test, args.train, seed)
        hidden = np.random.default_rng(seed).random((len(truth), max(schema.groups) + 1)) < 0.5  # whole variables
        half = np.where(hidden[:, schema.groups], np.nan, vectors)
        for name, x in (("complete", vectors), ("half missing", half)):
            known, new = np.split(np.nan_to_num(x), [args.train])  # 0 is the mean
            model = LogisticRegression(max_iter=3000).fit(known, truth[: args.train])
            scores[name].append(float(model.score(new, truth[args.train :])))
        scores["always tumour"].append(float(truth[args.train :].mean()))
    print("| clinical row | right, mean (range over cohorts) |\n|---|---|")
    for name, values in scores.items():
        print(f"| {name} | {np.mean(values):.1%} ({min(values):.1%}–{max(values):.1%}) |")
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps({"train": args.train, "test": args.test, "accuracy": scores}, indent=2) + "\n")


if __name__ == "__main__":
    main()
