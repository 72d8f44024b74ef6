"""The bound that follows the gradients' norms."""

import json
import math
import random

from pretrain.clipping import QuantileClip


def test_no_bound_before_enough_norms_are_known() -> None:
    clip = QuantileClip(0.9, 100)
    for norm in range(9):
        assert clip.bound() == math.inf
        clip.add(float(norm))
    assert clip.bound() == math.inf
    clip.add(9.0)
    assert clip.bound() == 8.0  # nine of ten do not exceed it


def test_the_bound_is_the_quantile_of_the_last_norms() -> None:
    clip, seen, random_ = QuantileClip(0.75, 16), [], random.Random(0)
    for step in range(200):
        norm = round(math.exp(random_.gauss(0, 1) - step / 50), 1)  # falling, with many equal ones
        clip.add(norm)
        seen.append(norm)
        if step >= 16:
            assert clip.bound() == sorted(seen[-16:])[11]


def test_the_ends_are_the_smallest_and_the_largest() -> None:
    for quantile, expected in ((0.0, 1.0), (1.0, 3.0)):
        clip = QuantileClip(quantile, 3)
        for norm in (2.0, 3.0, 1.0):
            clip.add(norm)
        assert clip.bound() == expected


def test_a_norm_that_is_not_finite_leaves_no_trace() -> None:
    clip = QuantileClip(0.5, 4)
    for norm in (1.0, math.nan, 2.0, math.inf, 3.0, -math.inf):
        clip.add(norm)
    assert (clip.state(), clip.bound()) == ([1.0, 2.0, 3.0], 2.0)


def test_it_goes_on_from_its_state_with_the_same_bounds() -> None:
    random_ = random.Random(1)
    norms = [random_.random() * 10.0 ** random_.randint(-30, 3) for _ in range(60)]
    undisturbed, stopped, resumed = QuantileClip(0.9, 20), QuantileClip(0.9, 20), QuantileClip(0.9, 20)
    for norm in norms[:30]:
        undisturbed.add(norm)
        stopped.add(norm)
    resumed.add(1e9)  # what a roll-back finds: replaced
    resumed.load(json.loads(json.dumps(stopped.state())))
    for norm in norms[30:]:
        assert resumed.bound() == undisturbed.bound()
        undisturbed.add(norm)
        resumed.add(norm)
