"""The files of the ADM evaluator (openai/guided-diffusion): pictures and reference statistics in `.npz`.

Its scripts, and those of the many that copied them, read what is written here, and the other way round.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from imgtok.atomic import replacing
from imgtok.metrics.frechet import Gaussian, Moments

PICTURES = "arr_0"


class Reference(NamedTuple):
    """What a file of statistics holds; None for what it lacks."""

    pooled: Gaussian | None
    """`mu`, `sigma`: of pool_3, for FID."""
    spatial: Gaussian | None
    """`mu_s`, `sigma_s`: of mixed_6/conv, for sFID."""
    pictures: int
    """How many are in `arr_0`."""


def read_reference(path: str | Path) -> Reference:
    """Reads the statistics only. ValueError for a file that is no such archive or holds neither."""
    with opened(path) as archive:
        names = {name.removesuffix(".npy") for name in archive.namelist()}
        pooled = gaussian(archive, "mu", "sigma") if {"mu", "sigma"} <= names else None
        spatial = gaussian(archive, "mu_s", "sigma_s") if {"mu_s", "sigma_s"} <= names else None
        pictures = picture_shape(archive, path)[0] if PICTURES in names else 0
    if pooled is None and not pictures:
        raise ValueError(f"{path} holds neither statistics (mu, sigma) nor pictures (arr_0), but {sorted(names)}")
    return Reference(pooled, spatial, pictures)


def write_statistics(path: str | Path, pooled: Moments, spatial: Moments | None = None) -> None:
    """mu and sigma, and for sFID mu_s and sigma_s; float64."""
    arrays = {"mu": pooled.mean, "sigma": pooled.covariance}
    if spatial is not None:
        arrays |= {"mu_s": spatial.mean, "sigma_s": spatial.covariance}
    with replacing(path) as temporary, temporary.open("wb") as file:
        content: dict[str, Any] = {name: value.numpy() for name, value in arrays.items()}
        np.savez(file, **content)


def read_pictures(path: str | Path, batch_size: int = 64) -> Iterator[Tensor]:
    """The pictures of `arr_0` as uint8 b 3 h w, batch by batch: the file is never in memory as a whole."""
    with opened(path) as archive:
        if f"{PICTURES}.npy" not in archive.namelist():
            raise ValueError(f"{path} holds no pictures ({PICTURES})")
        count, *shape = picture_shape(archive, path)
        with archive.open(f"{PICTURES}.npy") as stream:
            header(stream)
            size = int(np.prod(shape))
            for start in range(0, count, batch_size):
                rows = min(batch_size, count - start)
                content = stream.read(rows * size)
                if len(content) < rows * size:
                    raise ValueError(f"{path} ends after {start} of its {count} pictures")
                batch = torch.from_numpy(np.frombuffer(content, np.uint8).copy())
                yield batch.view(rows, *shape).permute(0, 3, 1, 2).contiguous()


def write_pictures(path: str | Path, batches: Iterable[Tensor], count: int) -> None:
    """Batches uint8 b 3 h w, `count` pictures in all, as `arr_0` N h w 3. ValueError for other tensors or numbers."""
    with replacing(path) as temporary, zipfile.ZipFile(temporary, "w", allowZip64=True) as archive:
        with archive.open(f"{PICTURES}.npy", "w", force_zip64=True) as stream:
            done, shape = 0, None
            for batch in batches:
                if batch.dtype != torch.uint8 or batch.ndim != 4 or batch.shape[1:] != (shape or (3, *batch.shape[2:])):
                    raise ValueError(f"pictures are {batch.dtype} {tuple(batch.shape)}, expected uint8 b 3 h w, alike")
                if shape is None:
                    shape = batch.shape[1:]
                    layout = {"descr": "|u1", "fortran_order": False, "shape": (count, *shape[1:], 3)}
                    np.lib.format.write_array_header_1_0(stream, layout)
                stream.write(batch.cpu().permute(0, 2, 3, 1).contiguous().numpy().tobytes())
                done += len(batch)
        if done != count:
            raise ValueError(f"{done} pictures were given, {count} announced")


def opened(path: str | Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except zipfile.BadZipFile as error:
        raise ValueError(f"{path} is no .npz archive: {error}") from error


def gaussian(archive: zipfile.ZipFile, mean: str, covariance: str) -> Gaussian:
    return Gaussian(*(torch.from_numpy(array(archive, name)).double() for name in (mean, covariance)))


def array(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    with archive.open(f"{name}.npy") as stream:
        return np.lib.format.read_array(stream, allow_pickle=False)


def picture_shape(archive: zipfile.ZipFile, path: str | Path) -> tuple[int, ...]:
    """N, h, w, 3. ValueError if that is not what arr_0 is."""
    with archive.open(f"{PICTURES}.npy") as stream:
        shape, fortran, dtype = header(stream)
    if dtype != np.uint8 or fortran or len(shape) != 4 or shape[3] != 3:
        raise ValueError(f"{PICTURES} of {path} is {dtype} {shape}, expected uint8 N h w 3")
    return shape


def header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Reads the beginning of a `.npy` stream: shape, Fortran order, type."""
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    return read(stream)
