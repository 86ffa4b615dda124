import math
import warnings

import pytest
import torch
import torch.nn.functional as F
from monai.data import MetaTensor
from monai.losses import DeepSupervisionLoss, DiceLoss, FocalLoss
from scripts import class_sums, losses
from scripts.losses import DiceFocalCELoss


def batch(classes=4, spatial=(7, 6, 5), size=2, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(size, classes, *spatial, generator=generator, dtype=dtype) * 2
    labels = torch.randint(classes, (size, 1, *spatial), generator=generator)
    return logits.requires_grad_(), labels


def one_hot(labels, classes):
    return F.one_hot(labels[:, 0], classes).movedim(-1, 1).float()


def monai_sum(
    logits,
    labels,
    *,
    include_background=True,
    weight=None,
    gamma=2.0,
    batch=False,
    ignore_index=None,
    factors=(1, 1, 1),
):
    """Sum of MONAI's Dice and focal losses and torch's cross-entropy; labels (B, 1, *spatial)."""
    weight = None if weight is None else torch.tensor(weight)
    shared = {
        "include_background": include_background,
        "to_onehot_y": True,
        "weight": weight if weight is None or include_background else weight[1:],
        "ignore_index": ignore_index,
    }
    focal = FocalLoss(use_softmax=True, gamma=gamma, **shared)(logits, labels)
    if ignore_index is not None:  # MONAI then leaves the division by the number of classes out
        focal = focal / (logits.shape[1] - (not include_background))
    ce_ignore = -100 if ignore_index is None else ignore_index
    return (
        factors[0] * DiceLoss(softmax=True, batch=batch, **shared)(logits, labels)
        + factors[1] * focal
        + factors[2] * F.cross_entropy(logits, labels[:, 0].long(), weight=weight, ignore_index=ce_ignore)
    )


def assert_same(ours, theirs, logits):
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    wanted, got = (torch.autograd.grad(x, logits, retain_graph=True)[0] for x in (theirs, ours))
    assert wanted.abs().max() > 1e-6
    torch.testing.assert_close(got / wanted.abs().max(), wanted / wanted.abs().max(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("include_background", [True, False])
@pytest.mark.parametrize("weight", [None, [0.5, 2.0, 1.0, 0.0]])
@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0, 3.5])
@pytest.mark.parametrize("batch_dice", [False, True])
@pytest.mark.parametrize("ignore_index", [None, 2, 255, -1])
def test_equals_the_sum_of_monais_losses(include_background, weight, gamma, batch_dice, ignore_index):
    logits, labels = batch()
    if ignore_index in (255, -1):
        labels[torch.rand(labels.shape) < 0.3] = ignore_index
    options = {
        "include_background": include_background,
        "weight": weight,
        "gamma": gamma,
        "batch": batch_dice,
        "ignore_index": ignore_index,
    }
    theirs = monai_sum(logits, labels, **options)
    ours = DiceFocalCELoss(to_onehot_y=True, **options)(logits, labels)
    assert_same(ours, theirs, logits)
    targets = one_hot(labels.clamp(0, 3), 4) * ((labels >= 0) & (labels < 4))
    assert_same(DiceFocalCELoss(**options)(logits, targets), theirs, logits)


@pytest.mark.parametrize("factors", [(1, 0, 0), (0, 1, 0), (0, 0, 1), (0.3, 2.0, 0.7)])
def test_each_term_has_its_factor(factors):
    logits, labels = batch()
    named = dict(zip(("lambda_dice", "lambda_focal", "lambda_ce"), factors, strict=True))
    ours = DiceFocalCELoss(to_onehot_y=True, **named)(logits, labels)
    assert_same(ours, monai_sum(logits, labels, factors=factors), logits)


def test_smoothing_terms():
    logits, labels = batch()
    smooth = {"to_onehot_y": True, "smooth_nr": 3.0, "smooth_dr": 50.0}
    ours = DiceFocalCELoss(lambda_focal=0, lambda_ce=0, **smooth)(logits, labels)
    assert_same(ours, DiceLoss(softmax=True, **smooth)(logits, labels), logits)


@pytest.mark.parametrize("spatial", [(40,), (9, 8), (5, 6, 7)])
@pytest.mark.parametrize("classes", [2, 14])
def test_any_number_of_axes_and_classes(spatial, classes):
    logits, labels = batch(classes, spatial)
    for cast in (labels.float(), labels.to(torch.uint8), labels.to(torch.int16)):
        assert_same(DiceFocalCELoss(to_onehot_y=True)(logits, cast), monai_sum(logits, labels), logits)


def test_gradient_equals_finite_differences():
    logits, labels = batch(3, (4, 3), dtype=torch.float64)
    labels[0, 0, 0, 0] = 9
    for options in ({"gamma": 1.5}, {"include_background": False, "weight": [1.0, 2.0, 0.5]}, {"batch": True}):
        loss = DiceFocalCELoss(to_onehot_y=True, ignore_index=9, **options)
        assert torch.autograd.gradcheck(lambda x, loss=loss: 3 * loss(x, labels), logits)


def test_chunks_change_nothing(monkeypatch):
    logits, labels = batch(spatial=(8, 7, 6))
    whole = DiceFocalCELoss(to_onehot_y=True)(logits, labels)
    monkeypatch.setattr(class_sums, "CPU_CHUNK", 4 * 50)  # 336 voxels: six whole chunks and a rest
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    assert len(list(class_sums._chunks(logits.flatten(2)))) == 2 * 7
    assert_same(DiceFocalCELoss(to_onehot_y=True)(logits, labels), whole, logits)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("ignore_index", [None, 2])
def test_a_gpu_gives_the_same(ignore_index):
    logits, labels = batch(spatial=(24, 24, 24))
    loss = DiceFocalCELoss(to_onehot_y=True, weight=[1.0, 2.0, 0.5, 1.0], ignore_index=ignore_index)
    assert_same(loss.cuda()(logits.cuda(), labels.cuda()).cpu(), loss.cpu()(logits, labels), logits)


def test_channels_last_and_metatensors_give_the_same():
    logits, labels = batch()
    expected = DiceFocalCELoss(to_onehot_y=True)(logits, labels)
    result = DiceFocalCELoss(to_onehot_y=True)(MetaTensor(logits), MetaTensor(labels))
    assert type(result) is torch.Tensor
    assert_same(result, expected, logits)
    last = logits.detach().to(memory_format=torch.channels_last_3d).requires_grad_()
    result = DiceFocalCELoss(to_onehot_y=True)(last, labels)
    torch.testing.assert_close(torch.autograd.grad(result, last)[0], torch.autograd.grad(expected, logits)[0])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype):
    logits, labels = batch(spatial=(32, 32, 8))
    half = logits.detach().to(dtype).requires_grad_()
    exact = half.detach().float().requires_grad_()
    loss = DiceFocalCELoss(to_onehot_y=True)
    with torch.autocast("cpu", dtype=dtype):
        ours = loss(half, labels)
        gradient = torch.autograd.grad(ours * 4096, half)[0]  # scaled, as in mixed-precision training
    expected = loss(exact, labels)
    assert ours.dtype == torch.float32
    assert gradient.dtype == dtype
    torch.testing.assert_close(ours, expected)
    wanted = torch.autograd.grad(expected * 4096, exact)[0]
    torch.testing.assert_close(gradient.float(), wanted, atol=1e-3, rtol=1e-2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("include_background", [True, False])
@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_huge_logits_and_empty_patches_stay_finite(dtype, include_background, gamma):
    logits = batch()[0].detach().sign().mul(1e4).to(dtype).requires_grad_()
    loss = DiceFocalCELoss(to_onehot_y=True, include_background=include_background, gamma=gamma, ignore_index=255)
    for value in (0, 3, 255):  # background only, one class only, nothing but ignored voxels
        result = loss(logits, torch.full((2, 1, 7, 6, 5), value))
        gradient = torch.autograd.grad(result, logits)[0]
        assert result.isfinite()
        assert gradient.isfinite().all()
        if value == 255:
            assert gradient.abs().max() == 0


def test_confident_logits_have_the_loss_of_their_margin():
    logits = torch.tensor([[1e4, 0.0], [0.0, 1e4]]).reshape(1, 2, 2).requires_grad_()  # (B, C, N)
    right, wrong = torch.tensor([[[0, 1]]]), torch.tensor([[[1, 0]]])
    loss = DiceFocalCELoss(to_onehot_y=True)
    assert loss(logits, right).item() == pytest.approx(0, abs=1e-6)
    assert loss(logits, wrong).item() == pytest.approx(1 + 1e4 / 2 + 1e4, rel=1e-5)  # Dice, focal / C, CE


def test_no_foreground_by_hand():
    # uniform over 2 classes, all 8 voxels background: p = 1/2 everywhere
    loss = DiceFocalCELoss(to_onehot_y=True, smooth_nr=0, smooth_dr=1e-5)
    dice = 1 - (2 * 4 / (4 + 8)) / 2  # background 2/3, foreground 0
    log2 = math.log(2)
    result = loss(torch.zeros(1, 2, 8), torch.zeros(1, 1, 8)).item()
    assert result == pytest.approx(dice + 0.25 * log2 / 2 + log2, rel=1e-5)


def test_ignoring_voxels_equals_cropping_them_away():
    logits, labels = batch(spatial=(8, 6, 5))
    options = {"to_onehot_y": True, "weight": [1.0, 2.0, 0.5, 1.0]}
    padded = labels.clone()
    padded[:, :, 5:] = 255
    ignoring = DiceFocalCELoss(ignore_index=255, **options)(logits, padded)
    cropped = DiceFocalCELoss(**options)(logits[:, :, :5], labels[:, :, :5])
    assert_same(ignoring, cropped, logits)


def test_deep_supervision_is_the_weighted_sum():
    shapes = [(13, 10, 9), (7, 5, 9), (4, 3, 5)]  # ratios that are not whole, one axis not reduced
    scales = [batch(spatial=s, seed=i)[0] for i, s in enumerate(shapes)]
    labels = batch(spatial=shapes[0])[1]
    loss = DiceFocalCELoss(to_onehot_y=True)
    nearest = [F.interpolate(labels.float(), size=s, mode="nearest-exact") for s in shapes]
    parts = [loss(x, y) for x, y in zip(scales, nearest, strict=True)]
    torch.testing.assert_close(loss(scales, labels), (4 * parts[0] + 2 * parts[1] + parts[2]) / 7)
    torch.testing.assert_close(loss(scales[:1], labels), parts[0])
    given = DiceFocalCELoss(to_onehot_y=True, deep_supervision_weights=[1, 0.4, 0.2])
    torch.testing.assert_close(given(scales, labels), parts[0] + 0.4 * parts[1] + 0.2 * parts[2])
    torch.testing.assert_close(given(scales[0], labels), parts[0])
    theirs = DeepSupervisionLoss(monai_sum, weights=[4 / 7, 2 / 7, 1 / 7])(scales, labels.float())
    for scale in scales:
        assert_same(loss(scales, labels), theirs, scale)


@pytest.mark.parametrize("n_out", range(1, 18))
def test_nearest_is_torchs_nearest_exact(n_out):
    for n_in in range(n_out, 40):
        x = torch.arange(n_in, dtype=torch.float32)[None]
        expected = F.interpolate(x[None], size=n_out, mode="nearest-exact")[0]
        assert losses._nearest(x, (n_out,)).equal(expected), (n_in, n_out)


def test_it_learns_what_it_is_told():
    torch.manual_seed(0)
    labels = torch.zeros(1, 1, 8, 8, 8).long()
    labels[..., 2:5, 2:5, 2:5] = 1
    labels[..., 6, 6, 6] = 2
    logits = torch.zeros(1, 3, 8, 8, 8, requires_grad=True)
    optimiser, loss = torch.optim.Adam([logits], lr=0.5), DiceFocalCELoss(to_onehot_y=True)
    for _ in range(30):
        optimiser.zero_grad()
        loss(logits, labels).backward()
        optimiser.step()
    assert logits.argmax(1, keepdim=True).equal(labels)


@pytest.mark.parametrize(
    ("options", "logits", "target", "message"),
    [
        ({}, (2, 1, 4, 4), (2, 1, 4, 4), r"shape \(2, 1, 4, 4\).*C >= 2: set out_channels"),
        ({}, (2, 3), (2, 1), r"expected \(B, C, \*spatial\)"),
        ({}, (2, 3, 4, 4), (2, 1, 4, 5), r"target has shape \(2, 1, 4, 5\), expected \(2, 1, 4, 4\)"),
        ({}, (2, 3, 4, 4), (2, 4, 4), "expected .* for class indices"),
        ({"to_onehot_y": False}, (2, 3, 4, 4), (2, 1, 4, 4), "for a one-hot target"),
        ({"to_onehot_y": False}, (2, 3, 4, 4), (2, 3, 4, 4), "target is not one-hot"),
        ({"weight": [1, 2]}, (2, 3, 4, 4), (2, 1, 4, 4), "weight has 2 values, but the logits have 3 classes"),
    ],
)
def test_wrong_shapes_are_named(options, logits, target, message):
    with pytest.raises(ValueError, match=message):
        DiceFocalCELoss(**{"to_onehot_y": True, **options})(torch.zeros(logits), torch.zeros(target))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (3, r"target holds value 3, but the logits have 3 classes \(0..2\)"),
        (-1, "target holds value -1"),
        (1.5, "target holds value 1.5, expected whole class indices"),
        (math.nan, "target holds value nan"),
    ],
)
def test_wrong_target_values_are_named(value, message):
    target = torch.zeros(2, 1, 4, 4)
    target[1, 0, 2, 3] = value
    with pytest.raises(ValueError, match=message):
        DiceFocalCELoss(to_onehot_y=True)(torch.zeros(2, 3, 4, 4), target)
    if value == 3:
        DiceFocalCELoss(to_onehot_y=True, ignore_index=3)(torch.zeros(2, 3, 4, 4), target)


