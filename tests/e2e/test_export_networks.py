"""Every network in TorchScript and ONNX, with and without clinical variables, and the demo network through ONNX."""

import numpy as np
import pytest
from export_support import DEMO, assert_same, dice_of_demo, examples
from networks.test_contract import build
from networks.tiny import GRID, NETWORKS, TINY
from release_support import InThisProcess
from scripts.export import export, save_onnx, save_torchscript
from scripts.exported import OnnxNetwork, TorchScriptNetwork

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]
OTHERS = [pytest.param(name, marks=pytest.mark.matrix) for name in NETWORKS if name not in GRID]
FORMS = {"model.ts": (save_torchscript, TorchScriptNetwork), "model.onnx": (save_onnx, OnnxNetwork)}


@pytest.fixture(autouse=True)
def traced_in_this_process(monkeypatch):
    monkeypatch.setattr("scripts.export.torchscript.ProcessPoolExecutor", InThisProcess)


@pytest.mark.parametrize("file", FORMS)
@pytest.mark.parametrize("fusion", ["none", "cross_attention"])
@pytest.mark.parametrize("name", [*GRID, *OTHERS])
def test_every_network(name, fusion, file, tmp_path):
    save, load = FORMS[file]
    network = build(name, fusion).eval()
    save(network, examples(name, network), tmp_path / file)
    assert_same(load(tmp_path / file), name, network)


@pytest.mark.parametrize("fusion", ["add", "concat"])
@pytest.mark.parametrize("file", FORMS)
def test_other_fusions(file, fusion, tmp_path):
    save, load = FORMS[file]
    network = build("mednext_s", fusion).eval()
    save(network, examples("mednext_s", network), tmp_path / file)
    assert_same(load(tmp_path / file), "mednext_s", network)


@pytest.mark.parametrize("name", ["unet", "swin_next_small"])
def test_networks_for_planes(name, tmp_path):
    network = build(name, "cross_attention", {"/spatial_dims": 2, **TINY[name].planar}).eval()
    x, clinical = examples(name, network)
    inputs = (x[..., 0], clinical)
    for file, (save, load) in FORMS.items():
        save(network, inputs, tmp_path / file)
        found = load(tmp_path / file)(*inputs).detach()
        np.testing.assert_allclose(found, network(*inputs).detach(), atol=2e-5, rtol=1e-4)


def test_demo_by_onnx_segments_a_phantom_to_the_same_mask(tmp_path):
    file = export(str(DEMO), str(tmp_path / "model.onnx"), "onnx")
    assert min(dice_of_demo("onnx", file, tmp_path)) >= 0.999
