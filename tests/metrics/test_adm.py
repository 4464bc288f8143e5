from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from imgtok.metrics.adm import read_pictures, read_reference, write_pictures, write_statistics
from imgtok.metrics.frechet import FeatureStatistics, frechet_distance


def pictures(count: int, size: int = 5) -> Tensor:
    return torch.randint(256, (count, 3, size, size + 1), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def statistics(seed: int, dimension: int = 6) -> FeatureStatistics:
    return FeatureStatistics.of(torch.randn(40, dimension, generator=torch.Generator().manual_seed(seed)))


def test_numpy_reads_the_pictures_that_were_written_in_parts(tmp_path: Path) -> None:
    images = pictures(11)
    write_pictures(tmp_path / "x.npz", images.split(4), 11)
    with np.load(tmp_path / "x.npz") as archive:
        assert archive.files == ["arr_0"]
        assert np.array_equal(archive["arr_0"], images.permute(0, 2, 3, 1).numpy())


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("batch_size", [4, 64])
def test_pictures_that_numpy_wrote_are_read_in_batches(tmp_path: Path, save, batch_size: int) -> None:
    images = pictures(11)
    save(tmp_path / "x.npz", images.permute(0, 2, 3, 1).numpy())
    batches = list(read_pictures(tmp_path / "x.npz", batch_size))
    assert len(batches) == -(-11 // batch_size) and torch.equal(torch.cat(batches), images)


def test_statistics_come_back_the_same_with_the_names_of_adm(tmp_path: Path) -> None:
    pooled, spatial = statistics(0), statistics(1, 4)
    write_statistics(tmp_path / "x.npz", pooled, spatial)
    with np.load(tmp_path / "x.npz") as archive:
        assert sorted(archive.files) == ["mu", "mu_s", "sigma", "sigma_s"]
        assert archive["sigma"].dtype == np.float64
    read = read_reference(tmp_path / "x.npz")
    assert read.pooled is not None and read.spatial is not None and read.pictures == 0
    assert abs(frechet_distance(read.pooled, pooled)) < 1e-12
    assert torch.equal(read.spatial.covariance, spatial.covariance)


def test_a_reference_may_hold_pictures_and_pooled_statistics_alone(tmp_path: Path) -> None:
    mean, covariance = np.zeros(3, np.float32), np.eye(3, dtype=np.float32)
    np.savez(tmp_path / "x.npz", mu=mean, sigma=covariance, arr_0=np.zeros((7, 2, 2, 3), np.uint8))
    read = read_reference(tmp_path / "x.npz")
    assert read.pooled is not None and read.pooled.covariance.dtype == torch.float64
    assert read.spatial is None and read.pictures == 7


def test_files_with_other_contents_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    path.write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"is no \.npz archive"):
        read_reference(path)
    np.savez(path, weights=np.zeros(3))
    with pytest.raises(ValueError, match=r"holds neither statistics \(mu, sigma\) nor pictures"):
        read_reference(path)
    with pytest.raises(ValueError, match="holds no pictures"):
        next(read_pictures(path))
    np.savez(path, np.zeros((2, 3, 4, 4), np.uint8))
    with pytest.raises(ValueError, match=r"uint8 \(2, 3, 4, 4\), expected uint8 N h w 3"):
        read_reference(path)
    np.savez(path, mu=np.array([None]), sigma=np.zeros(1))  # an array of Python objects needs unpickling
    with pytest.raises(ValueError, match="allow_pickle=False"):
        read_reference(path)


def test_what_cannot_be_written_leaves_no_file(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    with pytest.raises(ValueError, match="11 pictures were given, 12 announced"):
        write_pictures(path, pictures(11).split(4), 12)
    with pytest.raises(ValueError, match=r"\(2, 3, 9, 10\), expected uint8 b 3 h w, alike"):
        write_pictures(path, [pictures(2), pictures(2, size=9)], 4)
    with pytest.raises(ValueError, match=r"torch\.float32"):
        write_pictures(path, [pictures(2).float()], 2)
    assert list(tmp_path.iterdir()) == []
