"""The Well's layout: HDF5 files in folders of splits."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from data_pipeline.base.errors import DataError
from data_pipeline.config import SPLITS, ConvertConfig, Split
from data_pipeline.sources.hdf5 import open_hdf5
from data_pipeline.sources.layout import Header, Read
from data_pipeline.sources.well_header import SUFFIXES, Problems, WellHeader, read_header
from data_pipeline.sources.well_trajectory import read_trajectory


@dataclass(frozen=True, kw_only=True)
class _Header(Header):
    well: WellHeader


class TheWell:
    """A dataset's folder, its `data` folder, a folder that holds train, valid and test, or one file.

    Frames are read chunk by chunk as the file stores them. Fields that do not vary in time are static fields.
    """

    title = "The Well"
    expected = "data/{train,valid,test}/*.hdf5 or *.h5 with t0_fields, t1_fields or t2_fields, or one such file"

    def files(self, path: Path) -> list[Path]:
        """See `Layout.files`; those of train come first, then valid, then test."""
        if path.is_file():
            return [path] if path.suffix.lower() in SUFFIXES and _is_ours(path) else []
        for folder in (path / "data", path):
            files = [file for split in SPLITS for file in _hdf5_files(folder / split)]
            if files:
                # One whole file decides. Others may be damaged, which is for `header` to say.
                verdicts = {_is_ours(file) for file in files}
                return files if True in verdicts or False not in verdicts else []
        return []

    def survey(self, path: Path, faults: list[DataError]) -> Header | None:
        """The header without the faulty fields, None when a fault leaves nothing; `faults` gets all there are."""
        problems = Problems()
        well = read_header(path, problems)
        faults.extend(problems)
        return None if well is None else _header(well)

    def header(self, path: Path, config: ConvertConfig) -> Header:
        """See `Layout.header`."""
        faults: list[DataError] = []
        header = self.survey(path, faults)
        if faults:
            raise faults[0]
        assert header is not None
        return header

    @contextmanager
    def open(self, header: Header, config: ConvertConfig) -> Iterator[Read]:
        """See `Layout.open`."""
        assert isinstance(header, _Header)
        with open_hdf5(header.path) as reader:
            yield partial(read_trajectory, reader, header.well)


LAYOUT = TheWell()


def _hdf5_files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    # Hidden files are what copying tools leave behind.
    return sorted(f for f in folder.iterdir() if f.suffix.lower() in SUFFIXES and f.is_file() and f.name[0] != ".")


def _is_ours(file: Path) -> bool | None:
    """Whether a file has what every file of The Well has and those of no other layout; None when it is damaged."""
    try:
        with open_hdf5(file) as reader:
            groups = [f"t{order}_fields" for order in range(3)]
            return "n_trajectories" in reader.root.attrs or any(group in reader.root for group in groups)
    except DataError:
        return None


def _header(well: WellHeader) -> Header:
    split: Split | None = next((split for split in SPLITS if split == well.path.parent.name), None)
    return _Header(
        path=well.path,
        trajectories=well.trajectories,
        frames=well.frames,
        channels=well.channels,
        axes=well.axes,
        space=well.space,
        extent=well.extent,
        boundaries=well.boundaries,
        dt=well.dt,
        static_channels=well.static_channels,
        parameters=tuple(well.parameters),
        split=split,
        left_out=well.left_out,
        zero_channels=tuple(name for field in well.fields for name in field.zero_channels),
        well=well,
    )
