"""How masks are cleaned: the options' scores are those of cleaned masks, and no fold has a say in its own."""

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch
from scripts.crossval.candidates import LARGEST, NONE, OPTIONS, candidate_rows, cleaned, settings_of
from scripts.crossval.choice import choose, choose_nested
from scripts.metrics import case_metrics
from scripts.regions import region_metrics
from support import write_nifti

LABELS = ["background", "organ", "tumour"]
AFFINE = np.diag([-2.0, 2.0, 5.0, 1.0])  # voxels of 0.02 ml


def case(seed, *, specks):
    """A label with two organs, and a mask that is a little off and has specks of its first class."""
    rng = np.random.default_rng(seed)
    label = np.zeros((16, 16, 12), np.uint8)
    label[2:9, 2:9, 2:8] = 1
    label[10:14, 10:14, 3:7] = 2
    mask = np.roll(label, rng.integers(0, 2, 3), (0, 1, 2))
    for _ in range(specks):
        mask[tuple(rng.integers(0, size) for size in mask.shape)] = 1
    mask[0, 15, 9:12] = 2
    return mask, label


@pytest.fixture(scope="module")
def cases():
    """Six patients in three folds: fold, case, mask, label."""
    return [(k % 3, f"c{k}", *case(k, specks=8)) for k in range(6)]


def table(cases):
    rows = []
    for fold, name, mask, label in cases:
        own = {"fold": fold, "case_id": name, "patient": name}
        rows += [own | row for row in candidate_rows(mask, label, AFFINE, LABELS)]
    return pd.DataFrame(rows)


@pytest.mark.parametrize("option", OPTIONS)
def test_score_of_an_option_is_that_of_the_mask_it_makes(cases, option, tmp_path):
    _, name, mask, label = cases[0]
    scores = table(cases[:1]).set_index(["class", "option"])["dice"]
    file = write_nifti(tmp_path / f"{name}.nii.gz", mask, AFFINE)
    made = cleaned(str(file), settings_of(dict.fromkeys(LABELS[1:], option), LABELS))
    assert made.dtype == torch.uint8
    np.testing.assert_allclose(made.affine, nib.load(file).affine)
    rows = case_metrics(made.numpy()[0], label, (2, 2, 5), dict(enumerate(LABELS)))
    for row in rows:
        assert scores[row["class"], option] == pytest.approx(row["dice"]), row["class"]


@pytest.mark.parametrize("option", OPTIONS)
def test_score_of_an_option_is_that_of_the_regions_of_its_class(cases, option, tmp_path):
    """Where overlapping regions are scored, a class is cleaned for their sake."""
    _, name, mask, label = cases[0]
    regions = {"whole": [1, 2], "tumour": [2]}
    rows = candidate_rows(mask, label, AFFINE, LABELS, regions)
    scores = {row["class"]: row["dice"] for row in rows if row["option"] == option}
    file = write_nifti(tmp_path / f"{name}.nii.gz", mask, AFFINE)
    for value, parts in {1: ["whole"], 2: ["whole", "tumour"]}.items():
        made = cleaned(str(file), settings_of({LABELS[value]: option}, LABELS)).numpy()[0]
        dice = {row["class"]: row["dice"] for row in region_metrics(made, label, (2, 2, 5), regions, 2.0)}
        assert scores[LABELS[value]] == pytest.approx(np.mean([dice[part] for part in parts]))


def test_class_that_is_not_there_and_rightly_removed_scores_one():
    label = np.zeros((8, 8, 8), np.uint8)
    mask = label.copy()
    mask[0, 0, 0] = 1
    scores = {(row["class"], row["option"]): row["dice"] for row in candidate_rows(mask, label, AFFINE, LABELS)}
    assert scores["organ", NONE] == scores["organ", LARGEST] == 0
    assert scores["organ", "0.1 ml"] == 1
    assert scores["tumour", NONE] == 1


def test_the_best_way_is_chosen_for_each_class(cases):
    choice = choose(table(cases))
    means = table(cases).groupby(["class", "option"])["dice"].mean()
    for name in LABELS[1:]:
        assert choice.options[name] != NONE
        assert means[name, choice.options[name]] == means[name].max()
    shown = choice.evidence.set_index(["class", "option"])
    assert shown["dice"].to_dict() == pytest.approx(means.to_dict())
    assert shown["chosen"].sum() == 2
    assert (shown["patients"] == 6).all()


def test_nothing_is_chosen_without_a_gain(cases):
    same = [(fold, name, label, label) for fold, name, _, label in cases]
    assert set(choose(table(same)).options.values()) == {NONE}


def test_a_patient_counts_once_however_many_scans_he_has(cases):
    own = table(cases)
    own["patient"] = ["a" if name != "c5" else "b" for name in own["case_id"]]
    shown = choose(own).evidence.set_index(["class", "option"])
    parts = own.groupby(["class", "option", "patient"])["dice"].mean().groupby(["class", "option"]).mean()
    assert shown["dice"].to_dict() == pytest.approx(parts.to_dict())
    assert (shown["patients"] == 2).all()


def test_labels_of_a_fold_have_no_part_in_its_choice(cases):
    """Held-out labels that speak for keeping every speck change the choice of the other folds, and not of their own."""
    before = choose_nested(table(cases), [0, 1, 2])
    for fold in range(3):
        # in this fold every speck is true, and nothing else
        changed = [
            (f, name, mask, np.where(mask > 0, mask, label) if f != fold else mask.copy())
            for f, name, mask, label in cases
        ]
        changed = [new if new[0] == fold else old for new, old in zip(changed, cases, strict=True)]
        after = choose_nested(table(changed), [0, 1, 2])
        assert after[fold].options == before[fold].options
        pd.testing.assert_frame_equal(after[fold].evidence, before[fold].evidence)
        for other in {0, 1, 2} - {fold}:
            assert not after[other].evidence["dice"].equals(before[other].evidence["dice"])
    every = [(f, name, mask, label if f == 0 else mask.copy()) for f, name, mask, label in cases]
    assert choose_nested(table(every), [0, 1, 2])[0].options == dict.fromkeys(LABELS[1:], NONE)
    assert choose(table(cases)).options != dict.fromkeys(LABELS[1:], NONE)


def test_choice_as_ids_of_the_configuration():
    choice = {"organ": LARGEST, "tumour": "0.1 ml"}
    assert settings_of(choice, LABELS) == {"keep_largest": [1], "remove_small": [[2, 0.1]]}
    assert settings_of(dict.fromkeys(choice, NONE), LABELS) == {"keep_largest": [], "remove_small": []}


def test_no_other_fold():
    with pytest.raises(ValueError, match="at least two folds"):
        choose_nested(table([(0, "c0", *case(0, specks=1))]), [0])


def test_grids_that_differ():
    with pytest.raises(ValueError, match="expected the same grid"):
        candidate_rows(np.zeros((4, 4, 4)), np.zeros((4, 4, 5)), AFFINE, LABELS)
