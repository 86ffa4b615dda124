import math

import pytest
from scripts.plan.memory import Cost, Limits, Meter, Size, find_largest, find_limits

SIZES = [Size((16 * n, 16, 16), 2) for n in range(1, 60)]


class Machine:
    """Memory and seconds that grow with the voxels; remembers what was run."""

    def __init__(self, *, base=0.6, gb=5e-5, seconds=1e-5, breaks_at=math.inf):
        self.base, self.gb, self.seconds, self.breaks_at, self.ran = base, gb, seconds, breaks_at, []

    def __call__(self, size):
        self.ran.append(size)
        if size.voxels > self.breaks_at:
            return Cost(math.inf, math.inf)
        return Cost(self.base + self.gb * size.voxels, self.seconds * size.voxels)


@pytest.mark.parametrize("limit", [1.2, 3.0, 10.0, 20.0])
def test_the_largest_size_that_fits_is_found_with_few_steps(limit):
    machine = Machine()
    best = find_largest(SIZES, machine, Limits(limit))
    assert SIZES[best] in machine.ran
    assert machine(SIZES[best]).gb <= limit
    assert best + 1 == len(SIZES) or machine(SIZES[best + 1]).gb > limit
    assert len(machine.ran) <= 6


def test_seconds_limit_it_too():
    best = find_largest(SIZES, Machine(), Limits(100.0, seconds=1.0))
    assert SIZES[best].voxels * 1e-5 <= 1.0 < SIZES[best + 1].voxels * 1e-5


def test_the_smallest_size_is_taken_where_all_are_slow():
    assert find_largest(SIZES, Machine(), Limits(100.0, seconds=1e-3)) == 0
    with pytest.raises(ValueError, match="limit 0.7 GB .* smaller network"):  # memory is no wish
        find_largest(SIZES, Machine(), Limits(0.7, seconds=1e-3))


def test_everything_fits():
    assert find_largest(SIZES, Machine(), Limits(1000.0)) == len(SIZES) - 1


def test_a_step_that_breaks_down_does_not_fit():
    machine = Machine(breaks_at=100_000)
    best = find_largest(SIZES, machine, Limits(1000.0))
    assert SIZES[best].voxels <= 100_000 < SIZES[best + 1].voxels


def test_nothing_fits():
    with pytest.raises(ValueError, match=r"16 x 16 x 16, batch 2 takes 1\.01 GB; limit 0\.7 GB .* smaller network"):
        find_largest(SIZES, Machine(), Limits(0.7))


def test_limits_are_numbers():
    for wrong in ({"memory": "8GB"}, {"memory": 0}, {"seconds": -1}, {"memory": True}):
        with pytest.raises(ValueError, match="expected a number"):
            find_limits(**wrong)
    assert find_limits(memory=3).memory == 3.0
    assert find_limits(memory=3, seconds=0).seconds is None
    assert find_limits().memory > 0


def test_steps_are_run_and_measured_in_processes_of_their_own(tiny_network):
    """The memory that is promised was read from a process that trained; a larger patch took more than the limit."""
    meter = Meter([str(tiny_network)], {"clinical_columns": ["age"]}, 50.0, progress=False)
    small, large = Size((24, 24, 24), 2), Size((48, 48, 48), 2)
    costs = meter(small), meter(large)
    assert 0.2 < costs[0].gb < costs[1].gb
    assert 0 < costs[0].seconds < costs[1].seconds
    between = Limits((costs[0].gb + costs[1].gb) / 2)
    assert [small, large][find_largest([small, large], meter, between)] == small
    assert len(meter.known) == 2  # nothing was run again
