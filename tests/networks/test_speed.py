"""`accelerate`: same keys, same numbers, and torch's own operations wherever the fast ones have no place."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import pytest
import torch
from monai.data import MetaTensor
from scripts.networks import (
    EPABlock,
    MedNeXtDecoder,
    MedNeXtEncoder,
    SwinEncoder,
    UNETRDecoder,
    UNETRPPDecoder,
    UNETRPPEncoder,
    UTNetDecoder,
    UTNetEncoder,
    YNet,
)
from scripts.networks.speed import accelerate, conditions, plain
from scripts.networks.speed.blocks import FastBlock, FastDownBlock, FastUpBlock
from scripts.networks.speed.convolution import FastConv3d, Head3d, Stem
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

CHANNELS = [4, 6, 8]
ROUNDING = ("conv1.bias", "conv_ch.bias", "image_block.conv3.conv.weight")  # a norm leaves their gradients only that
BLOCK = partial(EPABlock, dropout=0.0)


def mednext(**changes) -> YNet:
    torch.manual_seed(0)
    options = {"channels": CHANNELS, "blocks": 1, **changes}
    network = YNet(
        encoder=MedNeXtEncoder(in_channels=1, **options),
        decoder=MedNeXtDecoder(out_channels=3, deep_supervision=True, **options),
        deep_supervision=True,
    )
    return accelerate(network)


def swin_unetr() -> YNet:
    torch.manual_seed(0)
    encoder = SwinEncoder(in_channels=1, feature_size=6, depths=[2], num_heads=[2], window_size=4, stem_channels=0)
    decoder = UNETRDecoder(channels=[1, 6, 12], out_channels=3, feature_size=6, blocks=[True, True, True])
    return accelerate(YNet(encoder=encoder, decoder=decoder))


def unetr_pp() -> YNet:
    torch.manual_seed(0)
    parts = {"img_size": 16, "channels": [4, 8, 8], "strides": [1, [2, 4, 4], [4, 8, 8]], "block": BLOCK}
    encoder = UNETRPPEncoder(in_channels=1, depths=[1, 1], projected=[4, 4], **parts)
    decoder = UNETRPPDecoder(out_channels=3, depth=1, projected=4, **parts)
    return accelerate(YNet(encoder=encoder, decoder=decoder))


def utnet() -> YNet:
    torch.manual_seed(0)
    options = {"reduce_size": 2, "num_heads": 2, "attn_drop": 0.0, "proj_drop": 0.0}
    encoder = UTNetEncoder(in_channels=1, feature_size=4, attention_levels=[1, 2], **options)
    decoder = UTNetDecoder(channels=[4, 8, 16, 32, 64], out_channels=3, attention_levels=[1, 2], **options)
    return accelerate(YNet(encoder=encoder, decoder=decoder))


@pytest.fixture(params=[mednext, swin_unetr, unetr_pp, utnet])
def network(request) -> YNet:
    return request.param()


@pytest.fixture
def image(request) -> torch.Tensor:
    """Volumes, or planes for UTNet."""
    planes = getattr(request.node, "callspec", None) and request.node.callspec.params.get("network") is utnet
    shape = (2, 1, 32, 32) if planes else (1, 1, 16, 16, 16)
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


@contextmanager
def torchs_own() -> Iterator[None]:
    """Keep the fast paths out."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(conditions, "_machine_fits", lambda: False)
        yield


def run(network, image):
    """Outputs and gradients of a network."""
    network.zero_grad(set_to_none=True)
    outputs = network(image)
    outputs = outputs if isinstance(outputs, list) else [outputs]
    sum(y.square().mean() for y in outputs).backward()
    named = network.named_parameters()  # unused heads have no gradient
    gradients = {name: p.grad for name, p in named if p.grad is not None and not name.endswith(ROUNDING)}
    return [y.detach() for y in outputs], gradients


def plainly(network, image):
    """`run` on torch's own operations."""
    with torchs_own():
        return run(network, image)


def assert_equal(result, expected):
    for ours, theirs in zip(result[0], expected[0], strict=True):
        assert (ours - theirs).norm() <= 2e-5 * theirs.norm()
    assert result[1].keys() == expected[1].keys()
    total = torch.stack([theirs.norm() for theirs in expected[1].values()]).norm()
    for name, theirs in expected[1].items():
        assert (result[1][name] - theirs).norm() <= 2e-5 * theirs.norm() + 1e-6 * total, name


def test_numbers(network, image):
    assert_equal(run(network, image), plainly(network, image))
    assert_equal(run(network.eval(), image), plainly(network, image))
    with torch.inference_mode():
        assert torch.equal(network(image), network(image))


def test_parts_become_their_subclasses_and_keys_stay():
    conv = nn.Sequential(nn.Conv3d(2, 2, 3), nn.ConvTranspose3d(2, 2, 3))
    keys = list(conv.state_dict())
    assert accelerate(conv) is conv
    assert list(conv.state_dict()) == keys
    types = [type(module) for module in mednext().modules()]
    for cls in (FastBlock, FastDownBlock, FastUpBlock, Stem, Head3d, FastConv3d):
        assert cls in types
    assert not any(cls in (nn.Conv3d, nn.ConvTranspose3d) for cls in types)
    assert [type(module) for module in accelerate(mednext()).modules()] == types  # twice is once
    assert [type(module) for module in accelerate(plain(mednext())).modules()] == types
    names = {type(module).__module__ for module in plain(mednext()).modules()}
    assert not any("speed" in name for name in names)


