"""What the tests of the annotation app share: a small run whose weights are random, and images to segment."""

from contextlib import contextmanager

import nibabel as nib
import numpy as np
import torch
import yaml
from fastapi.testclient import TestClient
from monai.bundle import ConfigParser
from scripts.acquisition import CaseScores
from scripts.clinical import ClinicalTable
from scripts.prepare.phantom import write_phantom_cohort
from scripts.runs import inference_config
from support import CONFIGS, ROOT, ball_dataset, tiny_overlay

from monailabel_app.lib.infers.bundle import BundleInfer
from monailabel_app.lib.models import find_source
from monailabel_app.lib.versions import Versions
from monailabel_app.main import NNYApp


def write_run(folder, *overlays, table=None, spacing=8.0, seed=3):
    """A finished run; random weights are large enough that both classes and the clinical variables show in the mask."""
    folder.mkdir(parents=True)
    files = [CONFIGS / "inference.yaml", tiny_overlay(folder), *overlays]
    config = ConfigParser.load_config_files([str(file) for file in files])
    config["spacing"] = [spacing] * 3
    (folder / "inference.yaml").write_text(yaml.safe_dump(inference_config(config), sort_keys=False))
    parser = ConfigParser()
    parser.read_config(str(folder / "inference.yaml"))
    if table is not None:
        fitted = ClinicalTable(path=table, schema=parser.get_parsed_content("clinical_schema"))
        fitted.fit(fitted.patient_ids)
        fitted.save(folder / "clinical.json")
    network = parser.get_parsed_content("network")
    generator = torch.Generator().manual_seed(seed)
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


def write_balls(folder, n=6):
    """Studies of balls that a tiny network learns in seconds: the images' folder; the labels are beside it."""
    return ball_dataset(folder, n) / "imagesTr"


def scored(value):
    """Scores of a case, told apart from others' by a value."""
    return CaseScores(
        scores={"entropy": value, "epistemic": value / 2},
        class_entropy=np.array([value, 0.5], np.float32),
        class_volume=np.array([0.1, 0.2], np.float32),
        features=np.array([value, 1.0, 2.0], np.float32),
        clinical=np.array([np.nan, 1.0], np.float32),
    )


def app(studies, **conf):
    """The app without its server."""
    return NNYApp(str(ROOT / "monailabel_app"), str(studies), {key: str(value) for key, value in conf.items()})


def task(run, clinical=None, folder=None):
    """A model as an inference task, outside an app."""
    versions = Versions(folder or run / "versions", find_source(run.name, str(run), run))
    return BundleInfer(versions=versions, clinical=clinical)


@contextmanager
def client(studies, folder, **conf):
    """MONAI Label's own application, as `monailabel start_server` runs it, with our app in it."""
    from monailabel.config import settings

    settings.MONAI_LABEL_APP_DIR = str(ROOT / "monailabel_app")
    settings.MONAI_LABEL_STUDIES = str(studies)
    settings.MONAI_LABEL_SESSION_PATH = str(folder / "sessions")
    conf = {"output": folder / "out"} | conf
    settings.MONAI_LABEL_APP_CONF = {key: str(value) for key, value in conf.items()}
    from monailabel.app import app
    from monailabel.interfaces.utils.app import clear_cache

    clear_cache()
    with TestClient(app, base_url="http://127.0.0.1:8000", client=("127.0.0.1", 50000)) as made:
        yield made
    clear_cache()
