"""How fast windows get from the page cache into batches; part of `python -m benchmarks.data`.

All runs read windows of 11 frames out of the same trajectories (21 frames of 128 x 128, four fields, float32):

- bare: one thread calls `preadv` for each window, into the rows of one preallocated batch. This is the floor.
- read_into: the same from our two stores, checksums off and on, also by one thread.
- loader: whole batches as the training loop gets them, with so many threads.
- webdataset: the stock library streams and decodes the same tars. It can only give whole trajectories in their order;
  a window is taken of each. Counted once by windows, as random access does, and once by all bytes that it decoded.
- hdf5: a file a trajectory, (x, y, time, channel) as the reference keeps its data; each sample opens the file, reads
  the trajectory, resizes every frame bilinearly to 128 x 128, and takes 11 frames. Trajectories of 21 frames, as they
  are (PDEBench's random flows) and of four times as many points along each axis (its turbulent ones), and of 64.
"""

import os
import statistics
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import wait
from contextlib import ExitStack
from itertools import cycle, islice
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
import torch
import webdataset
from torch.nn import functional as F

from benchmarks.convert import dataset
from benchmarks.timing import interleaved, ratio
from data_pipeline.build import build_store
from data_pipeline.export import export_shards
from data_pipeline.loader import Loader, mixture_of
from data_pipeline.mixture import Mixture
from data_pipeline.stores import open_store
from data_pipeline.stores.protocol import TrajectoryStore
from data_pipeline.stores.shards import ShardStore, shard_name

HISTORY, TARGET, BATCH, WINDOWS = 10, 1, 8, 64
FRAMES = HISTORY + TARGET
THREADS = (1, 2, 4)
USED = "loader shards checked 2"
"""What training uses: the default number of threads, checksums on."""
HDF5 = {"hdf5_21": (1, 21), "hdf5_21_from_512": (4, 21), "hdf5_64": (1, 64)}
"""Times as many points along each axis, frames."""

Run = Callable[[], object]


class Window(NamedTuple):
    """Where a window lies: trajectory, first frame."""

    trajectory: int
    start: int


def make_stores(raw: Path, folder: Path) -> tuple[Path, Path]:
    """The raw file as Zarr store and as shards."""
    config = dataset(raw)
    store = build_store(config, folder)
    return Path(store), Path(export_shards(store, folder, config.export))


def windows_of(mixture: Mixture) -> Iterator[Window]:
    """The windows that a loader reads, over and over."""
    drawn = mixture.draw_many(np.arange(40 * WINDOWS))
    return cycle([Window(int(row["trajectory"]), int(row["start"])) for row in drawn])


def bare(store: ShardStore, windows: Iterator[Window], stack: ExitStack) -> Run:
    """`preadv`, and nothing else: places and descriptors are found beforehand."""
    frame = int(np.prod(store.info.space)) * len(store.info.channels) * 4
    rows = [memoryview(row) for row in np.empty((BATCH, FRAMES * frame), np.uint8)]
    files: dict[int, int] = {}
    places = []
    for window in islice(windows, 40 * WINDOWS):
        place = store._place(window.trajectory)
        if place.shard not in files:
            files[place.shard] = os.open(store.file(shard_name(store.split, place.shard)), os.O_RDONLY)
            stack.callback(os.close, files[place.shard])
        places.append((files[place.shard], place.offset + window.start * frame))
    endless = cycle(places)

    def run() -> None:
        for i, (file, offset) in enumerate(islice(endless, WINDOWS)):
            os.preadv(file, [rows[i % BATCH]], offset)

    return run


def read_into(store: TrajectoryStore, windows: Iterator[Window]) -> Run:
    """A store's own reading, without a loader."""
    batch = np.empty((BATCH, FRAMES, *store.info.space, len(store.info.channels)), np.float32)

    def run() -> None:
        for i, window in enumerate(islice(windows, WINDOWS)):
            store.read_into(window.trajectory, window.start, batch[i % BATCH])

    return run


