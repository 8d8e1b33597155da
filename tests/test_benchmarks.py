import json
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.full_scale import DONE, FAILED, ORDER, TIME_IS_UP, pieces, work
from explr.experiments import EXPERIMENTS

ROOT = Path(__file__).resolve().parent.parent


def piece(folder, name, code):
    return name, [sys.executable, "-c", code], folder / f"{name}.log"


def test_every_experiment_has_its_turn(tmp_path):
    assert sorted(ORDER) == sorted(EXPERIMENTS)
    assert [name for name, _, _ in pieces(tmp_path)] == ["tests", "benchmark", *ORDER]


def test_what_is_done_is_not_done_again(tmp_path):
    count = tmp_path / "count"
    todo = [piece(tmp_path, "one", f"open({str(count)!r}, 'a').write('x'); print('made')")]
    assert work(todo, minutes=1) == DONE
    assert work(todo, minutes=1) == DONE
    assert count.read_text() == "x"
    assert todo[0][2].read_text() == "made\n"


def test_a_failure_is_shown_and_does_not_stop_the_rest(tmp_path, capsys):
    todo = [piece(tmp_path, "bad", "raise SystemExit('no luck')"), piece(tmp_path, "good", "pass")]
    assert work(todo, minutes=1) == FAILED
    assert "no luck" in capsys.readouterr().out
    assert [log.exists() for _, _, log in todo] == [False, True]


def test_time_is_kept_and_the_next_call_goes_on(tmp_path):
    todo = [piece(tmp_path, "quick", "pass"), piece(tmp_path, "endless", "while True: pass"), piece(tmp_path, "last", "pass")]
    assert work(todo, minutes=2 / 60) == TIME_IS_UP
    assert [log.exists() for _, _, log in todo] == [True, False, False]
    todo[1] = piece(tmp_path, "endless", "pass")
    assert work(todo, minutes=1) == DONE


def test_readme_has_the_numbers_of_the_record():
    record = json.loads((ROOT / "benchmarks/results/training-cpu.json").read_text(encoding="utf-8"))
    table = [
        line.split("|")[2:-1] for line in (ROOT / "README.md").read_text(encoding="utf-8").splitlines() if "| explr" in line
    ]
    rows = {row["variant"]: row for row in record["rows"]}
    for cells, variant in zip(table, ("eager", "bfloat16"), strict=True):
        row = rows[variant]
        numbers = (row["ms_per_step"], row["images_per_s"], row["ratio_to_plain"], row["floor_share"])
        assert [cell.strip() for cell in cells] == [f"{n:.{d}f}" for n, d in zip(numbers, (0, 0, 2, 2), strict=True)]
    assert 1 / rows["plain"]["floor_share"] < 1.7 < rows["bfloat16"]["ratio_to_plain"]  # what the README concludes


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_captured_variant_of_the_benchmark_runs():
    from benchmarks.training import captured
    from explr.data import synthetic

    captured(synthetic(512, 100).to("cuda"), arms=2)(2)
    assert torch.cuda.memory_reserved() > 0
