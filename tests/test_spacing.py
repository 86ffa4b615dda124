"""Resampling beside texts."""

import torch
from monai.data import MetaTensor
from monai.transforms import Spacingd as MonaiSpacingd
from scripts.spacing import Spacingd


def test_result_is_that_of_monai_and_texts_stay():
    image = MetaTensor(torch.rand(1, 8, 8, 4), meta={"filename_or_obj": "scan.nii.gz"})
    settings = {"keys": "image", "pixdim": (2.0, 2.0, 1.0), "mode": "bilinear"}
    case = {"image": image, "image_path": "/scans/scan.nii.gz", "image_meta_dict": {}, "device": "cpu"}
    done = Spacingd(**settings)(case)
    expected = MonaiSpacingd(**settings)({"image": image})["image"]
    torch.testing.assert_close(done["image"].as_tensor(), expected.as_tensor())
    assert done["image_path"] == "/scans/scan.nii.gz"
    assert done["device"] == "cpu"
    assert done["image_meta_dict"]["filename_or_obj"] == "scan.nii.gz"  # MONAI keeps metadata up to date
