"""What both stores share: the facts of one split of a committed dataset, and the check of a window."""

from collections.abc import Callable
from pathlib import Path

from data_pipeline.base.errors import DataError
from data_pipeline.base.remote import is_url
from data_pipeline.stores.manifest import Manifest
from data_pipeline.trajectory import FloatArray


class CommittedSplit:
    """One split of a dataset whose manifest has been read and whose files have been checked by `open_store`.

    Args:
        path: the dataset's folder, or its URL.
        manifest: its manifest.
        split: name of the split.
        files: gives the local path of a file of the dataset, which is then there; by default a file of `path`.
        checksums: verify the checksum of everything that is read.
    """

    def __init__(
        self,
        path: Path | str,
        manifest: Manifest,
        split: str,
        *,
        files: Callable[[str], Path] | None = None,
        checksums: bool = True,
    ) -> None:
        self.path, self.split, self.checksums = path, split, checksums
        self._files = files or Path(path).joinpath
        # A file that is open keeps its room on the disk after the cache has dropped it.
        self.open_files = 8 if files else 64
        self.info, self.digest, self.statistics = manifest.info, manifest.digest, manifest.statistics
        counts = {str(name): record.trajectories for name, record in manifest.splits.items()}
        self._trajectories = counts[split]

    def __len__(self) -> int:
        """Number of trajectories in the split."""
        return self._trajectories

    def file(self, name: str) -> Path:
        """Local path of a file of the dataset, given by its name in the manifest."""
        return self._files(name)

    def _check_trajectory(self, trajectory: int) -> None:
        if not 0 <= trajectory < len(self):
            raise IndexError(f"{self.path}: split {self.split} has {len(self)} trajectories, asked for {trajectory}")

    def _check_window(self, trajectory: int, start: int, out: FloatArray) -> None:
        """Raise IndexError or ValueError: a wrong window is the caller's mistake, not damaged data."""
        self._check_trajectory(trajectory)
        frame = (*self.info.space, len(self.info.channels))
        if out.dtype != "float32" or out.shape[1:] != frame:
            raise ValueError(f"out must be float32 (n, {', '.join(map(str, frame))}), not {out.dtype} {out.shape}")
        if not 0 <= start <= start + len(out) <= self.info.frames:
            raise IndexError(f"{self.path}: frames {start}..{start + len(out)} of {self.info.frames}")

    def _damaged(
        self, problem: object, *, file: str | Path, trajectory: int, frame: int | str, offset: int | str
    ) -> DataError:
        return DataError(
            f"damaged data: {problem}",
            file=file,
            key=f"{self.info.name}, split {self.split}, trajectory {trajectory}, frame {frame}, offset {offset}",
            remedy=f"delete this copy, and it is fetched again; `pdepot data validate {self.path}` checks the original"
            if is_url(self.path)
            else "run `pdepot data validate` on the dataset, then copy its files or build it again",
        )
