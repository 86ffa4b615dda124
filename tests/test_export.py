"""Exported forms compute what their network does, at any batch size, and say so when they cannot."""

import re
import sys
import zipfile

import pytest
import torch
from export_support import DEMO, assert_same, dice_of_demo, examples
from monai.bundle import ckpt_export
from monai.data import load_net_with_metadata
from networks.test_contract import build
from scripts.export import command, example_inputs, export, read_source, save_onnx, save_torchscript, to_torchscript
from scripts.export.source import describe
from scripts.exported import Autocast, OnnxNetwork, TensorRTNetwork, TorchScriptNetwork
from support import CONFIGS, ROOT

KINDS = {"torchscript": TorchScriptNetwork, "onnx": OnnxNetwork}


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def network():
    return build("mednext_s", "cross_attention").eval()


@pytest.fixture(scope="module")
def files(network, tmp_path_factory):
    """The same network in both forms."""
    folder = tmp_path_factory.mktemp("exported")
    paths = {"torchscript": folder / "model.ts", "onnx": folder / "model.onnx"}
    save_torchscript(network, examples("mednext_s", network), paths["torchscript"])
    save_onnx(network, examples("mednext_s", network), paths["onnx"])
    return paths


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """The demo network in TorchScript, by the command."""
    return export(str(DEMO), str(tmp_path_factory.mktemp("demo") / "model.ts"))


@pytest.mark.parametrize("form", KINDS)
def test_file_computes_what_the_network_does(form, files, network):
    assert_same(KINDS[form](files[form]), "mednext_s", network)


@pytest.mark.parametrize("form", KINDS)
def test_values_change_the_answer(form, files, network):
    exported, (x, clinical) = KINDS[form](files[form]), examples("mednext_s", network)
    assert not torch.allclose(exported(x, clinical), exported(x), atol=1e-4)


def test_onnx_names_its_batch_and_no_folder_of_this_machine(files):
    import onnx

    model = onnx.load(files["onnx"])
    shapes = {value.name: value.type.tensor_type.shape.dim for value in (*model.graph.input, *model.graph.output)}
    assert list(shapes) == ["image", "clinical", "logits"]
    assert {dims[0].dim_param for dims in shapes.values()} == {"batch"}
    assert str(ROOT).encode() not in files["onnx"].read_bytes()


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("fusion", ["none", "cross_attention"])
@pytest.mark.parametrize("name", ["swin_next_small", "transbts", "transunet"])
def test_representatives_trace(name, fusion):
    network = build(name, fusion).eval()
    traced = to_torchscript(network, examples(name, network))
    with torch.inference_mode():
        for batch in (1, 3):
            inputs = examples(name, network, batch)
            torch.testing.assert_close(traced(*inputs), network(*inputs), atol=2e-5, rtol=1e-4)
    for module in traced.modules():  # a device in the graph would tie it to the machine that made it
        if module._c._has_method("forward"):
            assert "torch.device" not in module.code


def test_same_network_same_bytes_and_no_path_of_this_machine(files, network, tmp_path):
    save_torchscript(network, examples("mednext_s", network), tmp_path / "again.ts")
    assert (tmp_path / "again.ts").read_bytes() == files["torchscript"].read_bytes()
    with zipfile.ZipFile(files["torchscript"]) as archive:
        assert not any(str(ROOT).encode() in archive.read(name) for name in archive.namelist())
    assert [path.name for path in tmp_path.iterdir()] == ["again.ts"]


def test_demo_file_is_readable_by_monai_and_takes_the_run_s_clinical_vector(demo):
    trained = read_source(DEMO)
    exported, metadata, extra = load_net_with_metadata(demo, more_extra_files=["inputs.json"])
    assert metadata == {}
    assert b'"image": [1, 48, 48, 32], "clinical": 32' in extra["inputs.json"]
    inputs = example_inputs(trained.network, trained.window)
    with torch.inference_mode():
        torch.testing.assert_close(exported(*inputs), trained.network(*inputs), atol=2e-5, rtol=1e-4)


def test_monai_s_ckpt_export_serves_the_image_alone(tmp_path):
    ckpt_export(
        net_id="network_def",
        filepath=str(tmp_path / "model.ts"),
        ckpt_file=str(DEMO / "model.pt"),
        meta_file=str(CONFIGS / "metadata.json"),
        config_file=str(DEMO / "inference.yaml"),
        use_trace=True,
        input_shape=[1, 1, 48, 48, 32],
        converter_kwargs={"check_trace": False},
    )
    trained = read_source(DEMO)
    x, clinical = example_inputs(trained.network, trained.window)
    exported = TorchScriptNetwork(tmp_path / "model.ts")
    with torch.inference_mode():
        expected = trained.network(x)
        torch.testing.assert_close(exported(x), expected, atol=2e-5, rtol=1e-4)
        torch.testing.assert_close(exported(x, clinical), expected, atol=2e-5, rtol=1e-4)


