"""How fast is a training step of PreResNet32 on CIFAR-10, against the loop that people write?

    python -m benchmarks.training [--device cpu] [--steps 20] [--rounds 3] [--results FOLDER]

prints a table and writes a record, to benchmarks/results/ by default. In each round every variant takes the same number of
steps of batch 128; the fastest round counts. A variant that fails has its error in the record, and the others their times. The
variants, in float32 without TF32 where nothing else is said, all with cuDNN's autotuning:

  plain      torchvision's transforms on PIL images, a DataLoader with workers, an eager NCHW model, loss.item() at every step
  eager      explr's step, launched operation by operation (on a CPU this is what explr.train runs)
  captured   the whole step as one CUDA graph (on CUDA this is what explr.train runs)
  compiled   the same with the network compiled by torch.compile
  bfloat16   as eager (on CUDA: as captured), with the network in bfloat16 and the weights in float32
  together   four captured arms side by side; time and images are those of all four

Memory (CUDA only) is what torch's allocator takes for a variant: network, graphs and its own copy of the images.

A floor of the time of a step in float32 is measured in the same run, and a variant's share of it given. Arithmetic: the number
of floating-point operations of the convolutions and the head, forward and back, divided by the speed of a large matrix product.
Traffic, on CUDA: counted, in bytes of the activations, for every convolution: input read and output written going forward;
output gradient read twice, input read and input gradient written going back; for every normalisation with its ReLU: input read
twice and output written; then input and output gradient read twice and input gradient written; all divided by the bandwidth of
a large copy. Both are in the record, and the floor is the larger. (On a CPU caches hold much of the traffic, and arithmetic
alone is the floor.)
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode
from torchvision import transforms

from explr.experiments.arms import Arm, side_by_side
from explr.experiments.captured import CapturedArm
from explr.experiments.data import Dataset, cifar10_or_synthetic, epoch_choices
from explr.experiments.files import atomic_write
from explr.experiments.models import preresnet32
from explr.experiments.precision import arithmetic
from explr.experiments.records import RunConfig, provenance

BATCH = 128
Variant = Callable[[int], None]  # takes so many steps


class Images(torch.utils.data.Dataset[tuple[Tensor, int]]):
    """Does with every image what torchvision.datasets.CIFAR10 does: array to PIL image to transform."""

    def __init__(self, data: Dataset) -> None:
        self.pixels = data.train_images.permute(0, 2, 3, 1).contiguous().numpy()
        self.labels = data.train_labels.tolist()
        mean, std = ((value / 255).tolist() for value in data.channel_statistics)
        steps = [transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip(), transforms.ToTensor()]
        self.transform = transforms.Compose([*steps, transforms.Normalize(mean, std)])

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.pixels[index])), self.labels[index]


def plain(data: Dataset, device: torch.device) -> Variant:
    """Return the loop that people write, with the arithmetic of the others."""
    workers = min(os.cpu_count() or 1, 8)
    options = {"num_workers": workers, "persistent_workers": True, "pin_memory": device.type == "cuda"}
    loader = DataLoader(Images(data), batch_size=BATCH, shuffle=True, drop_last=True, **options)  # type: ignore[arg-type]
    model = preresnet32().to(device)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1, momentum=0.9, weight_decay=5e-4)
    batches = iter(loader)

    def run(steps: int) -> None:
        nonlocal batches
        for _ in range(steps):
            try:
                images, labels = next(batches)
            except StopIteration:
                batches = iter(loader)
                images, labels = next(batches)
            images, labels = images.to(device, non_blocking=True), labels.to(device, non_blocking=True)
            with arithmetic("float32", autotune=True):
                loss = F.cross_entropy(model(images), labels)
                optimizer.zero_grad()
                loss.backward()
            optimizer.step()
            loss.item()

    return run


def eager(data: Dataset, device: torch.device, precision: str = "float32") -> Variant:
    """Return explr's step without a graph."""
    arm = Arm(RunConfig(batch_size=BATCH, precision=precision), data, 1_000_000)
    choices = epoch_choices(len(data.train_labels), 0, 0).to(device)
    step = 0

    def run(steps: int) -> None:
        nonlocal step
        for _ in range(steps):
            begin = step * BATCH % (len(data.train_labels) - BATCH)
            arm.step(step, choices[begin : begin + BATCH])
            step += 1

    return run


def captured(data: Dataset, *, arms: int = 1, compiled: bool = False, precision: str = "float32") -> Variant:
    """Return explr's step as a CUDA graph; an epoch is cut to the number of steps that is asked for."""
    made: dict[int, list[CapturedArm]] = {}

    def run(steps: int) -> None:
        if steps not in made:
            part = data.subset(steps * BATCH, 100)
            configs = [RunConfig(batch_size=BATCH, seed=seed, precision=precision) for seed in range(arms)]
            made[steps] = [CapturedArm(config, part, steps, compiled=compiled) for config in configs]
        for _ in side_by_side(made[steps], 0):
            pass
        torch.cuda.synchronize()

    return run


def traffic(device: torch.device) -> float:
    """Return the bytes that a step must move, counted as the head of this file says."""
    total = 0.0

    def count(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal total
        before, after = inputs[0].nbytes, output.nbytes
        total += (before + after) + (2 * after + 2 * before) if isinstance(layer, nn.Conv2d) else 3 * before + 5 * before

    model = preresnet32().to(device)
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d | nn.BatchNorm2d):
            layer.register_forward_hook(count)
    model(torch.randn(BATCH, 3, 32, 32, device=device))
    return total


