"""The reference's datasets as named configurations: each opens files of its layout, and says what is published."""

import shutil
from pathlib import Path

import h5py
import pytest

from data_pipeline.base.config import load
from data_pipeline.config import DatasetConfig
from data_pipeline.sources.protocol import open_source
from pretrain.config import PretrainConfig

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
FLOW = ("velocity_x", "velocity_y", "density", "pressure")
CFD = "pdebench/2D_CFD_Rand_M1.0_Eta0.1_Zeta0.1_periodic_128_Train.hdf5"
CFD_3D = "pdebench/3D_CFD_Rand_M1.0_Eta1e-08_Zeta1e-08_periodic_Train.hdf5"
PDEARENA = "pdearena/NavierStokes2D_train_1_0.50000_3.h5"

# Name, tiny file of the layout, channels, published train and test counts, published resolution.
TABLE = [
    ("ns2d_fno_1e-5", "fno/ns_V1e-3_v73.mat", ("vorticity",), 1000, 200, (128, 128)),
    ("ns2d_fno_1e-4", "fno/ns_V1e-3_v73.mat", ("vorticity",), 9800, 200, (128, 128)),
    ("ns2d_fno_1e-3", "fno/ns_V1e-3_v73.mat", ("vorticity",), 1000, 200, (128, 128)),
    ("ns2d_pdb_m1_eta1e-1_zeta1e-1", CFD, FLOW, 9000, 200, None),
    ("ns2d_pdb_m1_eta1e-2_zeta1e-2", CFD, FLOW, 9000, 200, None),
    ("ns2d_pdb_m1e-1_eta1e-1_zeta1e-1", CFD, FLOW, 9000, 200, None),
    ("ns2d_pdb_m1e-1_eta1e-2_zeta1e-2", CFD, FLOW, 9000, 200, None),
    ("swe_pdb", "pdebench/2D_rdb_NA_NA.h5", ("height",), 900, 60, None),
    ("dr_pdb", "pdebench/2D_diff-react_NA_NA.h5", ("activator", "inhibitor"), 900, 60, None),
    ("ns2d_pda", PDEARENA, ("tracer", "velocity_x", "velocity_y"), 6500, 650, None),
    ("ns2d_cond_pda", PDEARENA, ("tracer", "velocity_x", "velocity_y"), 3100, 200, None),
    ("cfdbench", "cfdbench", ("velocity_x", "velocity_y", "mask"), 9000, 1000, (128, 128)),
    ("ns2d_pdb_m1e-1_turb_512", CFD, FLOW, 900, 20, (128, 128)),
    ("ns3d_pdb_m1_rand", CFD_3D, ("velocity_x", "velocity_y", "velocity_z", "pressure", "density"), 90, 10, (64,) * 3),
    ("ns3d_pdb_m1_turb", CFD_3D, ("velocity_x", "velocity_y", "velocity_z", "pressure", "density"), 540, 60, None),
]  # fmt: skip


@pytest.mark.parametrize(("name", "tiny", "channels", "train", "test", "resolution"), TABLE)
def test_a_dataset_of_the_protocol_opens(
    name: str,
    tiny: str,
    channels: tuple[str, ...],
    train: int,
    test: int,
    resolution: tuple[int, ...] | None,
    shared: Path,
    tmp_path: Path,
) -> None:
    config = load(DatasetConfig, CONFIGS / "data" / "dpot" / f"{name}.yaml")
    convert = config.convert
    assert convert is not None
    assert (config.export.resolution, config.export.resampling) == (resolution, "bilinear" if resolution else "none")
    counted = {split: getattr(convert.splits, split) for split in ("train", "test")} if convert.splits else {}
    counted |= convert.limit
    assert (counted["train"], counted["test"]) == (train, test)

    small = [f"convert.path={lay_out(shared / 'data' / 'layouts' / tiny, tmp_path, convert.files)}"]
    small += ["convert.splits.train=1", "convert.splits.test=1"] if convert.splits else []
    small += ["convert.frames=4"] if name == "cfdbench" else []
    source = open_source(load(DatasetConfig, CONFIGS / "data" / "dpot" / f"{name}.yaml", small))
    assert source.info.channels == channels
    for split in ("train", "test"):
        for one in source.read(split, 0, min(1, source.splits[split])):
            assert one.fields.shape == (source.info.frames, *source.info.space, len(channels))
    assert source.splits["train"]
    assert source.splits["test"]


def lay_out(tiny: Path, folder: Path, names: tuple[str, ...]) -> Path:
    """The tiny file under the published names of a dataset's files."""
    if tiny.is_dir():
        return tiny
    if tiny.parent.name == "pdearena":
        for split in ("train", "valid", "test"):
            file = folder / tiny.name.replace("train", split)
            shutil.copy(tiny, file)
            with h5py.File(file, "a") as root:
                if split != "train":
                    root.move("train", split)
    for name in names:
        shutil.copy(tiny, folder / name)
    return folder


def test_an_epoch_of_the_mixture_is_the_published_one() -> None:
    """132,400 samples: each trajectory as often as published."""
    config = load(PretrainConfig, CONFIGS / "pretrain" / "dpot.yaml")
    datasets = config.data.load_datasets(CONFIGS / "pretrain")
    assert [d.name for d in datasets] == [row[0] for row in TABLE[:12]]
    published = (8, 2, 8, 1, 1, 1, 1, 20, 20, 1, 3, 1)
    for entry, times, row in zip(config.data.datasets, published, TABLE, strict=False):
        assert entry.weight * 100 == times * row[3]
    assert sum(entry.weight for entry in config.data.datasets) * 100 == 132_400
