"""What every network in `configs` must do, as users run it: base, network and fusion overlays put together."""

from __future__ import annotations

import copy
import math
import re
from functools import cache

import pytest
import torch
from monai.bundle import ConfigParser
from networks.tiny import CLASSES, FUSIONS, GRID, NETWORKS, TINY
from scripts.networks import YNet
from scripts.networks.speed import plain
from support import CONFIGS
from torch import Tensor
from torch.nn import functional as F

LIKE_ANOTHER = ("mednext_b", "mednext_m", "swin_next_tiny")  # when they are tiny: no test that takes seconds


def parser(name: str, fusion: str, changes: dict[str, object] | None = None) -> ConfigParser:
    """Configuration of a network with a fusion, with overrides."""
    merged = ConfigParser()
    merged.read_config([str(CONFIGS / f"{part}.yaml") for part in ("inference", f"network_{name}", f"fusion_{fusion}")])
    for key, value in (changes or {}).items():
        merged[key.removeprefix("/") if key.startswith("/") else f"network_def::{key}"] = value
    return merged


def build(name: str, fusion: str = "none", changes: dict[str, object] | None = None) -> YNet:
    """Tiny network of a YAML, with further changes; the same at every call."""
    changes = TINY[name].changes | {"/labels": ["background", *map(str, range(1, CLASSES))]} | (changes or {})
    if fusion != "none":
        changes |= {"/clinical_columns": ["age", "Sex"]}
    if fusion == "cross_attention":
        changes |= {"/fusion_def::num_heads": 2}
    torch.manual_seed(0)
    return parser(name, fusion, changes).get_parsed_content("network_def")


@cache
def built(name: str, fusion: str = "none") -> YNet:
    """The same in eval mode, for tests that leave it as it is."""
    return build(name, fusion).eval()


def image(name: str, batch: int = 2) -> Tensor:
    channels = built(name).encoder.in_channels
    return torch.randn(batch, channels, *TINY[name].size, generator=torch.Generator().manual_seed(1))


def vector(network: YNet, batch: int = 2) -> Tensor:
    clinical = torch.randn(batch, network.fusion.clinical.features, generator=torch.Generator().manual_seed(2))
    clinical[0, 0] = math.nan
    return clinical


def loss(logits: Tensor | list[Tensor]) -> Tensor:
    """Cross-entropy with random classes at every scale."""
    torch.manual_seed(3)
    scales = logits if isinstance(logits, list) else [logits]
    return sum(F.cross_entropy(y, torch.randint(0, CLASSES, (len(y), *y.shape[2:]))) for y in scales)


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    built.cache_clear()


def test_every_network_has_an_entry():
    assert sorted(TINY) == NETWORKS


@pytest.mark.parametrize("name", NETWORKS)
def test_file_is_short(name):
    lines = (CONFIGS / f"network_{name}.yaml").read_text().splitlines()
    assert len(lines) <= 20
    assert lines[0].startswith("# ")
    keys = ConfigParser.load_config_file(str(CONFIGS / f"network_{name}.yaml"))
    assert "bottleneck_channels" in keys
    assert keys["network_def"]["dropout"] == 0.0  # MONAI Label's epistemic scoring sets it
    assert keys["network_def"]["deep_supervision"] == "@deep_supervision"


