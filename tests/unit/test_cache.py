"""The cache of remote files: one copy of what is used, within its size, whatever processes do or die of."""

import hashlib
import multiprocessing
import os
import shutil
import signal
import threading
import time
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.base.errors import ConfigError, DataError
from data_pipeline.base.remote import RemoteFolder
from data_pipeline.stores.cache import CacheConfig, FileCache
from data_pipeline.stores.manifest import FileRecord

SIZE = 1000
NAMES = "abcdef"
FORK = multiprocessing.get_context("fork")  # processes that start at once: nothing here has threads when they do


def content(name: str) -> bytes:
    return (name * SIZE).encode()


def record(data: bytes) -> FileRecord:
    return FileRecord(size=len(data), sha256=hashlib.sha256(data).hexdigest())


@dataclass(frozen=True)
class Logged(RemoteFolder):
    """A remote folder that writes down what is fetched from it; a file `hold` keeps every download half done."""

    log: Path = Path()

    def download(self, name: str, local: Path) -> None:
        with self.log.open("a") as file:
            file.write(name)
        super().download(name, local)
        if self.log.with_name("hold").exists():
            with local.open("r+b") as file:
                file.truncate(SIZE // 2)
            self.log.with_name("held").touch()
            signal.pause()

    def fetched(self) -> str:
        return self.log.read_text() if self.log.exists() else ""


@pytest.fixture
def source(tmp_path: Path) -> Logged:
    """Files a .. f of 1000 bytes each, behind a URL."""
    return make_source(tmp_path)


def make_source(folder: Path) -> Logged:
    (folder / "remote").mkdir(parents=True)
    for name in NAMES:
        (folder / "remote" / name).write_bytes(content(name))
    return Logged(f"file://{folder}/remote", folder / "log")


def make_cache(folder: Path, files: float) -> FileCache:
    """A cache with room for so many of the files."""
    return FileCache(CacheConfig(folder=str(folder / "cache"), limit_gib=(files + 0.5) * SIZE / 2**30))


def get(cache: FileCache, source: RemoteFolder, name: str) -> bytes:
    """Read a file as readers do: ask again when it was dropped before it could be opened."""
    for _ in range(20):
        try:
            return cache.file(source, name, record(content(name))).read_bytes()
        except FileNotFoundError:
            continue
    raise AssertionError("dropped 20 times in a row")


def held(folder: Path) -> set[str]:
    return {path.read_text()[0] for path in (folder / "cache" / "files").iterdir()}


def test_equal_files_are_fetched_once_and_read_without_the_remote(tmp_path: Path, source: Logged) -> None:
    other = make_source(tmp_path / "other")
    assert get(make_cache(tmp_path, 9), source, "a") == content("a")
    shutil.rmtree(tmp_path / "remote")
    shutil.rmtree(tmp_path / "other" / "remote")
    assert get(make_cache(tmp_path, 9), source, "a") == get(make_cache(tmp_path, 9), other, "a") == content("a")
    assert (source.fetched(), other.fetched()) == ("a", "")


@settings(deadline=None, max_examples=40)
@given(uses=st.lists(st.sampled_from(NAMES), max_size=30), files=st.integers(1, 5))
def test_what_was_used_longest_ago_makes_room(
    uses: list[str], files: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("lru")
    source, expected, fetched = make_source(folder), OrderedDict[str, None](), ""
    for name in uses:
        assert get(make_cache(folder, files), source, name) == content(name)
        fetched += "" if name in expected else name
        expected[name] = None
        expected.move_to_end(name)
        if len(expected) > files:
            expected.popitem(last=False)
        assert held(folder) == set(expected)
    assert source.fetched() == fetched


@pytest.mark.parametrize("left", [b"", b"\0" * 20])
def test_the_order_of_use_outlives_its_counter(left: bytes, tmp_path: Path, source: Logged) -> None:
    for name in "abc":
        get(make_cache(tmp_path, 3), source, name)
    (tmp_path / "cache" / "locks" / "uses").write_bytes(left)  # as after a power failure
    for name in "ad":
        get(make_cache(tmp_path, 3), source, name)
    assert held(tmp_path) == set("cad")


def test_a_reader_keeps_what_it_has_open(tmp_path: Path, source: Logged) -> None:
    cache = make_cache(tmp_path, 1)
    with cache.file(source, "a", record(content("a"))).open("rb") as file:
        get(cache, source, "b")
        assert held(tmp_path) == {"b"}
        assert file.read() == content("a")


def test_a_damaged_remote_file_is_refused_and_not_kept(tmp_path: Path, source: Logged) -> None:
    for damage in (b"x" * SIZE, content("a")[:-1], b""):
        (tmp_path / "remote" / "a").write_bytes(damage)
        with pytest.raises(DataError, match="the remote file is damaged") as error:
            get(make_cache(tmp_path, 3), source, "a")
        assert f"file: {source.url}/a" in str(error.value)
        assert held(tmp_path) == set()
        assert not list((tmp_path / "cache" / "partial").iterdir())
    assert source.fetched() == "aa" * 3


def test_a_transfer_that_went_wrong_is_tried_again(tmp_path: Path, source: Logged) -> None:
    class Stumbling(Logged):
        def download(self, name: str, local: Path) -> None:
            super().download(name, local)
            if len(self.fetched()) == 1:
                local.write_bytes(b"x" * SIZE)

    stumbling = Stumbling(source.url, source.log)
    assert get(make_cache(tmp_path, 3), stumbling, "a") == content("a")
    assert source.fetched() == "aa"


def test_a_missing_remote_file_is_named(tmp_path: Path, source: Logged) -> None:
    (tmp_path / "remote" / "a").unlink()
    with pytest.raises(DataError, match=f"file: {source.url}/a"):
        get(make_cache(tmp_path, 3), source, "a")


def test_a_damaged_copy_is_fetched_again(tmp_path: Path, source: Logged) -> None:
    cache, expected = make_cache(tmp_path, 3), record(content("a"))
    copy = cache.file(source, "a", expected)
    for damage in (b"", content("a")[:-1], content("a") + b"x"):
        copy.write_bytes(damage)
        assert cache.file(source, "a", expected).read_bytes() == content("a")
    copy.write_bytes(b"x" * SIZE)
    assert cache.file(source, "a", expected, full=True).read_bytes() == content("a")
    copy.unlink()
    assert cache.file(source, "a", expected).read_bytes() == content("a")
    shutil.rmtree(tmp_path / "cache")
    assert cache.file(source, "a", expected).read_bytes() == content("a")


def test_a_cache_smaller_than_a_file_says_how_big_it_must_be(tmp_path: Path, source: Logged) -> None:
    get(make_cache(tmp_path, 3), source, "b")
    with pytest.raises(ConfigError, match="smaller than a file") as error:
        get(make_cache(tmp_path, 0), source, "a")
    assert "key: cache.limit_gib" in str(error.value)
    assert f"expected: {SIZE / 2**30:.3g} or more" in str(error.value)
    assert (source.fetched(), held(tmp_path)) == ("b", {"b"})


def test_a_full_disk_is_found_before_the_download(
    tmp_path: Path, source: Logged, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A disk that is really full cannot be had here.
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(SIZE, 1, SIZE - 1))  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match="no space left for the") as error:
        get(make_cache(tmp_path, 3), source, "a")
    assert f"file: {tmp_path / 'cache'}" in str(error.value)
    assert source.fetched() == ""


def test_a_disk_that_fills_up_in_the_download_is_not_the_remotes_fault(tmp_path: Path, source: Logged) -> None:
    def child() -> None:
        import resource

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (SIZE // 2, SIZE // 2))
        with pytest.raises(ConfigError, match="cache of remote data cannot be used"):
            get(make_cache(tmp_path, 3), source, "a")

    assert run(child) == 0
    assert get(make_cache(tmp_path, 3), source, "a") == content("a")
    assert not list((tmp_path / "cache" / "partial").iterdir())


def test_a_folder_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(ConfigError, match=f"file: {tmp_path / 'cache'}"):
        make_cache(tmp_path, 3)


def test_a_digest_cannot_lead_out_of_the_folder(tmp_path: Path, source: Logged) -> None:
    with pytest.raises(DataError, match="not a SHA-256"):
        make_cache(tmp_path, 3).file(source, "a", FileRecord(size=SIZE, sha256=f"../../{'a' * 58}"))


def test_the_default_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    monkeypatch.delenv("PDEPOT_CACHE", raising=False)
    assert CacheConfig().path() == Path("/xdg/pdepot/data")
    monkeypatch.setenv("PDEPOT_CACHE", "/scratch/cache")
    assert CacheConfig().path() == Path("/scratch/cache")
    assert CacheConfig(folder="/mine").path() == Path("/mine")


def test_threads_and_processes_fetch_a_file_once(tmp_path: Path, source: Logged) -> None:
    start = FORK.Barrier(4)

    def child() -> None:
        go = threading.Barrier(4, start.wait)  # all threads of all processes at once

        def ask(_: int) -> None:
            go.wait()
            for name in NAMES:
                assert get(make_cache(tmp_path, 9), source, name) == content(name)

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(ask, range(4)))

    assert run(child, 4) == 0
    assert sorted(source.fetched()) == list(NAMES)


def test_processes_that_take_each_others_room_all_read_what_they_asked_for(tmp_path: Path, source: Logged) -> None:
    def child(first: int) -> None:
        for number in range(60):
            name = NAMES[(first * 7 + number * (first + 1)) % len(NAMES)]
            assert get(make_cache(tmp_path, 2), source, name) == content(name)
            assert len(list((tmp_path / "cache" / "files").iterdir())) <= 2

    assert run(child, 4, numbered=True) == 0


def test_a_process_killed_in_a_download_leaves_nothing(tmp_path: Path, source: Logged) -> None:
    (tmp_path / "hold").touch()
    process = FORK.Process(target=lambda: get(make_cache(tmp_path, 3), source, "a"))
    process.start()
    while not (tmp_path / "held").exists():
        assert process.is_alive()
        time.sleep(0.005)
    (tmp_path / "hold").unlink()
    partial = tmp_path / "cache" / "partial"

    get(make_cache(tmp_path, 3), source, "b")
    assert len(list(partial.iterdir())) == 1, "a download that goes on is left alone"
    os.kill(process.pid or 0, signal.SIGKILL)
    process.join()
    assert len(list(partial.iterdir())) == 1
    get(make_cache(tmp_path, 3), source, "c")
    assert not list(partial.iterdir()), "what a dead process left is removed by the next download"
    assert get(make_cache(tmp_path, 3), source, "a") == content("a")
    assert held(tmp_path) == {"a", "b", "c"}


@pytest.mark.parametrize("moment", range(0, 40, 4))
def test_a_process_killed_at_any_moment_does_no_harm(moment: int, tmp_path: Path, source: Logged) -> None:
    def child() -> None:
        for number in range(1000):
            get(make_cache(tmp_path, 2), source, NAMES[number % len(NAMES)])

    process = FORK.Process(target=child)
    process.start()
    while len(source.fetched()) <= moment:
        assert process.is_alive()
    time.sleep(moment * 2e-5)  # a different operation each time
    os.kill(process.pid or 0, signal.SIGKILL)
    process.join()
    for name in NAMES:
        assert get(make_cache(tmp_path, 2), source, name) == content(name)
    assert held(tmp_path) == set(NAMES[-2:])
    assert not list((tmp_path / "cache" / "partial").iterdir())


def run(child: Any, count: int = 1, *, numbered: bool = False) -> int:
    """Run `child` in so many processes; the sum of their exit codes."""
    processes = [FORK.Process(target=child, args=(i,) if numbered else ()) for i in range(count)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    return sum(abs(process.exitcode or 0) for process in processes)
