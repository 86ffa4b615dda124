import re

import numpy as np
import pandas as pd
import pytest
import yaml
from monai.bundle import ConfigParser
from scripts import workflows
from scripts.plan.command import plan
from support import CONFIGS, ball_dataset, write_nifti


@pytest.fixture(scope="module")
def planned(tmp_path_factory, tiny_network):
    """A plan that was made while the held-out cases could not be read."""
    folder = tmp_path_factory.mktemp("plan")
    data = ball_dataset(folder / "data")
    held = [data / sub / f"ball_{i:02d}.nii.gz" for sub in ("imagesTr", "labelsTr") for i in (0, 5)]
    content = {path: path.read_bytes() for path in held}
    for path in held:
        path.write_bytes(b"not an image")
    path = plan(
        str(data), network=str(tiny_network), memory=20, seconds=0, output=str(folder / "dataset_ball.yaml"),
        workers=1, progress=False,
    )  # fmt: skip
    for file, text in content.items():
        file.write_bytes(text)
    return data, folder / "dataset_ball.yaml", path


def test_the_overlay_says_what_the_data_says(planned):
    _, path, returned = planned
    assert returned == str(path)
    found = yaml.safe_load(path.read_text())
    assert found["labels"] == ["background", "ball"]
    assert found["spacing"] == [2.0, 2.0, 2.0]
    assert found["spacing_known"] is True
    assert found["patch_size"] == [24, 24, 24]  # all of a volume, as memory allows
    assert found["intensity"] == {"_target_": "NormalizeIntensityd", "keys": "image"}
    assert found["keep_largest"] == [1]
    assert found["class_ratios"] == [1, 1]
    assert found["flip_axes"] == [0, 1, 2]
    assert found["augmented_axes"] == 3
    assert found["clinical_schema"] is None


def test_every_value_has_its_reason(planned):
    lines = planned[1].read_text().splitlines()
    decided = lines[: next(i for i, line in enumerate(lines) if line.startswith("# Images alone"))]
    for i, line in enumerate(decided):
        if re.match(r"\w+:", line):
            assert "  # " in line or decided[i - 1].startswith("# "), line
    assert all(len(line) <= 120 for line in lines)
    assert "8 training cases; the 2 of fold 0 were not opened" in " ".join(lines[:3])
    assert re.search(r"takes \d+\.\d\d GB and \d+\.\d\d s \(measured\)", " ".join(lines).replace(" # ", " "))


def test_every_id_exists(planned):
    known = ConfigParser.load_config_files([str(CONFIGS / "inference.yaml"), str(CONFIGS / "train.yaml")])
    assert not set(yaml.safe_load(planned[1].read_text())) - set(known)


def test_the_page_holds_everything_and_loads_nothing(planned):
    html = planned[1].with_suffix(".html").read_text()
    assert html.count("data:image/png;base64,") >= 6
    assert not re.search(r'(src|href)="(?!data:)', html)
    for words in ("What was decided", "patch_size", "ball_01", "are one piece", "8 training cases"):
        assert words in html
    assert "ball_05" not in html


def test_the_plan_trains(planned, tiny_network, tmp_path):
    data, path, _ = planned
    workflows.train(str(data), str(tmp_path), [str(tiny_network), str(path)], epochs=1, val_interval=1)
    log = pd.read_csv(tmp_path / "log.csv")
    assert len(log) == 1
    assert log["train_loss"].notna().all()
    assert (tmp_path / "model.pt").is_file()


def test_mistakes_are_refused_before_anything_is_read(planned, tmp_path):
    data = str(planned[0])
    with pytest.raises(ValueError, match="no overlay 'network_unit'.*network_unet"):
        plan(data, network="unit", progress=False)
    with pytest.raises(ValueError, match="expected the name of a YAML file"):
        plan(data, output=str(tmp_path), progress=False)
    with pytest.raises(ValueError, match="memory is 'much'"):
        plan(data, memory="much", progress=False)
    with pytest.raises(FileNotFoundError, match="nny prepare"):
        plan(str(tmp_path), progress=False)


def test_nothing_is_written_when_the_data_is_unusable(tmp_path, tiny_network):
    data = ball_dataset(tmp_path / "data", 5)
    write_nifti(data / "labelsTr" / "ball_01.nii.gz", np.full((24, 24, 24), 7, "uint8"))
    output = tmp_path / "plans" / "dataset_ball.yaml"
    with pytest.raises(ValueError, match="ball_01.nii.gz"):
        plan(str(data), network=str(tiny_network), memory=20, output=str(output), workers=1, progress=False)
    assert not output.exists()
