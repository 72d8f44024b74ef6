"""What a mixture is made of: datasets, and segments of a run with weights and a quarantine of their own."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from data_pipeline.base.errors import ConfigError, nearest
from data_pipeline.turns import MOST_WEIGHT


@dataclass(frozen=True)
class MixtureDataset:
    """A dataset of a mixture.

    Attributes:
        name: the dataset's name; it keys the order of its windows.
        trajectories: number of trajectories.
        windows_per_trajectory: number of start frames in each trajectory.
        space: grid points along each axis.
    """

    name: str
    trajectories: int
    windows_per_trajectory: int
    space: tuple[int, ...]

    @property
    def windows(self) -> int:
        """Number of windows, the length of an epoch of this dataset."""
        return self.trajectories * self.windows_per_trajectory

    @property
    def bucket(self) -> str:
        """Name of the spatial shape: `64x64`."""
        return "x".join(map(str, self.space))


@dataclass(frozen=True)
class Segment:
    """What is drawn from one step on, until the next segment begins.

    Attributes:
        first_step: the step.
        weights: share of the samples of each dataset by its name, integers relative to each other; a dataset that is
            not named, or has weight 0, is not drawn.
        quarantine: numbers of the trajectories that are not drawn, by the name of their dataset. Each draw of a window
            of theirs gives the window of another trajectory instead; these spread evenly over the others.
    """

    first_step: int
    weights: Mapping[str, int]
    quarantine: Mapping[str, tuple[int, ...]] = field(default_factory=dict)


def check_dataset(dataset: MixtureDataset) -> None:
    """Raise ConfigError when there is nothing to draw."""
    if dataset.windows_per_trajectory < 1 or dataset.trajectories < 1:
        raise ConfigError(
            f"dataset {dataset.name!r} has no windows",
            found=f"{dataset.trajectories} trajectories with {dataset.windows_per_trajectory} windows each",
            expected="at least one trajectory that is as long as the window",
            remedy="shorten the window, or leave the dataset out",
        )


def check_segment(segment: Segment, datasets: Mapping[str, MixtureDataset]) -> None:
    """Raise ConfigError for an unknown dataset, weights that cannot be used, or a quarantine that leaves nothing."""
    for name in [*segment.weights, *segment.quarantine]:
        if name not in datasets:
            remedy = nearest(name, list(datasets))
            raise ConfigError("the mixture has no such dataset", key=name, found=", ".join(datasets), remedy=remedy)
    for name, weight in segment.weights.items():
        if not isinstance(weight, int) or weight < 0:
            raise ConfigError(
                f"dataset {name!r} has no usable weight", key="weight", found=weight, expected="an integer",
                remedy="multiply all weights by a common factor",
            )  # fmt: skip
    total = sum(segment.weights.values())
    if total == 0:
        raise ConfigError("the mixture is empty", key="data", remedy="name at least one dataset with a weight")
    if total >= MOST_WEIGHT:
        raise ConfigError(
            "the weights are too large", key="weight", found=f"a sum of {total}",
            expected=f"a sum below {MOST_WEIGHT}", remedy="divide all weights by a common factor",
        )  # fmt: skip
    for name, barred in segment.quarantine.items():
        _check_quarantine(datasets[name], barred)


def _check_quarantine(dataset: MixtureDataset, barred: Sequence[int]) -> None:
    outside = [number for number in barred if not 0 <= number < dataset.trajectories]
    if outside:
        raise ConfigError(
            f"dataset {dataset.name!r} has no such trajectories", key="data.quarantine", found=outside,
            expected=f"numbers below {dataset.trajectories}",
        )  # fmt: skip
    if len(set(barred)) == dataset.trajectories:
        raise ConfigError(
            f"all trajectories of dataset {dataset.name!r} are in quarantine", key="data.quarantine",
            remedy="leave the dataset out of the mixture",
        )  # fmt: skip
