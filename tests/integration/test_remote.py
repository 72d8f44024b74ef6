"""Datasets behind a real S3 interface on loopback: read through the cache, by many processes, whatever happens."""

import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import s3fs
import torch

from data_pipeline.base.config import build, load
from data_pipeline.base.errors import DataError, PdepotError
from data_pipeline.base.files import read_json
from data_pipeline.config import DatasetConfig
from data_pipeline.stores import CacheConfig, open_store, read_manifest, splits, verify
from data_pipeline.stores.protocol import read_window
from launch.cli import main
from launch.datasets import make_datasets
from launch.ranks import run_ranks
from pretrain.config import PretrainConfig, RunConfig
from pretrain.job import open_training_data, prepare_pretraining
from pretrain.model import load_operator_files
from pretrain.schedule import run_mixture
from pretrain.setup import frames_out, make_loader
from tests.s3 import BUCKET, s3_server
from tests.training import MODEL, ROOT, write_dataset

URL = f"s3://{BUCKET}/data"
TRAJECTORIES, FRAMES = 6, 8


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two datasets on the disk, one trajectory a shard; their configurations lie in the folder above."""
    folder = tmp_path_factory.mktemp("here")
    files = [write_dataset(folder, "first"), write_dataset(folder, "second", ("density", "pressure"))]
    make_datasets([load(DatasetConfig, file, ["export.trajectories_per_shard=1"]) for file in files], folder / "data")
    return folder / "data"


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with s3_server() as endpoint:
        yield endpoint


@pytest.fixture
def there(here: Path, server: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[s3fs.S3FileSystem]:
    """The shards of the second dataset behind `URL`; nothing is cached yet."""
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")  # a server that is gone stays so
    monkeypatch.setenv("PDEPOT_CACHE", str(tmp_path / "cache"))
    files = s3fs.S3FileSystem(use_listings_cache=False)
    upload(files, here / "second.shards")
    yield files
    files.rm(f"{BUCKET}/data", recursive=True)


def upload(files: s3fs.S3FileSystem, dataset: Path) -> None:
    files.put(f"{dataset}/", f"{BUCKET}/data/{dataset.name}", recursive=True)


@pytest.mark.parametrize("name", ["second.shards", "second.zarr"])
def test_a_url_gives_what_the_folder_gives(name: str, here: Path, there: s3fs.S3FileSystem) -> None:
    upload(there, here / name)
    url = f"{URL}/{name}"
    assert read_manifest(url) == read_manifest(here / name)
    assert splits(url) == splits(here / name)
    assert verify(url) == []
    for split in splits(url):
        near, far = open_store(here / name, split), open_store(url, split)
        assert (far.info, far.digest, far.statistics, len(far)) == (near.info, near.digest, near.statistics, len(near))
        for number in range(len(near)):
            np.testing.assert_array_equal(read_window(far, number, 0, FRAMES), read_window(near, number, 0, FRAMES))
            assert far.parameters(number) == near.parameters(number)
    # A folder behind a file:// URL is remote, too: a network file system that is slow, for example.
    np.testing.assert_array_equal(read_window(open_store(f"file://{here / name}", "test"), 0, 1, 2), read_window(
        open_store(here / name, "test"), 0, 1, 2))  # fmt: skip


READER = """
import sys
import numpy as np
from data_pipeline.base.remote import RemoteFolder
from data_pipeline.stores import CacheConfig, open_store
from data_pipeline.stores.protocol import read_window

here, url, folder, limit, seed = sys.argv[1:]
fetched, download = [], RemoteFolder.download
RemoteFolder.download = lambda self, name, local: (fetched.append(name), download(self, name, local))
near, draw = open_store(here, "train"), np.random.default_rng(int(seed))
for cache in (CacheConfig(folder=f"{folder}/large"), CacheConfig(folder=f"{folder}/small", limit_gib=float(limit))):
    far = open_store(url, "train", cache=cache)
    for _ in range(50):
        trajectory, start = int(draw.integers(len(near))), int(draw.integers(5))
        np.testing.assert_array_equal(read_window(far, trajectory, start, 3), read_window(near, trajectory, start, 3))
        far.close()  # as if many other files had been opened meanwhile
    print(*fetched)
    fetched.clear()
