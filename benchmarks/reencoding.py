"""What do images cost that went through lossy compression once more? A network is tested on both versions of the same images.

    python -m benchmarks.reencoding --lossless FILE [--data FOLDER] [--epochs 6] [--results FOLDER]

trains one PreResNet of depth 14 on the re-encoded training images and tests it on re-encoded test images and on the true ones,
one by one the same. ``FILE`` is a numpy archive of true test images: ``images`` (uint8, N x 32 x 32 x 3), ``labels``, and
``jpeg``, for each the path of the same image below the data folder, which is --data or EXPLR_DATA. The record goes where the
book's other records lie. Images are the pairs of the comparison, so its interval is about images and not about networks; and
it says what re-encoding costs in testing, not what a network would have learned from true images.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from explr.errors import ExplrError
from explr.experiments.arms import Arm
from explr.experiments.catalogue import results_folder, step_decay
from explr.experiments.data import Dataset, cifar10
from explr.experiments.files import atomic_write
from explr.experiments.progress import progress
from explr.experiments.records import RunConfig, provenance
from explr.experiments.statistics import equivalence_test


def read_pairs(lossless: Path, folder: Path) -> tuple[Tensor, Tensor, Tensor]:
    """Return the true images, the re-encoded ones, uint8 ``(N, 3, 32, 32)``, and their labels."""
    with np.load(lossless, allow_pickle=False) as archive:
        true, labels, names = archive["images"], archive["labels"], archive["jpeg"].tolist()
    encoded = []
    for name in names:
        with Image.open(folder / name) as image:
            encoded.append(np.asarray(image.convert("RGB")))
    images = torch.from_numpy(np.stack([true, np.stack(encoded)])).permute(0, 1, 4, 2, 3).contiguous()
    return images[0], images[1], torch.from_numpy(labels).long()


@torch.no_grad()
def right(arm: Arm, images: Tensor, labels: Tensor) -> list[float]:
    """Return for each image 1 where the network is right and 0 where it is not."""
    arm.model.eval()
    batches = arm.data.normalize(images, arm.dtype).split(500)
    predictions = torch.cat([arm.model(batch).argmax(1) for batch in batches])
    arm.model.train()
    return (predictions == labels).double().tolist()


def measure(config: RunConfig, data: Dataset, true: Tensor, encoded: Tensor, labels: Tensor) -> dict[str, Any]:
    """Train a network as ``config`` says; return its accuracy on both versions of the images, and the paired difference."""
    start = time.perf_counter()
    steps = -(-len(data.train_labels) // config.batch_size)
    arm = Arm(config, data, config.epochs * steps)
    for epoch in progress(range(config.epochs)):
        arm.run_epoch(epoch)
        row, _ = arm.epoch_results(epoch)
    before, after = right(arm, encoded, labels), right(arm, true, labels)
    pixels = (true.double() - encoded.double()).square().mean((1, 2, 3)).sqrt()
    return {
        "config": asdict(config),
        "test_accuracy": row["test_accuracy"],
        "images": len(labels),
        "grey_levels": float(pixels.median()),
        "accuracy_encoded": float(np.mean(before)),
        "accuracy_true": float(np.mean(after)),
        "true_less_encoded": asdict(equivalence_test(before, after)),
        "provenance": provenance(data, data.train_labels.device, time.perf_counter() - start),
    }


def main() -> int:
    """Measure, print, write the record; return the exit status."""
    parser = argparse.ArgumentParser(description="Measure what the re-encoding of the test images costs.")
    parser.add_argument("--lossless", type=Path, required=True, help="numpy archive of true test images")
    parser.add_argument("--data", type=Path, help="image folder of the re-encoded ones (default: EXPLR_DATA)")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--results", type=Path, default=results_folder(), help="where the record goes")
    options = parser.parse_args()
    folder = options.data or os.environ.get("EXPLR_DATA")
    try:
        if not folder:
            raise ExplrError("there are no re-encoded images: name their folder with --data or EXPLR_DATA.")
        pairs = read_pairs(options.lossless, Path(folder))
        data = cifar10(folder, download=False)
        config = step_decay(options.epochs, -(-len(data.train_labels) // RunConfig().batch_size))
        record = measure(replace(config, model="preresnet", model_args={"depth": 14}), data, *pairs)
    except (ExplrError, OSError, KeyError) as error:
        print(f"reencoding: {error}", file=sys.stderr)
        return 2
    path = options.results / "re-encoding.json"
    with atomic_write(path) as file:
        file.write((json.dumps(record, indent=1) + "\n").encode())
    test = record["true_less_encoded"]
    print(f"re-encoded {100 * record['accuracy_encoded']:.1f} %, true {100 * record['accuracy_true']:.1f} %;", end=" ")
    print(f"difference, 90 %: {100 * test['low']:+.2f} to {100 * test['high']:+.2f} points; written to {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
