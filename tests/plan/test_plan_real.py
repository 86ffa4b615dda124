"""On real data a plan arrives where the hand-made overlays are."""

import pytest
import yaml
from scripts.plan.classes import plan_components, plan_mirroring, plan_sampling
from scripts.plan.fingerprint import take_fingerprint
from scripts.plan.geometry import plan_grid
from scripts.plan.intensity import find_modality, plan_intensity
from support import CONFIGS, REAL_DATA

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module", params=["left_atrium", "acdc"])
def planned(request, tmp_path_factory):
    folder = REAL_DATA / request.param
    if not (folder / "dataset.json").is_file():
        pytest.skip(f"{folder} is not there; set REAL_DATA_DIR")
    store = tmp_path_factory.mktemp("store")
    data = take_fingerprint(folder, 0, store, workers=1, progress=False)
    return data, yaml.safe_load((CONFIGS / f"dataset_{request.param}.yaml").read_text())


def test_the_plan_is_near_the_hand_made_overlay(planned):
    data, hand = planned
    grid = plan_grid(data)
    assert list(data.labels) == hand["labels"]
    assert (list(grid.spacing) if grid.known else [-1, -1, -1]) == hand["spacing"]
    assert grid.known == hand.get("spacing_known", True)
    assert (2 if grid.thick else 3) == hand.get("augmented_axes", 3)
    assert plan_components(data).value == hand["keep_largest"]
    assert plan_sampling(data).value == hand["class_ratios"]
    assert "NormalizeIntensityd" in str(plan_intensity(data, find_modality(data))["intensity"].value)
    mirrored = plan_mirroring(data, grid, 3).value
    assert (0 in mirrored, 2 in mirrored) == ((True, True) if len(data.labels) == 2 else (False, False))
