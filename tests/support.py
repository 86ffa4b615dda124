"""What several test modules share: small images, and small configurations of the bundle."""

import json
import os
from pathlib import Path

import nibabel as nib
import numpy as np

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = ROOT / "bundle" / "configs"
REAL_DATA = Path(os.environ.get("REAL_DATA_DIR", ROOT.parent / "shared" / "data"))


def write_nifti(path, array, affine=None):
    """Write an array as NIfTI and return the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, np.eye(4) if affine is None else np.asarray(affine, float)), path)
    return path


def ball_dataset(folder, n=10, size=24):
    """A prepared dataset of bright balls in noise, which a tiny network learns within seconds."""
    cases = []
    grid = np.stack(np.meshgrid(*[np.arange(size)] * 3, indexing="ij"))
    for i in range(n):
        rng = np.random.default_rng(i)
        centre, radius = rng.uniform(8, size - 8, 3), rng.uniform(5, 7)
        mask = np.sqrt(((grid - centre[:, None, None, None]) ** 2).sum(0)) < radius
        image = (100.0 * mask + rng.normal(0, 20, mask.shape)).astype(np.float32)
        name = f"ball_{i:02d}.nii.gz"
        affine = np.diag([-2.0, 2.0, 2.0, 1.0])
        write_nifti(folder / "imagesTr" / name, image, affine)
        write_nifti(folder / "labelsTr" / name, mask.astype(np.uint8), affine)
        cases.append({"image": f"./imagesTr/{name}", "label": f"./labelsTr/{name}", "fold": i % 5})
    (folder / "dataset.json").write_text(json.dumps({"labels": {"0": "background", "1": "ball"}, "training": cases}))
    rows = "".join(f"ball_{i:02d},{50 + i},{1 + i % 2}\n" for i in range(n))
    (folder / "clinical.csv").write_text("TCIA_ID,age,Sex\n" + rows)
    return folder


def tiny_overlay(folder):
    """An overlay for `ball_dataset`: a Swin-NeXt of two stages that trains in a second an epoch."""
    path = folder / "tiny.yaml"
    path.write_text(TINY)
    return path


TINY = """
clinical_columns: [age, Sex]
labels: [background, ball]
spacing: [2.0, 2.0, 2.0]
patch_size: [24, 24, 24]
intensity: {_target_: NormalizeIntensityd, keys: image}
class_ratios: [1, 1]
bottleneck_channels: 16
network_def:
  _target_: scripts.networks.YNet
  deep_supervision: '@deep_supervision'
  dropout: 0.0
  encoder:
    _target_: scripts.networks.SwinEncoder
    spatial_dims: '@spatial_dims'
    in_channels: '@in_channels'
    feature_size: 4
    depths: [2, 2]
    num_heads: [1, 2]
    window_size: 3
  fusion: '@fusion_def'
  decoder:
    _target_: scripts.networks.MedNeXtDecoder
    spatial_dims: '@spatial_dims'
    channels: [4, 4, 8, 16]
    out_channels: '@out_channels'
    blocks: 1
    deep_supervision: '@deep_supervision'
learning_rate: 0.01
warmup_epochs: 1
ema_decay: 0.9
num_workers: 0
"""
