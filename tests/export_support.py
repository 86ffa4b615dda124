"""What the tests of exported forms share: inputs, the comparison with the network, and a phantom segmented twice."""

import math
import subprocess
import sys

import nibabel as nib
import numpy as np
import torch
from networks.test_contract import image, vector
from scripts import workflows
from support import CONFIGS

DEMO = workflows.DEMO_RUN


def examples(name, network, batch=2):
    """Image, and clinical variables where the network takes them."""
    return (image(name, batch), *([vector(network, batch)] if hasattr(network.fusion, "clinical") else []))


def assert_same(exported, name, network):
    """Batches of one and three, one clinical row for each or for all, some or nothing known."""
    with torch.inference_mode():
        for batch in (1, 3):
            x, *clinical = examples(name, network, batch)
            torch.testing.assert_close(exported(x), network(x), atol=2e-5, rtol=1e-4)
            for rows in (v for full in clinical for v in (full, full[:1], torch.full_like(full, math.nan))):
                torch.testing.assert_close(exported(x, rows), network(x, rows), atol=2e-5, rtol=1e-4)


def dice_of_demo(form, file, folder):
    """Dice of each class between masks of a phantom: the demo network, and its exported form by MONAI's command."""
    from scripts.prepare.phantom import write_phantom_cohort

    data = folder / "data"
    write_phantom_cohort(str(data), cases=1, layout="msd", seed=4321, matrix=64, slices=28, workers=1, progress=False)
    images, table = str(data / "imagesTr"), str(data / "clinical.csv")
    workflows.infer(images, str(folder / "eager"), clinical=table)
    # the first file says where the bundle is, for its scripts
    files = [str(CONFIGS / "inference.yaml"), str(DEMO / "inference.yaml"), str(CONFIGS / f"inference_{form}.yaml")]
    command = [sys.executable, "-m", "monai.bundle", "run", "inference", "--config_file", str(files)]
    command += ["--exported", str(file), "--dataset_dir", images]
    command += ["--output_dir", str(folder / "exported"), "--clinical_table_path", table]
    command += ["--clinical_statistics", str(DEMO / "clinical.json")]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-2000:]
    eager, exported = (nib.load(folder / name / "HCC_001_seg.nii.gz") for name in ("eager", "exported"))
    np.testing.assert_array_equal(eager.affine, exported.affine)
    a, b = (np.asarray(mask.dataobj) for mask in (eager, exported))
    return [2 * ((a == k) & (b == k)).sum() / ((a == k).sum() + (b == k).sum()) for k in range(5)]
