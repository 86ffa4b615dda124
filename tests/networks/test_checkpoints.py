"""Weights from files: loaded as a whole, or refused with a list of what does not fit."""

from __future__ import annotations

import logging
import re
import zipfile

import numpy as np
import pytest
import torch
from monai.networks.nets import SwinUNETR
from scripts.networks import AddFusion, MedNeXtDecoder, SwinEncoder, YNet, load_swin_weights, load_weights
from torch import nn


def encoder(**changes) -> SwinEncoder:
    arguments = {"spatial_dims": 2, "in_channels": 1, "feature_size": 12, "window_size": 2, "stem_channels": 4}
    return SwinEncoder(**{**arguments, **changes})


def network(seed=0, out_channels=2, feature_size=8) -> YNet:
    torch.manual_seed(seed)
    return YNet(
        encoder=encoder(feature_size=feature_size, depths=[1], num_heads=[2]),
        decoder=MedNeXtDecoder(
            spatial_dims=2, channels=[4, feature_size, 2 * feature_size], out_channels=out_channels, blocks=1
        ),
    )


def swin_unetr(**changes) -> SwinUNETR:
    torch.manual_seed(1)
    arguments = {"in_channels": 1, "out_channels": 2, "feature_size": 12, "spatial_dims": 2, "window_size": 2}
    return SwinUNETR(**{**arguments, **changes}).eval()


def same(a: nn.Module, b: nn.Module) -> bool:
    pairs = zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    return all(torch.equal(x, y) for x, y in pairs)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"network": state, "optimizer": {"state": {}}, "epoch": 3},
        lambda state: {"state_dict": {f"module.{k}": v for k, v in state.items()}},
        lambda state: {"model": {f"_orig_mod.module.{k}": v for k, v in state.items()}},
        lambda state: {"epoch": 1, "model": {"state_dict": state}},
    ],
)
def test_load_weights(tmp_path, wrap):
    source, target = network(seed=1), network(seed=2)
    torch.save(wrap(source.state_dict()), tmp_path / "model.pt")
    assert load_weights(target, tmp_path / "model.pt") == ""
    assert same(source, target)


def test_load_weights_refuses_another_network(tmp_path):
    target, untouched = network(), network()
    torch.save(network(feature_size=16).state_dict(), tmp_path / "wide.pt")
    with pytest.raises(
        ValueError, match=r"wide.pt is a checkpoint of another network.*\n.*of another shape: .*file \["
    ):
        load_weights(target, tmp_path / "wide.pt")
    torch.save(swin_unetr().state_dict(), tmp_path / "swin_unetr.pt")
    with pytest.raises(ValueError, match=r"(?s)missing in the file: .*unknown to the network: swinViT.patch_embed"):
        load_weights(target, tmp_path / "swin_unetr.pt")
    state = network(seed=1).state_dict()
    state.pop("decoder.heads.0.bias")
    torch.save(state, tmp_path / "lacking.pt")
    with pytest.raises(ValueError, match="1 missing in the file: decoder.heads.0.bias$"):
        load_weights(target, tmp_path / "lacking.pt")
    assert same(target, untouched)


def test_load_weights_not_strict_names_the_rest(tmp_path, caplog):
    source, target = network(seed=1, out_channels=5), network(seed=2)
    torch.save(source.state_dict(), tmp_path / "model.pt")
    with caplog.at_level(logging.WARNING):
        problems = load_weights(target, tmp_path / "model.pt", strict=False)
    assert "2 of another shape: decoder.heads.0.weight: file [5, 4, 1, 1], network [2, 4, 1, 1]" in problems
    assert problems in caplog.text
    assert same(source.encoder, target.encoder)
    torch.save({"a": torch.zeros(1)}, tmp_path / "nothing.pt")
    with pytest.raises(ValueError, match="another network"):
        load_weights(target, tmp_path / "nothing.pt", strict=False)


def with_fusion(seed):
    plain = network(seed)
    fusion = AddFusion(spatial_dims=2, channels=16, clinical_features=3)
    return YNet(encoder=plain.encoder, decoder=plain.decoder, fusion=fusion)