def loading(store: TrajectoryStore, mixture: Mixture, threads: int, stack: ExitStack) -> Run:
    """Whole batches, as the training loop gets them; what was begun ahead is finished, and counts."""
    channels = len(store.info.channels)
    loader = stack.enter_context(
        Loader(
            [store], mixture, slots=[range(channels)], num_channels=channels, history=HISTORY, target=TARGET, rank=0,
            world_size=1, first_step=0, shift=False, seed=0, threads=threads,
        )
    )  # fmt: skip

    def run() -> None:
        for _ in range(WINDOWS // BATCH):
            next(loader)
        for pending in loader._pending:
            wait(pending.reads)

    return run


def streaming(store: ShardStore, samples: int) -> Run:
    """Stock WebDataset: the tars one after another, decoded."""
    tars = sorted(str(path) for path in Path(store.path).glob(f"{store.split}-*.tar"))
    batch = np.empty((BATCH, FRAMES, *store.info.space, len(store.info.channels)), np.float32)

    def run() -> None:
        for i, sample in enumerate(islice(webdataset.WebDataset(tars, shardshuffle=False).decode(), samples)):
            batch[i % BATCH] = sample["fields.npy"][:FRAMES]

    return run


def write_per_sample(folder: Path, count: int, size: int, frames: int) -> list[Path]:
    """Files of one trajectory each, as the reference keeps them."""
    folder.mkdir()
    random = np.random.default_rng(0)
    paths = [folder / f"data_{number}.hdf5" for number in range(count)]
    for path in paths:
        with h5py.File(path, "w") as file:
            file["data"] = random.standard_normal((size, size, frames, 4), np.float32)
    return paths


def per_sample(paths: list[Path], resolution: int) -> Run:
    """Open, read all, resize all, take a window."""
    batch = torch.empty(BATCH, resolution, resolution, FRAMES, 4)

    def run() -> None:
        for i, path in enumerate(paths):
            with h5py.File(path, "r") as file:
                data = torch.from_numpy(file["data"][...])
            frames = F.interpolate(data.permute(2, 3, 0, 1), size=(resolution, resolution), mode="bilinear")
            batch[i % BATCH] = frames.permute(2, 3, 0, 1)[:, :, :FRAMES]

    return run


def measure(zarr: Path, shards: Path, folder: Path, rounds: int) -> dict[str, Any]:
    """Windows a second and GB/s of each way, and the ratios that are asked for."""
    warnings.filterwarnings("ignore", module="webdataset")
    folder.mkdir()
    with ExitStack() as stack:
        stores: dict[str, TrajectoryStore] = {
            f"{path.suffix[1:]} {'checked' if checksums else 'unchecked'}": open_store(
                path, "train", checksums=checksums
            )
            for path in (shards, zarr)
            for checksums in (False, True)
        }
        for store in stores.values():
            stack.callback(store.close)
        plain = stores["shards unchecked"]
        assert isinstance(plain, ShardStore)
        resolution, frames = plain.info.space[0], plain.info.frames
        mixture = mixture_of([plain], [1], HISTORY, TARGET, 0, batch_size=BATCH, micro_batch=BATCH)
        samples = {"webdataset": min(32, len(plain))}
        runs: dict[str, Run] = {"bare": bare(plain, windows_of(mixture), stack)}
        for name, store in stores.items():
            runs[f"read_into {name}"] = read_into(store, windows_of(mixture))
            for threads in THREADS:
                runs[f"loader {name} {threads}"] = loading(store, mixture, threads, stack)
        runs["webdataset"] = streaming(plain, samples["webdataset"])
        for name, (times_size, of_frames) in HDF5.items():
            paths = write_per_sample(folder / name, BATCH // 2, times_size * resolution, of_frames)
            samples[name] = len(paths)
            runs[name] = per_sample(paths, resolution)
        seconds = interleaved(runs, rounds, warm_up=1)
    window_gb = FRAMES * resolution**2 * 4 * 4 / 1e9
    a_window = {n: [t / samples.get(n, WINDOWS) for t in times] for n, times in seconds.items()}
    return {
        "mib_a_window": window_gb * 1e9 / 2**20,
        "windows_per_s": {name: 1 / statistics.median(times) for name, times in a_window.items()},
        "gb_per_s": {name: window_gb / statistics.median(times) for name, times in a_window.items()},
        "of_bare": {
            name: ratio(a_window["bare"], times)
            for name, times in a_window.items()
            if name.startswith(("read_into", "loader"))
        },
        "times_webdataset": ratio(a_window["webdataset"], a_window[USED]),
        "times_webdataset_by_bytes": ratio(a_window["webdataset"], a_window[USED]) * FRAMES / frames,
        **{f"times_{name}": ratio(a_window[name], a_window[USED]) for name in HDF5},
    }
