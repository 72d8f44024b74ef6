"""Datasets that earlier versions wrote are still read, to the last bit; those of later ones are refused by name.

`tests/data/stores_v1` was written by the code of format 1.
"""

from pathlib import Path

import numpy as np
import pytest
import webdataset
import zarr

from data_pipeline.base.errors import DataError
from data_pipeline.base.files import digest, read_json, write_json
from data_pipeline.inspect import validate
from data_pipeline.stores import open_store, read_manifest, verify
from data_pipeline.stores.protocol import read_window
from data_pipeline.stores.zarr_store import ZarrStore

OLD_STORE = Path(__file__).resolve().parents[1] / "data" / "stores_v1" / "burgers_2d.zarr"
OLD_SHARDS = OLD_STORE.with_name("burgers_2d.shards")


def test_a_store_of_format_1_is_read() -> None:
    manifest = read_manifest(OLD_STORE)
    assert manifest.format_version == 1
    assert verify(OLD_STORE) == []
    for split, count in (("train", 3), ("test", 2)):
        store = open_store(OLD_STORE, split)
        assert isinstance(store, ZarrStore)
        group = zarr.open_group(OLD_STORE, path=split, mode="r")
        assert len(store) == count == group["fields"].shape[0]
        for number in range(count):
            found = store.trajectory(number)
            np.testing.assert_array_equal(found.fields, group["fields"][number])
            np.testing.assert_array_equal(found.times, group["time"][number])
            assert list(found.parameters.values()) == group["parameters"][number].tolist()
            assert found.provenance == read_json(OLD_STORE / split / "zarr.json")["attributes"]["provenance"][number]
            assert (found.static, found.mask) == (None, None)


def test_shards_of_format_1_are_read() -> None:
    for split, count in {"train": 3, "test": 2}.items():
        store = open_store(OLD_SHARDS, split)
        assert len(store) == count
        urls = sorted(str(path) for path in (OLD_SHARDS).glob(f"{split}-*.tar"))
        samples = list(webdataset.WebDataset(urls, shardshuffle=False).decode())
        zarr = open_store(OLD_STORE, split)
        for number, sample in enumerate(samples):
            window = read_window(store, number, 0, 5)
            np.testing.assert_array_equal(window, sample["fields.npy"])
            np.testing.assert_array_equal(window, read_window(zarr, number, 0, 5))
            assert store.parameters(number) == sample["meta.json"]["parameters"]
            assert store.static(number) is None
            assert store.mask(number) is None
    assert verify(OLD_SHARDS) == []


@pytest.mark.parametrize("path", [OLD_STORE, OLD_SHARDS])
def test_datasets_of_format_1_can_be_looked_at(path: Path) -> None:
    report = validate(path)
    assert report.ok, report.text()
    assert report.splits == {"train": 3, "test": 2}


@pytest.mark.parametrize("kind", ["zarr", "shards"])
def test_a_later_format_is_refused_by_its_number(tmp_path: Path, kind: str) -> None:
    content = read_json((OLD_STORE if kind == "zarr" else OLD_SHARDS) / "manifest.json")
    content.pop("checksum")
    content["format_version"] = 99
    write_json(tmp_path / "manifest.json", {**content, "checksum": digest(content)})
    with pytest.raises(DataError, match=r"99[\s\S]*update pdepot"):
        open_store(tmp_path, "train")
