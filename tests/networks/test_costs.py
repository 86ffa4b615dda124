"""Parameters and operations of every fixture of the authors' networks, by the same counters, exactly."""

from __future__ import annotations

import pytest
import torch
from golden_support import names, needs_golden, read
from scripts.networks import authors
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

aten = torch.ops.aten
# What their files hold and nothing is computed from; `load` names it with this reason.
UNUSED = {"dummy_tensor": 1}
ELEMENTWISE = ("group_norm", "layer_norm", "batch_norm", "instance_norm", "upsample_bilinear2d")


class NormOperations(TorchDispatchMode):
    """Operations that fvcore 0.1.5 counts beside convolutions and matrix products: a few per element of a map.

    2 for a batch normalisation in eval mode, else 4, and 5 with scale and shift; 4 for bilinear interpolation in 2D.
    """

    def __init__(self) -> None:
        super().__init__()
        self.counts = dict.fromkeys(ELEMENTWISE, 0)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        if function is aten.native_group_norm.default:
            self.counts["group_norm"] += args[0].numel() * (4 if args[1] is None else 5)
        elif function is aten.native_layer_norm.default:
            self.counts["layer_norm"] += args[0].numel() * (4 if args[2] is None else 5)
        elif function is aten.native_batch_norm.default and args[5]:  # by the statistics of each map
            self.counts["instance_norm"] += args[0].numel() * (4 if args[1] is None else 5)
        elif function in (aten.native_batch_norm.default, aten._native_batch_norm_legit_no_training.default):
            self.counts["batch_norm"] += args[0].numel() * 2
        elif function is aten.upsample_bilinear2d.default and out.shape != args[0].shape:  # which theirs leave out
            self.counts["upsample_bilinear2d"] += out.numel() * 4
        return out


@needs_golden
@pytest.mark.parametrize("name", names("*"))
def test_parameters_and_operations(name):
    meta = read(name)
    with torch.device("cpu" if "SwinUNETR" in meta["official_class"] else "meta"):  # MONAI's computes when it is built
        network = authors.build(meta["official_class"], **meta["config"]).eval().to("meta")
    with torch.device("meta"):
        unused = sum(size for key, size in UNUSED.items() if any(key == k for k, *_ in meta["state_dict"]))
        assert sum(p.numel() for p in network.parameters()) == meta["n_params"] - unused
        with torch.no_grad(), FlopCounterMode(display=False) as counter, NormOperations() as norms:
            network.decoder(network.encode(torch.empty(meta["input_shape"])))
    counted = counter.get_total_flops() // 2
    macs = meta["macs"]
    assert counted == macs["torch_flop_counter_half"]
    if "fvcore_by_operator" not in macs:  # the fixture has none: fvcore cannot trace this class
        assert "fvcore_total" not in macs
        return
    theirs = dict(macs["fvcore_by_operator"])
    einsum = theirs.pop("einsum", 0)  # fvcore reads it from a text that numpy has rounded to four digits
    norms_of_theirs = {key: theirs.pop(key, 0) for key in ELEMENTWISE}
    assert norms_of_theirs == expected_norms(meta, norms.counts)
    products = sum(theirs.values())
    assert counted - products == pytest.approx(einsum, rel=1e-3)
    assert products + einsum + sum(norms_of_theirs.values()) == macs["fvcore_total"]


def expected_norms(meta, counts):
    """Our counts, less what the authors write out by hand, where fvcore sees no normalisation."""
    if meta["config"].get("norm_type") == "layer":
        return counts | {"layer_norm": 0}
    return counts
