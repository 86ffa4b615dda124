"""What tests of the server's endpoints share: a server on four balls, and the requests of a client."""

import json
from contextlib import contextmanager

import nibabel as nib
import numpy as np
from app_support import client, write_run
from support import ROOT


@contextmanager
def ball_server(studies, folder):
    """Two models on a dataset of balls: ``tiny`` with random weights, ``fresh`` without any."""
    table = studies / "clinical.csv"
    bundle = f"tiny={write_run(folder / 'tiny', table=table)}"
    bundle += f",fresh={ROOT / 'bundle'}+{folder / 'tiny' / 'tiny.yaml'}"
    with client(studies / "imagesTr", folder, bundle=bundle, clinical=table) as made:
        yield made


def refused(answer, status, *words):
    assert answer.status_code == status, answer.text
    for word in words:
        assert word in answer.json()["detail"], answer.text


def infer(server, params=None, image="ball_00", model="tiny", **query):
    return server.post(f"/infer/{model}", params={"image": image, **query}, data={"params": json.dumps(params or {})})


def submit(server, voxels, image="ball_00", tag="final", name="label.nii.gz", affine=None, params="{}"):
    content = nib.Nifti1Image(voxels, np.diag([-2.0, 2.0, 2.0, 1.0]) if affine is None else affine).to_bytes()
    name = name.replace(".gz", "")
    files = {"label": (name, content)}
    return server.put("/datastore/label", params={"image": image, "tag": tag}, data={"params": params}, files=files)


def ball(value=1):
    voxels = np.zeros((24, 24, 24), np.uint8)
    voxels[8:16, 8:16, 8:16] = value
    return voxels
