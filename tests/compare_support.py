"""Run folders as training and evaluation leave them, with scores that a test chooses."""

import json

import pandas as pd
import yaml

CLASSES = ("liver", "tumour")


def write_run(folder, scores, *, seed=0, command="nny train", patients=None, groups=None, config=None, note=None):
    """A finished run whose Dice of each case and class is given: ``{case: (liver, tumour)}``."""
    evaluation = folder / "evaluation"
    evaluation.mkdir(parents=True)
    rows = [
        {"case_id": case, "class": name, "dice": dice, "iou": dice / 2, "hd95": 10 * (1 - dice), "surface_dice": dice}
        for case, values in scores.items()
        for name, dice in zip(CLASSES, values, strict=True)
    ]
    pd.DataFrame(rows).to_csv(evaluation / "per_case.csv", index=False)
    (evaluation / "summary.json").write_text(json.dumps({"settings": {"spacing_known": True}}))
    held = [
        {"case_id": case, "patient_id": (patients or {}).get(case, case), "group": (groups or {}).get(case, "")}
        for case in scores
    ]
    trained = [{"case_id": f"t{i}", "patient_id": f"t{i}"} for i in range(8)]
    (folder / "datalist.json").write_text(json.dumps({"training": trained, "validation": held}))
    (folder / "config.yaml").write_text(
        yaml.safe_dump({"seed": seed, "batch_size": 2, "learning_rate": 0.001} | (config or {}))
    )
    (folder / "versions.json").write_text(json.dumps({"seed": seed, "command": command, "parameters": 2_500_000}))
    (folder / "log.csv").write_text("epoch,train_loss,val_dice,lr,seconds\n1,1.0,,0.001,8\n2,0.5,0.7,0.001,20\n")
    if note:
        (folder / "compare.json").write_text(json.dumps(note))
    return folder
