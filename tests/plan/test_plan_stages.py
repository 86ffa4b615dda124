import pytest
from monai.bundle import ConfigParser
from plan_support import fingerprint_of, geometry
from scripts.compare.running import merged
from scripts.plan.geometry import plan_grid
from scripts.plan.overlay import IMAGE_ONLY
from scripts.plan.stages import STRIDES, UPSAMPLING, accepted, build, network_overlays, plan_dims, plan_stages

THREE = {"labels": ["background", "a"], "spatial_dims": 3} | IMAGE_ONLY


def grid_of(shape, spacing):
    return plan_grid(fingerprint_of([geometry(shape, spacing)] * 3))


CUBE = grid_of((100, 100, 100), (1.1, 1.1, 1.1))
FLAT = grid_of((216, 256, 10), (1.4, 1.4, 10.0))


def test_networks_are_named_as_elsewhere(tmp_path):
    mine = tmp_path / "mine.yaml"
    mine.write_text("dropout: 0\n")
    assert network_overlays("unet") == network_overlays("network_unet") == ["network_unet"]
    assert network_overlays("base") == []
    assert network_overlays(f"unet+{mine}") == ["network_unet", str(mine)]
    with pytest.raises(ValueError, match="no overlay 'network_unit'"):
        network_overlays("unit")


def test_divisors_are_those_of_the_network():
    assert plan_stages(["network_unet"], THREE, CUBE).divisor == (16, 16, 16)
    assert plan_stages(["network_swin_next_tiny"], THREE, FLAT).divisor == (16, 16, 16)
    assert "no strides to set" in plan_stages(["network_swin_next_tiny"], THREE, FLAT).reason
    two = THREE | {"spatial_dims": 2}
    assert plan_stages(["network_unet"], two, FLAT) == plan_stages(["network_unet"], two, CUBE)
    assert plan_stages(["network_unet"], two, FLAT).divisor == (16, 16)


@pytest.mark.parametrize(("network", "divisor"), [("network_unet", (16, 16, 2)), ("network_dynunet", (32, 32, 2))])
def test_thick_slices_are_halved_late(network, divisor):
    stages = plan_stages([network], THREE, FLAT)
    assert stages.divisor == divisor
    steps = [stride[2] for stride in stages.overrides[STRIDES] if stride[0] == 2]
    assert steps[:2] == [1, 1]  # 10 mm against 1.4, then 2.8 mm
    assert steps[2] == 2  # against 5.6 mm
    assert set(steps[3:]) == {1}  # 5 slices are left
    if UPSAMPLING in stages.overrides:
        assert stages.overrides[UPSAMPLING] == stages.overrides[STRIDES][1:]


def test_a_network_with_other_strides_takes_the_slices_of_the_data():
    stages = plan_stages(["network_unet"], THREE, FLAT)
    network = build(merged(["network_unet"], THREE | stages.overrides), "meta").eval()
    image = ConfigParser({"x": "$torch.empty(1, 1, 32, 32, 10, device='meta')", "imports": ["$import torch"]})
    assert network(image.get_parsed_content("x")).shape == (1, 2, 32, 32, 10)


def test_slices_or_volumes():
    assert plan_dims(["network_utnet"], FLAT, None).value == 2
    assert plan_dims(["network_unet"], FLAT, None).value == 3
    assert plan_dims(["network_unet"], FLAT, 2).value == 2
    assert plan_dims(["network_unet"], grid_of((200, 200, 3), (1.1, 1.1, 8.0)), None).value == 2
    with pytest.raises(ValueError, match="dimensions is 4"):
        plan_dims(["network_unet"], FLAT, 4)


def test_networks_of_a_fixed_size_choose_among_patches():
    two = THREE | {"spatial_dims": 2}
    assert accepted([[64, 64], [224, 224], [256, 256]], ["network_swin_unet"], two) == [[224, 224]]
    assert accepted([[64, 64], [224, 224]], ["network_unet"], two) == [[64, 64], [224, 224]]
    with pytest.raises(ValueError, match="none of the patches"):
        accepted([[64, 64]], ["network_swin_unet"], two)