@pytest.mark.parametrize("name", NETWORKS)
def test_shape_and_scales(name):
    network, x = built(name), image(name)
    with torch.no_grad():
        features = network.encode(x)
        scales = network.decoder(features)
        logits = network(x)
    assert logits.shape == (2, CLASSES, *x.shape[2:])
    assert torch.equal(logits, scales[0])
    assert [f.shape[1] for f in features] == list(network.encoder.channels)
    for feature, strides in zip(features, network.encoder.strides, strict=True):
        assert list(feature.shape[2:]) == [n // s for n, s in zip(x.shape[2:], strides, strict=True)]
    assert (len(scales) > 1) == network.deep_supervision
    sizes = [scale.shape[2:].numel() for scale in scales]
    assert sizes == sorted(sizes, reverse=True)


@pytest.mark.parametrize("name", NETWORKS)
def test_gradient_in_every_parameter(name):
    network, x = build(name).train(), image(name)
    logits = network(x)
    assert isinstance(logits, list) == network.deep_supervision
    loss(logits).backward()
    for key, parameter in network.named_parameters():
        if re.search(TINY[name].unused, key):
            assert not parameter.requires_grad, key
            continue
        assert parameter.requires_grad, key
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key
        assert re.search(TINY[name].silent, key) or parameter.grad.abs().max() > 0, key


@pytest.mark.parametrize("name", NETWORKS)
def test_refuses_image(name):
    tiny, network = TINY[name], built(name)
    wrong = tiny.wrong or (*tiny.size[:-1], tiny.size[-1] - 1)
    with pytest.raises(ValueError, match=tiny.match):
        network(torch.zeros(1, network.encoder.in_channels, *wrong))


@pytest.mark.parametrize("name", NETWORKS)
def test_state_dict_round_trip_and_determinism(name):
    network, x = built(name), image(name)
    torch.manual_seed(5)
    other = parser(name, "none", TINY[name].changes | {"/labels": list("abc")}).get_parsed_content("network_def").eval()
    with torch.no_grad():
        assert torch.equal(network(x), network(x))
        assert not torch.equal(network(x), other(x))
        other.load_state_dict(network.state_dict(), strict=True)
        assert torch.equal(network(x), other(x))


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("name", NETWORKS)
def test_fusion(name, fusion):
    network, x = built(name, fusion), image(name)
    with torch.no_grad():
        without = network(x)
        assert without.shape == (2, CLASSES, *x.shape[2:])
        assert without.isfinite().all()
        if fusion == "none":
            return
        clinical = vector(network)
        assert torch.equal(network(x, torch.full_like(clinical, math.nan)), without)
        assert not torch.equal(network(x, clinical), without)
        assert network(x, clinical).isfinite().all()


@pytest.mark.parametrize(
    "name", [name for name, tiny in TINY.items() if len(tiny.size) == 3 and tiny.planar is not None]
)
def test_planes(name):
    tiny = TINY[name]
    network = build(name, "cross_attention", {"/spatial_dims": 2, **tiny.planar}).eval()
    x = torch.randn(2, network.encoder.in_channels, *tiny.size[:2])
    with torch.no_grad():
        assert network(x, vector(network)).shape == (2, CLASSES, *tiny.size[:2])


@pytest.mark.parametrize("name", NETWORKS)
def test_autocast(name):
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        logits = built(name)(image(name))
    assert logits.shape == (2, CLASSES, *TINY[name].size)
    assert logits.isfinite().all()


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("name", NETWORKS)
def test_trace(name):
    network, x = built(name), image(name)
    with torch.no_grad():
        traced = torch.jit.trace(network, (x,), check_trace=False)
        other = torch.randn(x.shape, generator=torch.Generator().manual_seed(4))
        torch.testing.assert_close(traced(other), network(other))


@pytest.mark.parametrize("name", [name for name in NETWORKS if name not in LIKE_ANOTHER])
def test_training_compiles_to_one_graph(name):
    torch._dynamo.reset()
    network, x = build(name).train(), image(name)
    compiled = torch.compile(copy.deepcopy(network), fullgraph=True, backend="eager")
    results = []
    for run in (compiled, plain(network)):  # the compiler gets torch's own operations
        torch.manual_seed(4)  # the same features are dropped
        results.append(run(x))
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("fusion", FUSIONS[1:])
@pytest.mark.parametrize("name", GRID)
def test_grid_of_the_paper_trains(name, fusion):
    network, x = build(name, fusion).train(), image(name)
    assert type(network.fusion).__name__.lower() == f"{fusion.replace('_', '')}fusion"
    loss(network(x, vector(network))).backward()
    for key, parameter in network.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.abs().max() > 0, key