def test_soft_labels_are_refused():
    target = torch.full((1, 2, 4), 0.5)
    with pytest.raises(ValueError, match="not one-hot"):
        DiceFocalCELoss()(torch.zeros(1, 2, 4), target)


def test_wrong_scales_are_named():
    labels = torch.zeros(1, 1, 4, 4)
    scales = [torch.zeros(1, 2, 4, 4), torch.zeros(1, 2, 2, 2)]
    with pytest.raises(ValueError, match="deep_supervision_weights has 3 values, expected one for each of the 2"):
        DiceFocalCELoss(to_onehot_y=True, deep_supervision_weights=[1, 1, 1])(scales, labels)
    with pytest.raises(ValueError, match="coarser scale"):
        DiceFocalCELoss(to_onehot_y=True)([scales[0], torch.zeros(1, 3, 2, 2)], labels)
    with pytest.raises(ValueError, match="empty list"):
        DiceFocalCELoss(to_onehot_y=True)([], labels)


@pytest.mark.parametrize("option", ["lambda_dice", "lambda_focal", "lambda_ce", "gamma", "smooth_nr", "smooth_dr"])
@pytest.mark.parametrize("value", [-0.1, math.inf, math.nan])
def test_wrong_factors_are_named(option, value):
    with pytest.raises(ValueError, match=f"{option} is {value}, expected a finite number >= 0"):
        DiceFocalCELoss(**{option: value})
    with pytest.raises(ValueError, match="weight is"):
        DiceFocalCELoss(weight=[1.0, value])


def test_a_focal_term_without_meaning_warns():
    with pytest.warns(UserWarning, match="focal term is 0"):
        DiceFocalCELoss(include_background=False, to_onehot_y=True)(*batch(2))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        DiceFocalCELoss(include_background=False, to_onehot_y=True, lambda_focal=0)(*batch(2))


def test_class_weights_follow_the_module_but_stay_out_of_checkpoints():
    loss = DiceFocalCELoss(weight=[1.0, 2.0])
    assert loss.to(torch.float64).weight.dtype == torch.float64
    assert not loss.state_dict()
