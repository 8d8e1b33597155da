import json
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks import reencoding, training
from benchmarks.full_scale import DONE, FAILED, ORDER, TIME_IS_UP, Piece, main, missing, pieces, work
from benchmarks.training import measure, steps_of_a_round
from explr import RunConfig
from explr.experiments.catalogue import EXPERIMENTS
from explr.experiments.data import synthetic

ROOT = Path(__file__).resolve().parent.parent


def piece(folder, name, code, done=None):
    log = folder / f"{name}.log"
    return Piece(name, [sys.executable, "-c", code], log, done or log.exists)


def work_for(todo, minutes):
    return work(todo, time.monotonic() + 60 * minutes)


def test_every_experiment_has_its_turn(tmp_path):
    assert sorted(ORDER) == sorted(EXPERIMENTS)
    assert [piece.name for piece in pieces(tmp_path)] == ["tests", "benchmark", *ORDER]
    assert not any(piece.done() for piece in pieces(tmp_path))
    assert missing("figure5", tmp_path) == 25
    for seed in range(6):  # more of one arm make up for none of another
        (tmp_path / "head").mkdir(exist_ok=True)
        (tmp_path / "head" / f"frozen-seed{seed}.json").write_text("{}")
    assert missing("head", tmp_path) == 3


def test_without_a_gpu_it_refuses_and_makes_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("sys.argv", ["full_scale", "--out", str(tmp_path / "out")])
    assert main() == FAILED
    assert "no CUDA device" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_what_is_done_is_not_done_again(tmp_path):
    count = tmp_path / "count"
    todo = [piece(tmp_path, "one", f"open({str(count)!r}, 'a').write('x'); print('made')")]
    assert work_for(todo, minutes=1) == DONE
    assert work_for(todo, minutes=1) == DONE
    assert count.read_text() == "x"
    assert todo[0].log.read_text() == "made\n"


def test_a_failure_is_shown_and_does_not_stop_the_rest(tmp_path, capsys):
    todo = [piece(tmp_path, "bad", "raise SystemExit('no luck')"), piece(tmp_path, "good", "pass")]
    assert work_for(todo, minutes=1) == FAILED
    assert "no luck" in capsys.readouterr().out
    assert [piece.log.exists() for piece in todo] == [False, True]


def test_a_piece_that_ends_well_and_is_not_complete_has_failed(tmp_path, capsys):
    todo = [piece(tmp_path, "hollow", "print('nothing made')", done=lambda: False), piece(tmp_path, "good", "pass")]
    assert work_for(todo, minutes=1) == FAILED
    assert "not complete" in capsys.readouterr().out
    assert todo[1].log.exists()


def test_a_failure_is_not_forgotten_when_the_time_is_up(tmp_path):
    todo = [piece(tmp_path, "bad", "raise SystemExit(1)"), piece(tmp_path, "endless", "while True: pass")]
    assert work_for(todo, minutes=2 / 60) == FAILED


def test_time_is_kept_and_the_next_call_goes_on(tmp_path):
    todo = [piece(tmp_path, "quick", "pass"), piece(tmp_path, "endless", "while True: pass"), piece(tmp_path, "last", "pass")]
    assert work_for(todo, minutes=2 / 60) == TIME_IS_UP
    assert [piece.log.exists() for piece in todo] == [True, False, False]
    todo[1] = piece(tmp_path, "endless", "pass")
    assert work_for(todo, minutes=1) == DONE


def test_a_variant_that_fails_does_not_cost_the_others_their_times(monkeypatch):
    calls = []

    def fails_later(steps):
        calls.append(steps)
        if len(calls) > 2:
            raise RuntimeError("out of luck")

    def no_compiler():
        raise RuntimeError("Failed to find C compiler")

    make = {
        "good": lambda: lambda steps: None,
        "bad": no_compiler,
        "late": lambda: fails_later,
        "last": lambda: lambda steps: None,
    }
    rows = {row["variant"]: row for row in measure(make, steps=3, rounds=2, device=torch.device("cpu"))}
    assert list(rows) == ["good", "bad", "late", "last"]
    assert rows["bad"] == {"variant": "bad", "error": "RuntimeError: Failed to find C compiler"}
    assert rows["late"] == {"variant": "late", "error": "RuntimeError: out of luck"}
    assert all(rows[name]["seconds"] >= 0 for name in ("good", "last"))


def test_the_record_of_a_benchmark_has_what_failed_and_both_floors(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        "sys.argv", ["training", "--device", "cpu", "--steps", "2", "--rounds", "1", "--results", str(tmp_path)]
    )
    monkeypatch.setattr(training, "cifar10_or_synthetic", lambda: synthetic(512, 100))
    monkeypatch.setattr(training, "floors_of_a_step", lambda device: {"arithmetic": 0.5, "traffic": 0.25})
    monkeypatch.setattr(training, "plain", lambda *args: lambda steps: None)

    def eager(data, device, precision="float32"):
        if precision == "bfloat16":
            raise RuntimeError("no such precision\nmore")
        return lambda steps: time.sleep(0.01)

    monkeypatch.setattr(training, "eager", eager)
    training.main()
    assert "bfloat16   failed: RuntimeError: no such precision\n" in capsys.readouterr().out
    record = json.loads((tmp_path / "training-cpu.json").read_text(encoding="utf-8"))
    assert record["floors_ms"] == {"arithmetic": 500.0, "traffic": 250.0}
    plain, eager_row, failed = record["rows"]
    assert plain["ratio_to_plain"] == pytest.approx(1.0) and "error" in failed
    assert eager_row["floor_share"] == pytest.approx(500.0 / eager_row["ms_per_step"])  # the larger of the two