"""


def test_processes_share_a_cache(here: Path, there: s3fs.S3FileSystem, tmp_path: Path) -> None:
    files = read_manifest(here / "second.shards").splits["train"].files
    limit = 2 * max(record.size for record in files.values()) + files["train.index.npy"].size

    def read(seed: int) -> list[list[str]]:
        place = [str(here / "second.shards"), f"{URL}/second.shards", str(tmp_path), repr(limit / 2**30), str(seed)]
        done = subprocess.run([sys.executable, "-c", READER, *place], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return [line.split() for line in done.stdout.splitlines()]

    with ThreadPoolExecutor(4) as pool:
        large, small = zip(*pool.map(read, range(4)), strict=True)
    assert sorted(name for mine in large for name in mine) == sorted(files), "each file once, by one of them"
    assert sum(path.stat().st_size for path in (tmp_path / "small" / "files").iterdir()) <= limit
    assert sum(map(len, small)) > len(files), "nothing had to make room"
    assert all(len(mine) <= 100 for mine in small), "more than the index and a shard for each window"
    assert not [*tmp_path.glob("*/partial/*")]


def test_an_object_that_was_changed_is_refused(here: Path, there: s3fs.S3FileSystem, tmp_path: Path) -> None:
    name = f"{URL}/second.shards/train-000002.tar"
    content = bytearray(there.cat_file(name))
    content[len(content) // 2] ^= 1
    there.pipe_file(name, bytes(content))
    store = open_store(f"{URL}/second.shards", "train")
    kept = set((tmp_path / "cache" / "files").iterdir())
    for _ in range(2):
        with pytest.raises(DataError, match=f"the remote file is damaged.*\n.*file: {name}"):
            read_window(store, 2, 0, 3)
    assert set((tmp_path / "cache" / "files").iterdir()) == kept
    read_window(store, 1, 0, 3)
    assert [problem.split(": ")[0] for problem in verify(f"{URL}/second.shards")] == [name]


@pytest.mark.parametrize("name", ["train-000002.tar", "train.index.npy", "manifest.json"])
def test_an_object_that_is_missing_or_cut_is_found_at_the_opening(name: str, there: s3fs.S3FileSystem) -> None:
    url = f"{URL}/second.shards"
    content = there.cat_file(f"{url}/{name}")
    there.pipe_file(f"{url}/{name}", content[: len(content) // 2])
    with pytest.raises(DataError, match=f"file: {url}/{name}"):
        open_store(url, "train")
    there.rm_file(f"{url}/{name}")
    with pytest.raises(DataError, match=name):
        open_store(url, "train")
    assert name in verify(url)[0]


def test_a_dataset_that_was_exported_anew_is_not_mixed_with_the_old_one(here: Path, there: s3fs.S3FileSystem) -> None:
    url = f"{URL}/second.shards"
    old = read_window(open_store(url, "test"), 0, 0, 3)
    there.rm(f"{BUCKET}/data/second.shards", recursive=True)
    there.put(f"{here / 'first.shards'}/", f"{BUCKET}/data/second.shards", recursive=True)
    new = open_store(url, "test")
    assert old.shape != read_window(new, 0, 0, 3).shape
    expected = read_window(open_store(here / "first.shards", "test"), 0, 0, 3)
    np.testing.assert_array_equal(read_window(new, 0, 0, 3), expected)


def test_a_copy_that_was_damaged_is_named(there: s3fs.S3FileSystem, tmp_path: Path) -> None:
    store = open_store(f"{URL}/second.shards", "train")
    read_window(store, 0, 0, FRAMES)
    store.close()
    record = read_manifest(f"{URL}/second.shards").splits["train"].files["train-000000.tar"]
    copy = tmp_path / "cache" / "files" / record.sha256
    content = bytearray(copy.read_bytes())
    content[len(content) // 2] ^= 1
    copy.write_bytes(content)
    with pytest.raises(DataError, match=f"damaged data.*\n.*file: {copy}") as error:
        read_window(store, 0, 0, FRAMES)
    assert "delete this copy" in str(error.value)
    store.close()
    copy.unlink()
    read_window(store, 0, 0, FRAMES)


def test_the_command_line_takes_urls(
    here: Path, there: s3fs.S3FileSystem, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["data", "validate", f"{URL}/second.shards"]) == 0
    output = capsys.readouterr().out
    assert f"{URL}/second.shards" in output
    assert "no problems found" in output
    upload(there, here / "second.zarr")
    assert main(["data", "info", f"{URL}/second.zarr", "--picture", str(tmp_path / "picture.png")]) == 0
    assert (tmp_path / "picture.png").stat().st_size
    there.rm_file(f"{URL}/second.shards/train-000001.tar")
    assert main(["data", "validate", f"{URL}/second.shards"]) == 1
    assert "train-000001.tar" in capsys.readouterr().out


def job(folder: Path, root: str, **data: Any) -> PretrainConfig:
    return build(
        PretrainConfig,
        {
            "name": "tiny",
            "output": str(folder),
            "data": {"root": root, "history": 4, "datasets": [{"config": f"{d}.yaml"} for d in ("first", "second")]}
            | data,
            "model": MODEL,
            "training": {"steps": 3, "batch_size": 8, "micro_batch": 2, "checkpoint_every": 3},
        },
    )


def first_batches(folder: Path, config: PretrainConfig, here: Path) -> list[Any]:
    run = build(RunConfig, read_json(folder / "config.json"))
    stores, operator = open_training_data(config, here.parent), load_operator_files(folder / "initial")
    mixture = run_mixture(run, run.history + frames_out(run, operator))
    with make_loader(run, mixture, stores, operator, 0, rank=0, world_size=1) as loader:
        return [next(loader) for _ in range(3)]


def test_a_job_reads_its_data_from_a_url(here: Path, there: s3fs.S3FileSystem, tmp_path: Path) -> None:
    upload(there, here / "first.shards")
    near, far = job(tmp_path / "near", str(here)), job(tmp_path / "far", f"{URL}/")
    folders = [prepare_pretraining(config, here.parent)[0] for config in (near, far)]
    assert [d["path"] for d in read_json(folders[1] / "config.json")["data"]] == [
        f"{URL}/first.shards", f"{URL}/second.shards"
    ]  # fmt: skip
    for a, b in zip(*(first_batches(f, c, here) for f, c in zip(folders, (near, far), strict=True)), strict=True):
        assert torch.equal(a.history, b.history)
        assert torch.equal(a.target, b.target)


def test_another_cache_is_no_other_configuration(here: Path, there: s3fs.S3FileSystem, tmp_path: Path) -> None:
    upload(there, here / "first.shards")
    folder = prepare_pretraining(job(tmp_path / "run", URL), here.parent)[0]
    before = (folder / "config.json").read_bytes()
    prepare_pretraining(job(tmp_path / "run", URL, cache={"folder": str(tmp_path / "elsewhere")}), here.parent)
    assert (folder / "config.json").read_bytes() == before
    assert read_json(folder / "cache.json")["folder"] == str(tmp_path / "elsewhere")


def test_a_job_whose_data_are_not_there_says_so(here: Path, there: s3fs.S3FileSystem, tmp_path: Path) -> None:
    with pytest.raises(PdepotError, match=f"file: s3://{BUCKET}/other/first.shards"):
        prepare_pretraining(job(tmp_path, f"s3://{BUCKET}/other"), here.parent)


@pytest.mark.slow
def test_ranks_train_on_remote_data_as_on_local_data(
    here: Path, there: s3fs.S3FileSystem, tmp_path: Path, uri: str
) -> None:
    upload(there, here / "first.shards")
    weights = []
    for name, root in (("near", str(here)), ("far", URL)):
        config = job(tmp_path / name, root, cache={"folder": str(tmp_path / "ranks")})
        folder = prepare_pretraining(config, here.parent)[0]
        run_ranks(folder, 2, uri)
        weights.append((folder / "final" / "model.safetensors").read_bytes())
    assert weights[0] == weights[1]
    assert list((tmp_path / "ranks" / "files").iterdir()), "the ranks did not use the cache of the configuration"


def test_what_is_cached_outlives_the_server(here: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    # Last, since this server's end is that of all: they are one, behind several addresses.
    cache, url = CacheConfig(folder=str(tmp_path / "cache")), f"{URL}/second.shards"
    with s3_server() as endpoint:
        upload(s3fs.S3FileSystem(), here / "second.shards")
        store = open_store(url, "train", cache=cache)
        expected = [read_window(store, number, 0, FRAMES) for number in range(TRAJECTORIES - 1)]
        store.close()
    for key in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(key, "test")
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    for number, window in enumerate(expected):
        np.testing.assert_array_equal(read_window(store, number, 0, FRAMES), window)
    with pytest.raises(DataError, match=f"the object store failed\n.*file: {url}/train-000005.tar"):
        read_window(store, TRAJECTORIES - 1, 0, FRAMES)
    with pytest.raises(DataError, match=f"the object store failed\n.*file: {url}/manifest.json"):
        open_store(url, "train", cache=cache)
