"""What the tests of the annotation app share: a small run whose weights are random, and images to segment."""

import nibabel as nib
import numpy as np
import torch
import yaml
from monai.bundle import ConfigParser
from scripts.clinical import ClinicalTable
from scripts.prepare.phantom import write_phantom_cohort
from scripts.runs import inference_config
from support import CONFIGS, tiny_overlay


def write_run(folder, *overlays, table=None):
    """A finished run; random weights are large enough that both classes and the clinical variables show in the mask."""
    folder.mkdir(parents=True)
    files = [CONFIGS / "inference.yaml", tiny_overlay(folder), *overlays]
    config = ConfigParser.load_config_files([str(file) for file in files])
    config["spacing"] = [8.0, 8.0, 8.0]
    (folder / "inference.yaml").write_text(yaml.safe_dump(inference_config(config), sort_keys=False))
    parser = ConfigParser()
    parser.read_config(str(folder / "inference.yaml"))
    if table is not None:
        fitted = ClinicalTable(path=table, schema=parser.get_parsed_content("clinical_schema"))
        fitted.fit(fitted.patient_ids)
        fitted.save(folder / "clinical.json")
    network = parser.get_parsed_content("network")
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for value in network.parameters():
            value.copy_(torch.randn(value.shape, generator=generator))
    torch.save(network.state_dict(), folder / "model.pt")
    return folder


def write_studies(folder):
    """Three phantoms with their table; the images are stored in other axes than the network's, one of them tilted."""
    write_phantom_cohort(str(folder), cases=3, layout="msd", matrix=48, slices=20, workers=1, progress=False)
    images = folder / "imagesTr"
    turned = nib.load(images / "HCC_002.nii.gz").as_reoriented([[2, -1], [0, 1], [1, 1]])
    nib.save(turned, images / "HCC_002.nii.gz")
    tilted = nib.load(images / "HCC_003.nii.gz")
    shear = np.eye(4)
    shear[1, 2] = 0.2
    nib.save(nib.Nifti1Image(np.asarray(tilted.dataobj), tilted.affine @ shear), images / "HCC_003.nii.gz")
    return folder
