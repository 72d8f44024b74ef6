"""Share of the frame-to-frame change at wavenumbers of 16 and above: `python docs/change_spectrum.py SHARDS ...`."""

import sys
from pathlib import Path

import numpy as np

from data_pipeline.stores import open_store
from data_pipeline.stores.protocol import read_window

for path in map(Path, sys.argv[1:]):
    store = open_store(path, "test")
    fields = np.stack([read_window(store, i, 0, store.info.frames) for i in range(len(store))])
    power = np.abs(np.fft.fft2(np.diff(fields, axis=1), axes=(2, 3))) ** 2
    k = np.fft.fftfreq(fields.shape[2], 1 / fields.shape[2])
    fine = np.hypot(k[:, None], k) >= 16
    shares = power[:, :, fine].sum((0, 1, 2)) / power.sum((0, 1, 2, 3))
    print(store.info.name, {c: f"{s:.1%}" for c, s in zip(store.info.channels, shares, strict=True)})