def test_a_file_without_fusion(tmp_path, caplog):
    source, target = network(seed=1), with_fusion(seed=2)
    before = {key: value.clone() for key, value in target.fusion.state_dict().items()}
    torch.save(source.state_dict(), tmp_path / "image.pt")
    with pytest.raises(ValueError, match=r"(?s)missing in the file: fusion.*no clinical variables: add fusion_none"):
        load_weights(target, tmp_path / "image.pt")  # nobody shall be served by random numbers
    assert not same(source.encoder, target.encoder)
    with caplog.at_level(logging.WARNING):
        assert load_weights(target, tmp_path / "image.pt", new="fusion") == ""
    assert f"image.pt has no fusion: its {len(before)} tensors start at random" in caplog.text
    assert same(source.encoder, target.encoder)
    assert same(source.decoder, target.decoder)
    assert all(torch.equal(value, before[key]) for key, value in target.fusion.state_dict().items())


def test_a_fusion_in_the_file_must_fit(tmp_path):
    state = with_fusion(seed=1).state_dict()
    state.pop(next(key for key in state if key.startswith("fusion.")))
    torch.save(state, tmp_path / "part.pt")
    with pytest.raises(ValueError, match="1 missing in the file: fusion"):
        load_weights(with_fusion(seed=2), tmp_path / "part.pt", new="fusion")
    torch.save(with_fusion(seed=1).state_dict(), tmp_path / "fused.pt")
    with pytest.raises(ValueError, match="unknown to the network: fusion"):
        load_weights(network(), tmp_path / "fused.pt", new="fusion")


@pytest.mark.parametrize("module", ["numpy.core.multiarray", "numpy._core.multiarray"])
def test_numbers_of_numpy_1_and_2(tmp_path, module):
    numbers = {"loss": np.float64(0.5), "best": np.float32(0.25), "epoch": np.int64(3), "step": np.int32(7)}
    torch.save({"state_dict": network(seed=1).state_dict(), **numbers}, tmp_path / "here.pt")
    with zipfile.ZipFile(tmp_path / "here.pt") as here, zipfile.ZipFile(tmp_path / "there.pt", "w") as there:
        for name in here.namelist():  # both write their own name for the function that makes a number
            written = re.sub(rb"numpy\._?core\.multiarray", module.encode(), here.read(name))
            there.writestr(name, written if name.endswith("data.pkl") else here.read(name))
    target = network(seed=2)
    load_weights(target, tmp_path / "there.pt")
    assert same(target, network(seed=1))


def test_refuses_files_that_hold_no_weights(tmp_path):
    net = network()
    with pytest.raises(FileNotFoundError, match="absent.pt: no such checkpoint file"):
        load_weights(net, tmp_path / "absent.pt")
    (tmp_path / "text.pt").write_text("not a checkpoint")
    with pytest.raises(ValueError, match="text.pt cannot be read as weights"):
        load_weights(net, tmp_path / "text.pt")
    (tmp_path / "empty.pt").touch()
    with pytest.raises(ValueError, match="empty.pt cannot be read as weights"):
        load_weights(net, tmp_path / "empty.pt")
    torch.save(net, tmp_path / "whole.pt")  # a pickled module would execute code
    with pytest.raises(ValueError, match="whole.pt cannot be read as weights"):
        load_weights(net, tmp_path / "whole.pt")
    torch.save({"epoch": 3}, tmp_path / "epoch.pt")
    with pytest.raises(ValueError, match=r"epoch.pt holds keys \['epoch'\]; expected a state dict"):
        load_weights(net, tmp_path / "epoch.pt")
    torch.save([torch.zeros(1)], tmp_path / "list.pt")
    with pytest.raises(ValueError, match="list.pt holds a list; expected a state dict"):
        load_weights(net, tmp_path / "list.pt")


@pytest.mark.parametrize("use_v2", [False, True])
def test_swin_unetr_gives_equal_features(tmp_path, use_v2):
    source, target = swin_unetr(use_v2=use_v2), encoder(use_v2=use_v2).eval()
    torch.save({"state_dict": source.state_dict()}, tmp_path / "swin_unetr.pt")
    ignored = load_swin_weights(target, tmp_path / "swin_unetr.pt")
    assert not any(key.startswith("swinViT") for key in ignored)
    assert "head, a decoder" in ignored["out.conv.conv.weight"]
    x = torch.randn(1, 1, 64, 64)
    assert all(torch.equal(a, b) for a, b in zip(target(x)[1:], source.swinViT(x, True), strict=True))


