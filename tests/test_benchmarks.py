import json
import sys
import time
from pathlib import Path

import pytest
import torch

from benchmarks.full_scale import DONE, FAILED, ORDER, TIME_IS_UP, Piece, main, missing, pieces, work
from explr.experiments.catalogue import EXPERIMENTS

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
    assert missing("figure5", tmp_path) == 20


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
    from benchmarks.training import captured
    from explr.experiments.data import synthetic

    captured(synthetic(512, 100).to("cuda"), arms=2)(2)  # runs, that is all