def test_copies_and_files(network, image):
    expected = run(network, image)
    assert_equal(run(copy.deepcopy(network), image), expected)
    assert_equal(run(pickle.loads(pickle.dumps(network)), image), expected)
    file = io.BytesIO()
    torch.save(network.state_dict(), file)
    file.seek(0)
    network.load_state_dict(torch.load(file, weights_only=True))
    assert_equal(run(network, image), expected)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_tracing(network, image):
    traced = torch.jit.trace(network.eval(), image)
    with torchs_own():
        torch.testing.assert_close(traced(image), network(image), rtol=1e-4, atol=1e-5)
    assert "PythonOp" not in str(traced.inlined_graph)


def test_compilation_without_graph_breaks(image):
    network = mednext().eval()
    compiled = torch.compile(network, fullgraph=True, backend="eager")
    with torchs_own():
        torch.testing.assert_close(compiled(image), network(image))


def test_gradient_checkpointing(image):
    network = mednext(use_checkpoint=True)
    assert_equal(run(network, image), plainly(network, image))


def test_counters_see_what_they_know(network, image):
    counts = []
    for count in (run, plainly):
        with FlopCounterMode(display=False) as counter:
            count(network, image)
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] > 0


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_precisions_are_torchs_own(network, image, dtype):
    network, image = network.eval().to(dtype), image.to(dtype)
    with torchs_own():
        expected = network(image)
    assert torch.equal(network(image), expected)


def test_autocast_is_torchs_own(network, image):
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        with torchs_own():
            expected = network.eval()(image)
        assert torch.equal(network(image), expected)


@pytest.mark.filterwarnings("ignore:TF32")
def test_without_onednn_all_is_torchs_own(network, image):
    with torch.backends.mkldnn.flags(enabled=False), torch.no_grad():
        with torchs_own():
            expected = network.eval()(image)
        assert torch.equal(network(image), expected)


def test_function_transforms(image):
    network = mednext().eval()
    images = torch.stack([image, image])
    with torchs_own():
        expected = torch.func.vmap(network)(images)
    torch.testing.assert_close(torch.func.vmap(network)(images), expected)


def test_meta_tensors_come_out_as_they_went_in(network, image):
    tensor = MetaTensor(image, affine=2 * torch.eye(4))
    with torch.no_grad():
        result = network.eval()(tensor)
        with torchs_own():
            expected = network(tensor)
    assert type(result) is type(expected)
    assert torch.equal(result.affine, expected.affine)
    torch.testing.assert_close(result.as_tensor(), expected.as_tensor(), rtol=1e-4, atol=1e-5)


def test_shapes_on_the_meta_device(network, image):
    image = image.to("meta")
    assert network.to("meta").eval()(image).shape == (len(image), 3, *image.shape[2:])


@pytest.mark.parametrize("make", [unetr_pp, utnet])
def test_dropout_layers_alone_in_training_mode(make):
    """Monte Carlo dropout: everything else as in inference."""
    network, image = make().eval(), torch.randn(1, 1, 16, 16, 16) if make is unetr_pp else torch.randn(1, 1, 32, 32)
    layers = [m for m in network.modules() if isinstance(m, nn.modules.dropout._DropoutNd)]
    for layer in layers:
        layer.p = 0.5
    for name, p in network.named_parameters():
        if name.endswith("gamma"):
            nn.init.normal_(p)
    with torch.no_grad():
        assert torch.equal(network(image), network(image))
        for layer in layers:
            layer.train()
            assert not torch.equal(network(image), network(image))
            layer.eval()


WATCHED = {
    "register_forward_hook": (nn.GroupNorm, nn.BatchNorm2d, nn.InstanceNorm3d, nn.LeakyReLU, nn.Softmax, nn.Dropout),
    "register_full_backward_hook": (nn.GroupNorm, nn.BatchNorm2d, nn.Softmax),  # torch has none before in-place sums
}


@pytest.mark.parametrize("register", WATCHED)
def test_hooks_of_what_is_skipped(network, image, register):
    watched = [m for m in network.modules() if isinstance(m, WATCHED[register])]
    for module in network.modules():
        if hasattr(module, "inplace"):
            module.inplace = False
    counts = []
    for run_it in (run, plainly):
        seen = []
        handles = [getattr(m, register)(lambda *_, seen=seen: seen.append(1)) for m in watched]
        run_it(network.eval(), image)
        counts.append(len(seen))
        for handle in handles:
            handle.remove()
    assert counts[0] == counts[1]


@pytest.mark.parametrize("make", [mednext, utnet])
def test_empty_batch(make):
    network = make().eval()
    image = torch.empty(0, 1, *((16,) * 3 if make is mednext else (32, 32)))
    assert network(image).shape == (0, 3, *image.shape[2:])