def test_overlay_segments_a_phantom_to_the_same_mask(demo, tmp_path):
    assert min(dice_of_demo("torchscript", demo, tmp_path)) >= 0.999


def test_autocast_gives_float32_near_the_network(network):
    x, clinical = examples("mednext_s", network)
    with torch.inference_mode():
        logits, expected = Autocast(network)(x, clinical), network(x, clinical)
    assert logits.dtype == torch.float32
    assert not torch.equal(logits, expected)
    torch.testing.assert_close(logits, expected, atol=0.05, rtol=0.05)


class TestRefusals:
    @pytest.mark.parametrize("form", KINDS)
    def test_another_window(self, form, files):
        with pytest.raises(ValueError, match=r"images of shape \(batch, 1, 8, 4, 4\), got \(1, 1, 8, 8, 4\)"):
            KINDS[form](files[form])(torch.zeros(1, 1, 8, 8, 4))

    @pytest.mark.parametrize("form", KINDS)
    @pytest.mark.parametrize("shape", [(3, 5), (2, 2), (2,)])
    def test_another_clinical_vector(self, form, shape, files):
        with pytest.raises(ValueError, match=r"clinical variables of shape \(3, 2\)"):
            KINDS[form](files[form])(torch.zeros(3, 1, 8, 4, 4), torch.zeros(shape))

    @pytest.mark.parametrize("form", KINDS)
    def test_missing_and_broken_files(self, form, tmp_path):
        broken = tmp_path / f"broken{KINDS[form].suffix}"
        with pytest.raises(FileNotFoundError, match="Write it with `nny export`"):
            KINDS[form](broken)
        broken.write_bytes(b"PK\x03\x04 not a network")
        with pytest.raises(ValueError, match=r"broken\.\w+ is not (TorchScript|ONNX)"):
            KINDS[form](broken)
        with pytest.raises(ValueError, match=r"picture\.png is not named \*\."):
            KINDS[form](tmp_path / "picture.png")

    def test_file_that_does_not_say_what_it_takes(self, network, tmp_path):
        torch.jit.save(to_torchscript(network, examples("mednext_s", network)), str(tmp_path / "model.ts"))
        with pytest.raises(ValueError, match="takes more than an image, but does not say what"):
            TorchScriptNetwork(tmp_path / "model.ts")

    @pytest.mark.skipif(torch.cuda.is_available(), reason="TensorRT is refused where there is no GPU")
    def test_tensorrt_without_a_gpu(self, files, tmp_path):
        with pytest.raises(ValueError, match="TensorRT needs an NVIDIA GPU"):
            export(str(DEMO), str(tmp_path / "model_trt.ts"), "trt")
        with pytest.raises(ValueError, match="TensorRT needs an NVIDIA GPU"):
            TensorRTNetwork(files["torchscript"])
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.skipif(torch.cuda.is_available(), reason="onnxruntime may have its GPU")
    def test_onnx_on_a_gpu_that_is_not_there(self, files):
        with pytest.raises(ValueError, match="This onnxruntime cannot use cuda"):
            OnnxNetwork(files["onnx"], "cuda")

    def test_unknown_form_and_source(self, tmp_path):
        with pytest.raises(ValueError, match="no form 'onx'.*onnx.*Known: torchscript, onnx, trt"):
            export(str(DEMO), str(tmp_path / "x"), "onx")
        with pytest.raises(FileNotFoundError, match=r"holds neither inference\.yaml \+ model\.pt nor configs"):
            export(str(tmp_path))
        (tmp_path / "bundle.zip").write_bytes(b"")
        with pytest.raises(FileNotFoundError, match="unpack the zip first"):
            export(str(tmp_path / "bundle.zip"))

    def test_form_that_computes_something_else_is_not_kept(self, tmp_path, monkeypatch):
        name, _, check = command.FORMS["torchscript"]

        def write(trained, path):
            with torch.no_grad():
                other = read_source(DEMO).network
                other.decoder.heads[0].bias.add_(torch.arange(5.0))  # no norm hides it
                inputs = example_inputs(other, trained.window)
                extra = {"inputs.json": describe(inputs)}
                torch.jit.save(to_torchscript(other, inputs), str(path), _extra_files=extra)

        monkeypatch.setitem(command.FORMS, "torchscript", (name, write, check))
        with pytest.raises(ValueError, match="does not compute what its network does"):
            export(str(DEMO), str(tmp_path / "model.ts"))
        assert list(tmp_path.iterdir()) == []


def test_every_overlay_is_small_and_names_what_exists():
    for path in CONFIGS.glob("inference_*.yaml"):
        assert len(path.read_text().splitlines()) <= 20
        for target in re.findall(r"scripts\.exported\.(\w+)", path.read_text()):
            assert hasattr(sys.modules["scripts.exported"], target)
