"""CIFAR-10, or a stand-in for it, as tensors on the training device, and the random choices that a seed stands for.

Images stay uint8 until they are used. Cropping, flipping and normalising happen on the device, a batch at a time. What is
random depends on the seed and the epoch only, so two runs of the same seed see the same batches, cropped and flipped alike.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from explr.errors import ExplrError, needs
from explr.experiments.files import atomic_write, one_at_a_time, sealed, unsealed
from explr.experiments.progress import progress

with needs("experiments"):
    import platformdirs
    from PIL import Image

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
WHOLE = ("CIFAR-10", "CIFAR-10 (JPEG re-encoded)", "CIFAR-10 (image folder)")  # the names of all 60,000 images
_PAD = 4


class NoDataError(ExplrError):
    """There is no data set where one was looked for, and none could be fetched."""


@dataclass(frozen=True, eq=False)
class Dataset:
    """Labelled images, and what was read to get them.

    Attributes:
        train_images: uint8, shape ``(N, 3, H, W)``.
        train_labels: int64, shape ``(N,)``.
        test_images: uint8, shape ``(M, 3, H, W)``.
        test_labels: int64, shape ``(M,)``.
        name: the data set as records and captions must call it.
    """

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    name: str

    def __post_init__(self) -> None:
        """Refuse what cannot be trained on.

        Raises:
            ExplrError: naming the part that is of the wrong type or shape.
        """
        for split in ("train", "test"):
            images, labels = getattr(self, f"{split}_images"), getattr(self, f"{split}_labels")
            if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
                raise ExplrError(
                    f"{split}_images of {self.name}: {images.dtype} {tuple(images.shape)} is not uint8 (N, 3, H, W)."
                )
            if labels.dtype != torch.int64 or labels.shape != images.shape[:1] or not len(labels):
                raise ExplrError(
                    f"{split}_labels of {self.name}: {labels.dtype} {tuple(labels.shape)} is not int64 ({len(images)},), one "
                    "for each of at least one image."
                )
        if self.train_images.shape[1:] != self.test_images.shape[1:]:
            raise ExplrError(
                f"the training images of {self.name} have the shape {tuple(self.train_images.shape[1:])}, its test images "
                f"{tuple(self.test_images.shape[1:])}."
            )

    def to(self, device: str | torch.device) -> Dataset:
        """Return the same data on another device; itself, with all that it has computed, if it is there already."""
        if self.train_labels.to(device) is self.train_labels:
            return self
        return Dataset(
            self.train_images.to(device),
            self.train_labels.to(device),
            self.test_images.to(device),
            self.test_labels.to(device),
            self.name,
        )

    def subset(self, train: int, test: int) -> Dataset:
        """Return ``train`` and ``test`` images, spread evenly over the classes and over the images of each.

        Raises:
            ExplrError: if the data set has fewer.
        """
        if not (1 <= train <= len(self.train_labels) and 1 <= test <= len(self.test_labels)):
            raise ExplrError(
                f"subset(train={train}, test={test}) of {self.name}, which has {len(self.train_labels)} training and "
                f"{len(self.test_labels)} test images."
            )
        rows, test_rows = _spread(self.train_labels, train), _spread(self.test_labels, test)
        sizes = f", {train} training and {test} test images"
        return Dataset(
            self.train_images[rows],
            self.train_labels[rows],
            self.test_images[test_rows],
            self.test_labels[test_rows],
            name=self.name.removesuffix(sizes) + sizes,
        )

    @cached_property
    def channel_statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of each channel over the training images in units of 0..255, float64, shape (3,)."""
        histogram = torch.stack(
            [torch.bincount(channel.flatten().int(), minlength=256) for channel in self.train_images.unbind(1)]
        ).double()
        values = torch.arange(256, dtype=torch.float64, device=histogram.device)
        total = histogram.sum(1)
        mean = histogram @ values / total
        return mean, (histogram @ values**2 / total - mean**2).sqrt()

    @cached_property
    def _windows(self) -> Tensor:
        """A view of every crop of the padded training images, shape (N, 3, 9, 9, H, W); only the padded images take memory."""
        height, width = self.train_images.shape[-2:]
        padded = F.pad(self.train_images, (_PAD,) * 4)
        return padded.unfold(2, height, 1).unfold(3, width, 1)

    def normalize(self, images: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return uint8 ``images`` with mean 0 and variance 1 in each channel (statistics of the training images)."""
        mean, std = (value.to(images.device, dtype)[:, None, None] for value in self.channel_statistics)
        return (images.to(dtype) - mean) / std

    def train_batch(
        self, choices: Choices, dtype: torch.dtype = torch.float32, *, augment: bool = True
    ) -> tuple[Tensor, Tensor]:
        """Return the training batch that ``choices`` picks, normalised; with ``augment`` padded by 4, cropped and flipped.

        Returns:
            images ``(B, 3, H, W)`` and labels ``(B,)``, on the device of the data.
        """
        if augment:
            crops = self._windows[choices.index, :, choices.top, choices.left]
            images = torch.where(choices.flip[:, None, None, None], crops.flip(-1), crops)
        else:
            images = self.train_images[choices.index]
        return self.normalize(images, dtype), self.train_labels[choices.index]

    def test_batches(self, batch_size: int, dtype: torch.dtype = torch.float32) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the test images, normalised, and their labels, in order."""
        for images, labels in zip(self.test_images.split(batch_size), self.test_labels.split(batch_size), strict=True):
            yield self.normalize(images, dtype), labels


@dataclass(frozen=True, eq=False)
class Choices:
    """What is random about some training examples: which image, which crop, flipped or not; one entry an example."""

    index: Tensor
    top: Tensor
    left: Tensor
    flip: Tensor

    def to(self, device: str | torch.device) -> Choices:
        """Return the same choices on another device."""
        return Choices(self.index.to(device), self.top.to(device), self.left.to(device), self.flip.to(device))

    def __getitem__(self, rows: slice | Tensor) -> Choices:
        return Choices(self.index[rows], self.top[rows], self.left[rows], self.flip[rows])

    def copy_(self, other: Choices) -> None:
        """Overwrite these tensors, where they are, with those of ``other``."""
        for name in ("index", "top", "left", "flip"):
            getattr(self, name).copy_(getattr(other, name))

    def batches(self, batch_size: int) -> Iterator[Choices]:
        """Yield the choices in batches; the last one may be smaller."""
        return (self[begin : begin + batch_size] for begin in range(0, len(self.index), batch_size))


def epoch_choices(examples: int, seed: int, epoch: int) -> Choices:
    """Return the order, crops and flips of one epoch: a function of ``seed`` and ``epoch`` alone, on any machine.

    >>> epoch_choices(4, seed=0, epoch=0).index.sort().values
    tensor([0, 1, 2, 3])
    """
    (state,) = np.random.SeedSequence([seed, epoch]).generate_state(1, np.uint64).tolist()  # NumPy 1 shifts no uint64
    generator = torch.Generator().manual_seed(state >> 1)
    return Choices(
        index=torch.randperm(examples, generator=generator),
        top=torch.randint(2 * _PAD + 1, (examples,), generator=generator),
        left=torch.randint(2 * _PAD + 1, (examples,), generator=generator),
        flip=torch.rand(examples, generator=generator) < 0.5,
    )


def cifar10(root: str | Path | None = None, *, device: str | torch.device = "cpu", download: bool = True) -> Dataset:
    """Return CIFAR-10 (Krizhevsky 2009): 50,000 training and 10,000 test images of 32x32 pixels in 10 classes.

    Args:
        root: a folder that torchvision downloaded to, or one with ``train/<class>/*`` and ``test/<class>/*`` images. Without
            it: the environment variable EXPLR_DATA, else a folder in the user's cache.
        device: where the tensors go.
        download: fetch the data set through torchvision when it is not there.

    Raises:
        ExplrError: if there is no data set and none can be fetched, or if one of its files is damaged (the message names it).
    """
    folder = Path(root or os.environ.get("EXPLR_DATA") or platformdirs.user_cache_path("explr") / "cifar10").expanduser()
    if folder.exists() and not folder.is_dir():
        raise ExplrError(f"{folder} is a file: name the folder that holds the data set, unpacked.")
    if (folder / "data_batch_1").exists():
        raise ExplrError(f"{folder} is the inside of CIFAR-10: name the folder that holds it, {folder.resolve().parent}.")
    if (folder / "train").is_dir() or (folder / "test").is_dir():
        return _read_folders(folder).to(device)
    return _read_torchvision(folder, download).to(device)


def synthetic(train: int = 5000, test: int = 1000, *, seed: int = 0, device: str | torch.device = "cpu") -> Dataset:
    """Return a procedural stand-in for CIFAR-10: ten classes of coloured, noisy gratings; the same for the same arguments.

    A class is an orientation and a pair of colours; phase, wavelength, contrast and noise vary from image to image. It is
    learnable but not trivial, and needs no download: for tests, and for machines without the data. The theorem makes no
    mention of the data set.

    >>> synthetic(train=20, test=10).train_images.shape
    torch.Size([20, 3, 32, 32])
    """
    if train < 1 or test < 1:
        raise ExplrError(f"synthetic(train={train}, test={test}): both must be at least 1.")
    rng = np.random.default_rng(seed)
    palette = np.random.default_rng(10).uniform(-1.0, 1.0, size=(10, 2, 3))
    ys, xs = np.mgrid[0:32, 0:32] / 32.0

    def split(count: int) -> tuple[Tensor, Tensor]:
        labels = np.arange(count) % 10
        angle = (labels * np.pi / 10 + rng.normal(0, 0.08, count))[:, None, None]
        waves = rng.uniform(2.5, 4.5, count)[:, None, None]
        phase = rng.uniform(0, 2 * np.pi, count)[:, None, None]
        grating = np.sin(2 * np.pi * waves * (xs * np.cos(angle) + ys * np.sin(angle)) + phase)[:, None]
        first, second = palette[labels, 0][:, :, None, None], palette[labels, 1][:, :, None, None]
        contrast = rng.uniform(0.3, 1.0, count)[:, None, None, None]
        clean = contrast * np.where(grating > 0, first * grating, -second * grating)
        pixels = 128 + 48 * (clean + rng.normal(0, 0.6, (count, 3, 32, 32)))
        return torch.from_numpy(pixels.clip(0, 255).astype(np.uint8)), torch.from_numpy(labels.astype(np.int64))

    name = f"synthetic gratings, {train} training and {test} test images" + f", seed {seed}" * (seed != 0)
    return Dataset(*split(train), *split(test), name=name).to(device)


def find(choice: str | None = None) -> Dataset:
    """Return the images that a user has chosen: those of a folder, "synthetic" ones, or None for what there is.

    Raises:
        ExplrError: as for :func:`cifar10_or_synthetic`.

    >>> find("synthetic").name
    'synthetic gratings, 5000 training and 1000 test images'
    """
    return synthetic() if choice == "synthetic" else cifar10_or_synthetic(choice)


def cifar10_or_synthetic(root: str | Path | None = None, *, train: int | None = None, test: int | None = None) -> Dataset:
    """Return CIFAR-10, or the stand-in where no folder was named and CIFAR-10 cannot be fetched; then it prints why.

    The ``name`` of what it returns says which of the two it is.

    Args:
        root: as for :func:`cifar10`.
        train: how many training images; by default all there are.
        test: how many test images; by default all there are.

    Raises:
        ExplrError: if CIFAR-10 has fewer images than that, is damaged, or is not in the folder that ``root`` or EXPLR_DATA
            names.
    """
    try:
        images = cifar10(root)
    except NoDataError as error:
        if root or os.environ.get("EXPLR_DATA"):
            raise
        print(f"Using synthetic images, because {error}")
        images = synthetic(train or 5000, test or 1000)
    if train is None and test is None:
        return images
    return images.subset(train or len(images.train_labels), test or len(images.test_labels))


def _spread(labels: Tensor, count: int) -> Tensor:
    """Return ``count`` rows at even distances in the order of the labels."""
    return labels.argsort(stable=True)[torch.arange(count, device=labels.device) * len(labels) // count]


def _read_torchvision(folder: Path, download: bool) -> Dataset:
    with needs("experiments"):
        from torchvision.datasets import CIFAR10
        from torchvision.datasets.utils import check_integrity

    batches, lock = folder / CIFAR10.base_folder, folder / ".lock"
    try:
        if download and (lock.exists() or not batches.is_dir()):
            with one_at_a_time(lock):  # or a process would read what another has unpacked half
                if not batches.is_dir():
                    CIFAR10(folder, download=True)
        if batches.is_dir():
            for name, md5 in [*CIFAR10.train_list, *CIFAR10.test_list, (CIFAR10.meta["filename"], CIFAR10.meta["md5"])]:
                if not check_integrity(batches / name, md5):
                    raise ExplrError(
                        f"{batches / name} is missing or damaged: delete the folder {batches} to download it again."
                    )
        splits = [CIFAR10(folder, train=train) for train in (True, False)]
    except (OSError, RuntimeError) as error:
        raise NoDataError(
            f"there is no CIFAR-10 in {folder}, and it could not be downloaded ({error}). Put it there, point the environment "
            "variable EXPLR_DATA at a folder that has it, or use explr.data.synthetic()."
        ) from error
    (train_images, train_labels), (test_images, test_labels) = (
        (torch.from_numpy(split.data).permute(0, 3, 1, 2).contiguous(), torch.tensor(split.targets)) for split in splits
    )
    return Dataset(train_images, train_labels, test_images, test_labels, name=WHOLE[0])


def _read_folders(folder: Path) -> Dataset:
    """Decode the images once, and keep the pixels in the user's cache: 60,000 small files take long to open."""
    files: dict[str, list[tuple[Path, int]]] = {"train": [], "test": []}
    for split, found in files.items():
        folders = [path.name for path in (folder / split).glob("[!.]*") if path.is_dir()]
        if other := sorted({*folders} - {*CLASSES}):
            raise ExplrError(f"{folder / split} has {len(other)} folders that are no class of CIFAR-10, {other[0]} the first.")
        for label, name in enumerate(CLASSES):
            here = folder / split / name
            paths = sorted(p for p in here.iterdir() if not p.name.startswith(".")) if here.is_dir() else []
            if not paths:
                raise ExplrError(f"{here} has no images: {folder} must have train/<class>/* and test/<class>/* for {CLASSES}.")
            found += [(path, label) for path in paths]
    everything = files["train"] + files["test"]
    fingerprint = hashlib.sha256()
    for path, _ in everything:
        status = path.stat()
        fingerprint.update(f"{path.resolve()} {status.st_size} {status.st_mtime_ns}\n".encode())
    cache = platformdirs.user_cache_path("explr") / f"images-{fingerprint.hexdigest()[:16]}.pixels"
    pixels = _read_cache(cache, len(everything))
    if pixels is None:
        pixels = np.stack([_decode(path) for path, _ in progress(everything, desc=f"decoding {folder}")])
        with suppress(ExplrError), atomic_write(cache) as file:  # without a cache they are decoded again
            file.write(sealed(pixels.tobytes()))
    images = torch.from_numpy(pixels)
    labels = torch.tensor([label for _, label in everything])
    train = len(files["train"])
    jpeg = all(path.suffix.lower() in (".jpg", ".jpeg") for path, _ in everything)
    name = WHOLE[1 if jpeg else 2]
    if (train, len(everything) - train) != (50_000, 10_000):
        name += f", {train} training and {len(everything) - train} test images"
    return Dataset(images[:train], labels[:train], images[train:], labels[train:], name=name)


def _read_cache(cache: Path, count: int) -> npt.NDArray[np.uint8] | None:
    """Return the cached pixels; None if there are none, or if a byte of them has changed."""
    try:
        return np.frombuffer(bytearray(unsealed(cache.read_bytes())), np.uint8).reshape(count, 3, 32, 32)
    except (OSError, ValueError, MemoryError):
        return None


def _decode(path: Path) -> npt.NDArray[np.uint8]:
    try:
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB"))
    except Exception as error:  # pillow has no exception of its own: a damaged file gives any of several
        raise ExplrError(
            f"{path} cannot be read as an image ({error}): replace the file, or unpack the data set again."
        ) from error
    if pixels.shape != (32, 32, 3):
        raise ExplrError(f"{path} has {pixels.shape[1]}x{pixels.shape[0]} pixels; CIFAR-10 images have 32x32.")
    return pixels.transpose(2, 0, 1)
