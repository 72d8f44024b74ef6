"""Learning rate and momentum as pure functions of the configuration and the step.

Nothing is counted and nothing is stored: a run that goes on at any step, on any number of ranks, has the rates that
an undisturbed one has. Steps are counted from 0.

`cosine`     linear warm-up, then half a cosine to 1e-3 of the peak.
`onecycle`   half a cosine up and half a cosine down, Adam's beta1 the other way round; the published recipe, and
             step by step what `torch.optim.lr_scheduler.OneCycleLR` with two phases gives.
`wsd`        linear warm-up, stable, decay (Hu et al. 2024, MiniCPM, arXiv 2404.06395). The decay is linear or 1 - sqrt
             (Hägele et al. 2024, arXiv 2405.18392). Nothing before the decay depends on where the run ends, but the
             length of the warm-up.
`constant`   linear warm-up, then the peak.
"""

import math
from collections.abc import Iterable
from typing import Any

from pretrain.config import TrainingConfig

_COSINE_END = 1e-3


def learning_rate(training: TrainingConfig, step: int) -> float:
    """Learning rate of the update that step number `step` makes."""
    if training.schedule == "onecycle":
        first = training.learning_rate / training.div_factor
        return _one_cycle(training, step, first, training.learning_rate, first / training.final_div_factor)
    warm = _warmup_steps(training)
    if step < warm:
        return training.learning_rate * (step + 1) / warm
    if training.schedule == "cosine":
        done = (step - warm) / max(1, training.steps - warm)
        return training.learning_rate * (_COSINE_END + (1 - _COSINE_END) * 0.5 * (1 + math.cos(math.pi * done)))
    start = stable_steps(training).stop
    if step < start:
        return training.learning_rate
    done = (step - start) / (training.steps - start)  # below 1, so that the last step still moves the weights
    return training.learning_rate * (1 - (done if training.decay_shape == "linear" else math.sqrt(done)))


def betas(training: TrainingConfig, step: int) -> tuple[float, float]:
    """Adam's two betas in step number `step`."""
    beta1, beta2 = training.betas
    if training.cycle_beta1 is not None:
        beta1 = _one_cycle(training, step, beta1, training.cycle_beta1, beta1)
    return beta1, beta2


def set_rates(param_groups: Iterable[dict[str, Any]], training: TrainingConfig, step: int) -> None:
    """Give an optimizer's groups what step number `step` asks for."""
    rates = {"lr": learning_rate(training, step), "betas": betas(training, step)}
    for group in param_groups:
        group.update(rates)


def stable_steps(training: TrainingConfig) -> range:
    """The steps at the peak between warm-up and decay; none with schedules that have no such part."""
    warm = _warmup_steps(training)
    if training.schedule == "constant":
        return range(warm, max(warm, training.steps))
    if training.schedule == "wsd":
        return range(warm, max(warm, training.steps - round(training.decay * training.steps)))
    return range(0)


def _warmup_steps(training: TrainingConfig) -> int:
    return max(1, round(training.warmup * training.steps))


def _one_cycle(training: TrainingConfig, step: int, first: float, middle: float, last: float) -> float:
    """From `first` to `middle` in the warm-up's steps, on to `last` in the others, each along half a cosine."""
    # Torch puts the top at this step, which need not be a whole number, and is below 0 with hardly any warm-up.
    top, end = training.warmup * training.steps - 1, training.steps - 1
    if step <= top:
        return _half_cosine(first, middle, step / top if top else 1.0)
    return _half_cosine(middle, last, (step - top) / (end - top))


def _half_cosine(start: float, end: float, done: float) -> float:
    return end + (start - end) / 2 * (math.cos(math.pi * done) + 1)
