from __future__ import annotations

import json

import numpy as np
import pytest

from youngbit import access


@pytest.mark.parametrize(
    "stream",
    [
        access.sequential(write=True, passes=2),
        access.strided(512, offset=3, region=("1M", "8M")),
        access.uniform(10, seed=1, write=0.5),
        access.zipf(1.0, accesses=10, seed=1),
        access.hot_cold(accesses=100, nr_phases=3, seed=1),
        access.hot_cold([access.Phase(5, 0.0, 1.0, 0.5)], seed=1),
    ],
)
def test_streams_are_plain_descriptions(stream):
    described = stream.to_dict()
    assert described["kind"] == stream.kind
    assert json.loads(json.dumps(described))["seed"] == stream.seed
    assert stream == stream.__class__(**stream.__dict__)


def test_regions_are_in_pages():
    assert access.sequential(region=("1M", "8k")).region == (256, 2)
    assert access.sequential(region=(0, "8k")).region == (0, 2)


def test_phases_share_the_accesses_and_stay_inside():
    stream = access.hot_cold(accesses=100, nr_phases=3, hot_fraction=0.3, seed=1)
    assert sum(phase.accesses for phase in stream.phases) == 100
    assert stream.phases[0].start == 0.0
    assert stream.phases[-1].start + stream.phases[-1].fraction == pytest.approx(1.0)


def test_arrays_slice_without_copying():
    stream = access.arrays([3, 1, 2], [True, False, True])
    part = stream[1:]
    assert len(part) == 2
    assert part.pages.tolist() == [1, 2]
    assert np.shares_memory(part.pages, stream.pages)
    assert access.arrays([1, 2], True).writes.tolist() == [True, True]
