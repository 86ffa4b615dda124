from collections import Counter

import pytest
from scripts.folds import assign_folds


@pytest.mark.parametrize(("patients", "folds"), [(23, 5), (101, 5), (10, 2), (3, 5)])
def test_folds_are_balanced_and_seeded(patients, folds):
    names = [f"HCC_{i:03d}" for i in range(patients)]
    dealt = assign_folds(names + names[:3], folds=folds, seed=0)
    sizes = Counter(dealt.values())
    assert set(dealt) == set(names)
    assert max(sizes.values()) - min(sizes[k] for k in range(folds)) <= 1
    assert dealt == assign_folds(reversed(names), folds=folds, seed=0)
    assert patients == 3 or dealt != assign_folds(names, folds=folds, seed=1)


def test_one_fold_is_refused():
    with pytest.raises(ValueError, match="folds is 1; expected at least 2"):
        assign_folds(["a"], folds=1, seed=0)