def operations() -> float:
    """Return the floating-point operations of a step, forward and back."""
    model = preresnet32()
    with FlopCounterMode(display=False) as counter:
        model(torch.randn(BATCH, 3, 32, 32)).sum().backward()
    return float(counter.get_total_flops())


def fastest(action: Callable[[], Any], device: torch.device) -> float:
    """Return the seconds of the fastest of ten."""
    seconds = math.inf
    for _ in range(10):
        start = time.perf_counter()
        action()
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds = min(seconds, time.perf_counter() - start)
    return seconds


def floors_of_a_step(device: torch.device) -> dict[str, float]:
    """Return the seconds that arithmetic, and on CUDA traffic, would take in float32, as the head of this file counts them."""
    size = 8192 if device.type == "cuda" else 2048
    left, right = torch.randn(2, size, size, device=device)
    with arithmetic("float32"):
        floors = {"arithmetic": operations() * fastest(lambda: left @ right, device) / (2 * size**3)}
    if device.type == "cuda":
        source = torch.empty(2**30, dtype=torch.uint8, device=device)
        target = torch.empty_like(source)
        floors["traffic"] = traffic(device) * fastest(lambda: target.copy_(source), device) / (2 * source.nbytes)
    return floors


def measure(make: dict[str, Callable[[], Variant]], steps: int, rounds: int, device: torch.device) -> list[dict[str, Any]]:
    """Return for every variant its name and the seconds of its fastest round, or its error; on CUDA, the memory it took."""
    cuda = device.type == "cuda"
    variants: dict[str, Variant] = {}
    rows: dict[str, dict[str, Any]] = {name: {"variant": name} for name in make}
    for round_number in range(rounds + 1):  # the first only warms up
        for name, row in rows.items():
            if "error" in row:
                continue
            try:
                if cuda and not round_number:
                    torch.cuda.empty_cache()
                    row["memory_gib"] = -torch.cuda.memory_reserved() / 2**30
                if not round_number:
                    variants[name] = make[name]()
                start = time.perf_counter()
                variants[name](steps if round_number or cuda else 2)
                if cuda:
                    torch.cuda.synchronize()
                if cuda and not round_number:
                    row["memory_gib"] += torch.cuda.memory_reserved() / 2**30
                if round_number:
                    row["seconds"] = min(row.get("seconds", math.inf), time.perf_counter() - start)
            except Exception as error:  # whatever it is, the other variants have their times
                variants.pop(name, None)
                rows[name] = {"variant": name, "error": f"{type(error).__name__}: {error}"}
    return list(rows.values())


def steps_of_a_round(asked: int | None, data: Dataset, device: torch.device) -> int:
    """Return how many steps a round takes: a captured variant can take at most an epoch."""
    if device.type != "cuda":
        return asked or 20
    return min(asked or 390, len(data.train_labels) // BATCH)


def main() -> None:
    """Measure, print the table, write the record."""
    parser = argparse.ArgumentParser(description="Time training steps of PreResNet32.")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--steps", type=int, help="steps a round (default: 20 on a CPU, 390 on CUDA)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results", help="where the record goes")
    options = parser.parse_args()
    device = torch.device(options.device)
    cuda = device.type == "cuda"
    images = cifar10_or_synthetic()
    steps = steps_of_a_round(options.steps, images, device)
    data = images.to(device)
    make: dict[str, Callable[[], Variant]] = {"plain": lambda: plain(images, device), "eager": lambda: eager(data, device)}
    if cuda:
        make["captured"] = lambda: captured(data)
        make["compiled"] = lambda: captured(data, compiled=True)
        make["bfloat16"] = lambda: captured(data, precision="bfloat16")
        make["together"] = lambda: captured(data, arms=4)
    else:
        make["bfloat16"] = lambda: eager(data, device, "bfloat16")
    floors = floors_of_a_step(device)
    rows = measure(make, steps, options.rounds, device)
    seconds = {row["variant"]: row.pop("seconds") for row in rows if "seconds" in row}
    print(f"{'variant':10} {'ms/step':>9} {'images/s':>9} {'ratio':>7} {'floor':>6}" + (f" {'GiB':>6}" if cuda else ""))
    for row in rows:
        if "error" in row:
            print(f"{row['variant']:10} failed: {row['error'].splitlines()[0]}")
            continue
        arms = 4 if row["variant"] == "together" else 1
        each = seconds[row["variant"]] / steps
        row |= {"ms_per_step": 1e3 * each, "images_per_s": arms * BATCH / each}
        if "plain" in seconds:
            row["ratio_to_plain"] = row["images_per_s"] * seconds["plain"] / steps / BATCH
        row["floor_share"] = arms * max(floors.values()) / each
        times = f"{row['variant']:10} {row['ms_per_step']:9.2f} {row['images_per_s']:9.0f}"
        print(f"{times} {row.get('ratio_to_plain', math.nan):7.2f} {row['floor_share']:6.2f}", end="")
        print(f" {row['memory_gib']:6.2f}" if cuda else "")
    print("floor: " + ", ".join(f"{name} {1e3 * floor:.2f} ms" for name, floor in floors.items()))
    if not seconds:
        raise SystemExit("every variant failed: no record is written")
    origin = provenance(images, device, sum(seconds.values()), graph="captured" in seconds)
    record = {
        "rows": rows,
        "floors_ms": {name: 1e3 * floor for name, floor in floors.items()},
        "batch": BATCH,
        "steps": steps,
        "provenance": origin,
    }
    path = options.results / f"training-{device.type}.json"
    with atomic_write(path) as file:
        file.write((json.dumps(record, indent=1) + "\n").encode())
    print(f"written to {path}")


if __name__ == "__main__":
    main()
