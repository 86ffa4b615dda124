"""UTNet against the numbers of its authors' code."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import golden_support as golden
import numpy as np
import pytest
import torch
from golden_support import needs_golden
from scripts.networks import authors
from scripts.networks.authors import keys, utnet
from scripts.networks.utnet_attention import position_index

TOLERANCE = 1e-4
FULL, ENCODER_ONLY = utnet.OFFICIAL
SMALL = [name for name in golden.names("utnet_*") if not name.endswith("_paper")]
# Nine attentions in a row, whose random weights make logits of up to 5000: the softmax is a hard choice, and each of
# them multiplies rounding by 2 to 10, from 1e-7 in the first convolution to 1e-2 at the end. The stored numbers are one
# draw of that rounding: this network in float64, with all its rounding gone, is 2e-2 away from them. No order of
# operations helps; bit by bit the convolutions have to be those of oneDNN on AVX2.
UNSTABLE = "utnet_b8_blocks124_heads248"


@needs_golden
@pytest.mark.parametrize("name", [name for name in SMALL if name != UNSTABLE])
def test_outputs_gradients_and_size(name):
    meta = golden.read(name)
    network = golden.loaded(meta)
    logits = network.decoder(network.encode(golden.make_input(meta["input_shape"])))  # in the authors' order
    assert golden.worst_error(name, logits) < TOLERANCE
    assert sum(p.numel() for p in network.parameters()) == meta["n_params"]
    check = meta["grad_check"]
    loss = sum(y.square().mean() for y in logits)
    loss.backward()
    assert loss.item() == pytest.approx(check["value"], rel=1e-3)
    expected = {utnet.our_key(key): norm for key, norm in check["grad_l2"].items()}
    got = {key: p.grad.norm().item() for key, p in network.named_parameters()}
    assert got == pytest.approx(expected, rel=5e-3, abs=1e-5)


@needs_golden
@pytest.mark.skipif(platform.machine().lower() not in ("x86_64", "amd64"), reason="no AVX2 on this processor")
def test_the_unstable_fixture_with_the_instructions_that_it_was_made_with():
    program = (
        "import golden_support as golden\n"
        f"meta = golden.read({UNSTABLE!r})\n"
        "network = golden.loaded(meta)\n"
        "logits = network.decoder(network.encode(golden.make_input(meta['input_shape'])))\n"
        f"print(golden.worst_error({UNSTABLE!r}, logits))\n"
    )
    tests = Path(golden.__file__).parent
    environment = os.environ | {
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(tests), str(tests.parent / "bundle")]),
    }
    run = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert float(run.stdout.splitlines()[-1]) < TOLERANCE


@needs_golden
def test_the_unstable_fixture_is_one_draw_of_its_own_rounding():
    meta = golden.read(UNSTABLE)
    network, x = golden.loaded(meta), golden.make_input(meta["input_shape"])
    with torch.no_grad():
        single = network.decoder(network.encode(x))
        double = [y.float() for y in network.double().decoder(network.encode(x.double()))]
    (spec,), stored = meta["outputs"], np.load(golden.GOLDEN / f"{UNSTABLE}.npz")
    rows = tuple(slice(None, None, step) for step in spec["strides"])
    ours, exact = (np.abs(y[0][rows].numpy() - stored[spec["key"]]).max() / spec["absmax"] for y in (single, double))
    assert 1e-2 < exact < 5e-2  # without rounding
    assert ours < 1.5 * exact


def build(official_class=FULL, **changes):
    torch.manual_seed(0)
    return authors.build(official_class, **{"in_chan": 1, "base_chan": 4, "reduce_size": 2, **changes})


@pytest.mark.parametrize(
    ("official_class", "changes", "attention", "up_attention"),
    [
        (FULL, {}, [0, 0, 1, 2, 4], [2, 3]),
        (ENCODER_ONLY, {}, [0, 0, 1, 2, 4], []),
        (FULL, {"block_list": "04", "num_heads": [1, 2, 3, 4, 5]}, [1, 0, 0, 0, 4], [0]),
        (FULL, {"block_list": "1", "num_blocks": [7, 3, 1, 1, 1], "num_heads": [2] * 4}, [0, 3, 0, 0, 0], [1]),
        (FULL, {"block_list": "", "num_heads": [], "num_blocks": []}, [0] * 5, []),
    ],
)
def test_block_list_says_where_attention_stands(official_class, changes, attention, up_attention):
    network = build(official_class, **changes)
    kinds = [[type(part).__name__ for part in stage] for stage in network.encoder.stages]
    assert [kind.count("AttentionBlock") for kind in kinds] == attention
    kinds = [type(up).__name__ for up in network.decoder.ups]
    assert [level for level, kind in enumerate(kinds) if kind == "AttentionUp"] == up_attention
    assert network.eval()(torch.randn(1, 1, 32, 32)).shape == (1, 1, 32, 32)


def test_lists_are_read_from_their_end():
    network = build(block_list="01234", num_heads=[1, 2, 3, 4, 5], num_blocks=[9, 9, 1, 2, 1, 3])
    assert [stage[-1].attn.heads for stage in network.encoder.stages] == [1, 2, 3, 4, 5]
    assert [up.attn_decoder.attn.heads for up in network.decoder.ups] == [2, 3, 4, 5]
    assert [len(stage) for stage in network.encoder.stages] == [2, 3, 4, 3, 5]


def test_without_pooling_the_levels_with_attention_are_strided():
    stages = build(maxpool=False, block_list="24").encoder.stages
    assert [type(stage[0]).__name__ for stage in stages[1:]] == ["MaxPool2d", "ResidualBlock"] * 2


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"bottleneck": True}, "bottleneck is True; only False is supported"),
        ({"bottleneck": True, "block_list": "0", "num_heads": [1] * 5}, "bottleneck is True"),
        ({"block_list": "25"}, "block_list is '25'; expected digits of '01234'"),
        ({"block_list": None}, "block_list is None"),
        ({"num_heads": [2, 4]}, r"num_heads is \[2, 4\]; block_list '234' needs a list of at least 3 numbers"),
        ({"num_heads": 4}, "num_heads is 4; block_list"),
        ({"num_heads": [4, 0, 4]}, r"num_heads is \[4, 0, 4\].*each at least 1"),
        ({"block_list": "1234", "num_heads": [1] * 4}, r"num_blocks is \(1, 2, 4\).* at least 4 numbers"),
        ({"projection": "conv"}, "projection is 'conv'"),
        ({"attn_drop": 1.5}, "attn_drop is 1.5"),
        ({"width": 3}, "has no argument width"),
    ],
)
def test_refuses_argument(changes, match):
    with pytest.raises(ValueError, match=match):
        build(**changes)


def test_refuses_a_missing_argument():
    with pytest.raises(TypeError, match="needs the argument base_chan"):
        authors.build(FULL, in_chan=1)


def official_keys(network) -> dict[str, torch.Tensor]:
    """A state dict by the authors' keys, for `build()` with attention at the three coarsest levels."""
    weights = {}
    for key, value in network.state_dict().items():
        for level in range(1, 5):
            key = key.replace(f"encoder.stages.{level}.", f"down{level}.{'conv' if level == 1 else 'blocks'}.")
            key = key.replace(f"decoder.ups.{4 - level}.", f"up{level}.")
        if key.startswith(("up3", "up4")):
            key = key.replace(".blocks.", ".conv.")
        key = key.replace("encoder.stages.0.", "inc.").replace("decoder.heads.0.", "outc.")
        weights[key.replace(".position.table", keys.TABLE)] = torch.randn_like(value) if value.ndim else value
    return weights


def test_load_uses_or_names_every_key():
    network = build().eval()
    weights = official_keys(network)
    index = f"down2.blocks.2.attn{keys.INDEX}"
    ignored = authors.load(network, weights | {index: position_index(2)}, FULL)
    assert list(ignored) == [index]
    assert "constant of reduce_size" in ignored[index]
    table = f"down2.blocks.2.attn{keys.TABLE}"
    assert torch.equal(network.encoder.stages[2][2].attn.position.table, weights[table])


@pytest.mark.parametrize(
    "change",
    [
        {"down2.blocks.2.attn" + keys.INDEX: torch.zeros(4, 4, dtype=torch.int64)},  # another numbering
        {"down1.blocks.1.conv1.weight": torch.zeros(8, 4, 3, 3)},  # a second tensor for one place
        {"out1.weight": torch.zeros(1, 32, 1, 1)},  # trained with aux_loss
        {"resnet.root.conv.weight": torch.zeros(1)},
        {"outc.weight": torch.zeros(2, 4, 1, 1)},
    ],
)
def test_load_refuses_other_weights(change):
    network = build()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    with pytest.raises(ValueError, match="Nothing was loaded"):
        authors.load(network, official_keys(network) | change, FULL)
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