@pytest.mark.parametrize("images, steps", [(5_000, 39), (50_000, 390)])
def test_a_round_is_no_longer_than_an_epoch_of_the_images(images, steps):
    data = SimpleNamespace(train_labels=range(images))
    assert steps_of_a_round(None, data, torch.device("cuda")) == steps
    assert steps_of_a_round(1000, data, torch.device("cuda")) == steps
    assert steps_of_a_round(10, data, torch.device("cuda")) == 10
    assert steps_of_a_round(None, data, torch.device("cpu")) == 20


def test_the_plain_loop_has_the_arithmetic_of_the_others(monkeypatch):
    seen = []
    right = training.F.cross_entropy

    def watched(*args):
        conv = getattr(torch.backends.cudnn, "conv", None)
        tf32 = conv.fp32_precision == "tf32" if conv else torch.backends.cudnn.allow_tf32
        seen.append((tf32, torch.backends.cudnn.benchmark))
        return right(*args)

    monkeypatch.setattr(training.F, "cross_entropy", watched)
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    data = synthetic(256, 100)
    for make in (training.plain, training.eager):
        make(data, torch.device("cpu"))(1)
    assert seen == [(False, True)] * 2


def test_readme_has_the_numbers_of_the_record():
    record = json.loads((ROOT / "benchmarks/results/training-cpu.json").read_text(encoding="utf-8"))
    readme = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    table = [line.split("|")[2:-1] for line in readme if line.startswith(("| plain |", "| explr"))]
    rows = {row["variant"]: row for row in record["rows"]}
    for cells, variant in zip(table, ("plain", "eager", "bfloat16"), strict=True):
        row = rows[variant]
        numbers = (row["ms_per_step"], row["images_per_s"], row["ratio_to_plain"], row["floor_share"])
        assert [cell.strip() for cell in cells] == [f"{n:.{d}f}" for n, d in zip(numbers, (0, 0, 2, 2), strict=True)]
    assert f"{1 / rows['plain']['floor_share']:.2f} times as fast as the plain one" in " ".join(" ".join(readme).split())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_captured_variant_of_the_benchmark_runs():
    training.captured(synthetic(512, 100).to("cuda"), arms=2)(2)  # runs, that is all


@pytest.fixture
def pairs(tmp_path):
    """Sixteen images as an archive, and what JPEG makes of them."""
    data = synthetic(train=64, test=16)
    images = data.test_images.permute(0, 2, 3, 1).numpy()
    names = [f"{number}.jpg" for number in range(len(images))]
    for name, image in zip(names, images, strict=True):
        Image.fromarray(image).save(tmp_path / name, quality=30)
    np.savez(tmp_path / "true.npz", images=images, labels=data.test_labels.numpy().astype(np.uint8), jpeg=names)
    return data, reencoding.read_pairs(tmp_path / "true.npz", tmp_path)


def test_true_and_re_encoded_images_are_paired_one_by_one(pairs):
    data, (true, encoded, labels) = pairs
    assert torch.equal(true, data.test_images) and torch.equal(labels, data.test_labels)
    distance = (true[:, None].double() - encoded[None].double()).square().mean((2, 3, 4))
    assert (distance.argmin(1) == torch.arange(16)).all() and distance.diagonal().min() > 0


def test_what_re_encoding_costs_is_the_paired_difference_of_one_network_s_answers(pairs):
    data, (true, encoded, labels) = pairs
    config = RunConfig(model="preresnet", model_args={"depth": 8, "width": 4}, epochs=2, batch_size=16)
    record = reencoding.measure(config, data, true, encoded, labels)
    assert record["accuracy_true"] == record["test_accuracy"]  # here the test images are the true ones
    difference = record["true_less_encoded"]
    assert difference["difference"] == pytest.approx(record["accuracy_true"] - record["accuracy_encoded"])
    assert difference["pairs"] == record["images"] == 16 and record["grey_levels"] > 1


def test_reencoding_without_images_says_so_in_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("EXPLR_DATA", raising=False)
    for arguments, part in (([], "EXPLR_DATA"), (["--data", str(tmp_path)], "nothing.npz")):
        monkeypatch.setattr("sys.argv", ["reencoding", "--lossless", str(tmp_path / "nothing.npz"), *arguments])
        assert reencoding.main() == 2
        error = capsys.readouterr().err
        assert part in error and error.count("\n") == 1