def ssl_state(prefix="module.") -> dict[str, torch.Tensor]:
    """Keys as in MONAI's self-supervised `model_swinvit.pt`, sizes of our small encoder."""
    state = {}
    for key, value in swin_unetr().swinViT.state_dict().items():
        state[prefix + key.replace("mlp.linear", "mlp.fc")] = value
    for head in ("norm", "rotation_head", "contrastive_head", "convTrans3d"):
        state[f"module.{head}.weight"] = torch.zeros(3, 3)
    return state


@pytest.mark.parametrize("prefix", ["module.", "module.swin_vit.", "module.swinViT."])
def test_self_supervised_weights(tmp_path, prefix):
    torch.save({"epoch": 9, "state_dict": ssl_state(prefix)}, tmp_path / "model_swinvit.pt")
    target = encoder()
    stem = target.stem.weight.clone()
    ignored = load_swin_weights(target, tmp_path / "model_swinvit.pt")
    assert {key.split(".")[-2] for key in ignored} == {"norm", "rotation_head", "contrastive_head", "convTrans3d"}
    assert same(target.swinViT, swin_unetr().swinViT)
    assert torch.equal(target.stem.weight, stem)


def test_weights_of_disruptive_autoencoders(tmp_path):
    state = {"encoder.mask_token": torch.zeros(1), "encoder.norm.weight": torch.zeros(12)}
    for key, value in swin_unetr().swinViT.state_dict().items():
        if not key.endswith("relative_position_index"):
            state["encoder." + key.replace(".0.", ".0.0.", 1)] = value
    torch.save({"model": state}, tmp_path / "ssl.pth")
    target = encoder()
    assert set(load_swin_weights(target, tmp_path / "ssl.pth")) == {"encoder.mask_token", "encoder.norm.weight"}
    assert same(target.swinViT, swin_unetr().swinViT)


def test_encoder_of_another_ynet(tmp_path):
    source, target = network(seed=3), encoder(feature_size=8, depths=[1], num_heads=[2])
    torch.save(source.state_dict(), tmp_path / "model.pt")
    ignored = load_swin_weights(target, tmp_path / "model.pt")
    assert same(source.encoder.swinViT, target.swinViT)
    assert "encoder.stem.weight" in ignored


def test_fewer_stages_take_the_first(tmp_path):
    torch.save(ssl_state(), tmp_path / "model_swinvit.pt")
    target = encoder(depths=[2, 2], num_heads=[3, 6])
    ignored = load_swin_weights(target, tmp_path / "model_swinvit.pt")
    assert ignored["layers3.0.blocks.0.norm1.weight"] == "stage 3: this encoder has 2"
    assert torch.equal(
        target.swinViT.layers2[0].blocks[1].attn.qkv.weight, ssl_state()["module.layers2.0.blocks.1.attn.qkv.weight"]
    )


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"feature_size": 24}, r"of another shape: patch_embed.proj.weight: file \[12, 1, 2, 2\], network \[24,"),
        ({"window_size": 4}, "relative_position_bias_table: file"),
        ({"in_channels": 2}, r"1 of another shape: patch_embed.proj.weight: file \[12, 1, 2, 2\], network \[12, 2"),
        ({"depths": [2, 2, 6, 2]}, "missing in the file: layers3.0.blocks.2"),
        ({"depths": [1, 2, 2, 2]}, "unknown to the network: layers1.0.blocks.1"),
        ({"use_v2": True}, "missing in the file: layers1c"),
    ],
)
def test_refuses_a_swin_that_does_not_fit(tmp_path, changes, match):
    torch.save({"state_dict": ssl_state()}, tmp_path / "model_swinvit.pt")
    torch.manual_seed(0)
    target = encoder(**changes)
    before = {key: value.clone() for key, value in target.state_dict().items()}
    with pytest.raises(ValueError, match=rf"(?s)does not fit. Nothing was loaded.*{match}"):
        load_swin_weights(target, tmp_path / "model_swinvit.pt")
    assert all(torch.equal(before[key], value) for key, value in target.state_dict().items())


def test_refuses_a_file_without_swin(tmp_path):
    torch.save({"conv.weight": torch.zeros(1)}, tmp_path / "unet.pt")
    with pytest.raises(ValueError, match="unet.pt holds 0 Swin patch embeddings"):
        load_swin_weights(encoder(), tmp_path / "unet.pt")
