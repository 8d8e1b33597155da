"""What a kill, a flipped bit or a full disk can do to records and checkpoints: nothing that nobody notices."""

import dataclasses
import errno
import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from explr import ExplrError, Run, RunConfig, train
from explr.experiments import files
from explr.experiments.catalogue import EXPERIMENTS, Experiment, record_folder, run_experiment
from explr.experiments.data import synthetic
from explr.experiments.files import atomic_write, unsealed
from tools.kill_runs import litter

TINY = RunConfig(epochs=2, batch_size=20, model="preresnet", model_args={"depth": 8, "width": 4}, precision="float64")
RECORDS = sorted((Path(__file__).parents[2] / "book" / "results").glob("*/*.json"))


@pytest.fixture(scope="module")
def data():
    return synthetic(train=40, test=20)


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
    """Return a finished run and the bytes of its checkpoint after the first of its epochs."""
    path = tmp_path_factory.mktemp("run") / "run.checkpoint"
    taken = []

    def keep(content, sealed=files.sealed):
        taken.append(sealed(content))
        return taken[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("explr.experiments.training.sealed", keep)
        run = train(TINY, data, device="cpu", checkpoint=path)
    assert path.read_bytes() == taken[1]
    return run, taken[0]


def flipped(content, bit):
    changed = bytearray(content)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


# ---- kills


def test_a_kill_leaves_the_old_file_and_the_next_write_no_litter(tmp_path):
    path = tmp_path / "run.json"
    path.write_bytes(b"old")

    def die():
        with atomic_write(path) as file:
            file.write(b"ne")
            file.flush()
            os.kill(os.getpid(), signal.SIGKILL)

    killed(die)
    assert path.read_bytes() == b"old"
    assert [file.read_bytes() for file in tmp_path.iterdir() if file != path] == [b"ne"]
    with atomic_write(tmp_path / "another.json") as file:
        file.write(b"other")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["another.json", "run.json"]


def test_what_a_living_process_is_writing_is_left_to_it(tmp_path):
    with atomic_write(tmp_path / "one") as first:
        first.write(b"one")
        with atomic_write(tmp_path / "two") as second:
            second.write(b"two")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"one": "one", "two": "two"}


def test_git_ignores_what_a_kill_leaves():
    ignored = (Path(__file__).parents[2] / ".gitignore").read_text().split()
    assert f"*{files._PART}" in ignored


MOMENTS = ["checkpoint written", "checkpoint in place", "record written", "record in place"]
ONE = Experiment("one run", lambda epochs, steps: {"one": dataclasses.replace(TINY, precision="float32")}, 1)


def make(results):
    EXPERIMENTS["one"] = ONE
    images = synthetic(train=40, test=20)
    return [run for _, _, run in run_experiment("one", images, epochs=2, device="cpu", results=results)]


def make_until(moment, results):
    replace, suffix = Path.replace, ".checkpoint" if "checkpoint" in moment else ".json"

    def replace_and_die(self, target):
        if "in place" in moment or target.suffix != suffix:
            replace(self, target)
        if target.suffix == suffix:
            os.kill(os.getpid(), signal.SIGKILL)

    Path.replace = replace_and_die
    make(results)


@pytest.fixture(scope="module")
def killed_runs(tmp_path_factory):
    """Return a folder with the results of an experiment that was killed at each of the moments.

    A fresh process forks for each: this one may have threads, which do not survive a fork.
    """
    place = tmp_path_factory.mktemp("killed")
    code = "import sys, pathlib\nfrom tests.experiments.test_damage import *\nfor moment in MOMENTS:\n"
    code += "    killed(lambda: make_until(moment, pathlib.Path(sys.argv[1]) / moment))\n"
    subprocess.run([sys.executable, "-c", code, place], cwd=Path(__file__).parents[2], check=True)
    return place


@pytest.mark.parametrize("moment", MOMENTS)
def test_an_experiment_that_was_killed_ends_as_one_that_was_not(killed_runs, tmp_path, monkeypatch, moment):
    monkeypatch.setitem(EXPERIMENTS, "one", ONE)
    folder = record_folder("one", epochs=2, stand_in=True, results=killed_runs / moment)
    assert litter(folder) != []
    (plain,), (resumed,) = make(tmp_path), make(killed_runs / moment)
    assert (resumed.history, resumed.weight_norms) == (plain.history, plain.weight_norms)
    assert litter(folder) == [] and [path.name for path in folder.iterdir()] == ["one-seed0.json"]


def killed(function):
    """Run ``function`` in a process of its own, and see it killed."""
    process = multiprocessing.get_context("fork").Process(target=function)
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL


# ---- checkpoints


def test_a_flipped_bit_in_a_checkpoint_is_refused(data, tmp_path, finished):
    _, content = finished
    path = tmp_path / "run.checkpoint"
    chance = random.Random(0)
    for bit in [*(chance.randrange(8 * len(content)) for _ in range(60)), 8 * len(content) - 1, 8 * (len(content) - 71)]:
        path.write_bytes(flipped(content, bit))
        with pytest.raises(ExplrError, match=r"run\.checkpoint is not a checkpoint, or a damaged one .*: delete it"):
            train(TINY, data, device="cpu", checkpoint=path)


@pytest.mark.parametrize("length", [0, 1, 30, 1000, -1, -72, -200])
def test_a_truncated_checkpoint_is_refused(data, tmp_path, finished, length):
    path = tmp_path / "run.checkpoint"
    path.write_bytes(finished[1][:length])
    with pytest.raises(ExplrError, match="delete it"):
        train(TINY, data, device="cpu", checkpoint=path)


def test_a_checkpoint_from_before_there_were_digests_resumes(data, tmp_path, finished):
    run, content = finished
    path = tmp_path / "run.checkpoint"
    for older in (unsealed(content), content):
        path.write_bytes(older)
        assert torch.load(path, weights_only=True)["progress"]["epoch"] == 1
        assert train(TINY, data, device="cpu", checkpoint=path).history == run.history


def progress(**changes):
    return lambda content: {**content, "progress": {**content["progress"], **changes}}


@pytest.mark.parametrize(
    "change, part",
    [
        (lambda content: [1, 2], "TypeError"),
        (lambda content: 3, "TypeError"),
        (lambda content: {}, "'run'"),
        (lambda content: {"run": content["run"]}, "'progress'"),
        (lambda content: {key: content[key] for key in ("run", "progress", "model")}, "'momentum'"),
        (lambda content: {**content, "model": {}}, "Missing key"),
        (lambda content: {**content, "model": {**content["model"], "stem.weight": torch.ones(2)}}, "size mismatch"),
        (lambda content: {**content, "buffers": 3}, "."),
        (lambda content: {**content, "buffers": {"momentum_buffer": {"nowhere": torch.ones(2)}}}, "nowhere"),
        (lambda content: {**content, "buffers": {"momentum_buffer": {"stem.weight": torch.ones(1)}}}, "shape"),
        (progress(unknown=1), "unknown"),
        (progress(epoch=3), "epoch 3 of 2"),
        (progress(epoch=1.0), "epoch 1.0"),
        (progress(exponent="1"), "exponent '1'"),
        (progress(history={}), r"history\.train_loss is missing"),
        (progress(weight_norms={}), "weight_norms.stem.weight is missing"),
    ],
)
def test_a_torch_file_with_other_content_is_refused(data, tmp_path, finished, change, part):
    path = tmp_path / "run.checkpoint"
    path.write_bytes(finished[1])
    torch.save(change(torch.load(path, weights_only=True)), path)
    with pytest.raises(ExplrError, match=rf"run\.checkpoint is not a checkpoint.*{part}.*delete it"):
        train(TINY, data, device="cpu", checkpoint=path)


# ---- records


def test_a_flipped_bit_in_a_record_is_refused_or_changes_nothing(tmp_path, finished):
    run, _ = finished
    path = tmp_path / "run.json"
    run.save(path)
    content, chance, refused = path.read_bytes(), random.Random(0), 0
    for _ in range(300):
        path.write_bytes(flipped(content, chance.randrange(8 * len(content))))
        try:
            assert Run.load(path) == run  # a line feed that has become another space
        except ExplrError as error:
            assert "run.json" in str(error) and "delete it" in str(error)
            refused += 1
    assert refused > 200


def test_that_check_is_the_digest_s(tmp_path, finished):
    run, _ = finished
    path = tmp_path / "run.json"
    run.save(path)
    loss = run.history["test_loss"][0]
    path.write_text(path.read_text().replace(str(loss), str(1.001 * loss)))
    with pytest.raises(ExplrError, match="do not give its field sha256"):
        Run.load(path)


def test_records_without_a_digest_load_and_the_text_may_be_laid_out_anew(tmp_path, finished):
    assert any("sha256" not in json.loads(path.read_text()) for path in RECORDS)
    for path in RECORDS:
        Run.load(path)
    run, _ = finished
    run.save(tmp_path / "run.json")
    record = json.loads((tmp_path / "run.json").read_text())
    (tmp_path / "run.json").write_text(json.dumps(record))
    assert Run.load(tmp_path / "run.json") == run
    del record["sha256"]
    (tmp_path / "run.json").write_text(json.dumps(record))
    assert Run.load(tmp_path / "run.json") == run


@pytest.mark.parametrize(
    "place, value, part",
    [
        (("config", "regime"), "bogus", "regime='bogus'"),
        (("config", "precision"), "float33", "precision='float33'"),
        (("config", "optimizer"), "sgf", "optimizer='sgf'"),
        (("config", "schedule"), "cnstant", "no function 'cnstant'"),
        (("config", "schedule"), 1, "schedule=1"),
        (("config", "schedule_args"), {"ls": 0.1}, "does not take the arguments"),
        (("config", "model_args"), [], "model_args=[]"),
        (("config", "augment"), 1, "augment=1"),
        (("config", "epochs"), 3, "history.train_loss has 2 entries for 3 epochs"),
        (("config",), [], "config"),
        (("history",), {}, "history.train_loss is missing"),
        (("history",), [], "history is a list"),
        (("history", "test_loss"), [1.0, 1.0, 1.0], "history.test_loss has 3 entries for 2 epochs"),
        (("history", "test_loss"), [], "history.test_loss has 0 entries for 2 epochs"),
        (("history", "test_loss"), 1.0, "history.test_loss"),
        (("history", "test_loss", 1), float("nan"), "history.test_loss[1] is nan"),
        (("history", "log_lr", 0), float("-inf"), "history.log_lr[0] is -inf"),
        (("history", "log_lr", 0), "1", "history.log_lr[0] is '1'"),
        (("history", "log_lr", 0), True, "history.log_lr[0] is True"),
        (("history", "test_accuracy", 0), 1.5, "history.test_accuracy"),
        (("history", "train_loss", 0), -0.5, "history.train_loss"),
        (("weight_norms",), {}, "weight_norms"),
        (("weight_norms", "stem.weight"), [1.0], "weight_norms.stem.weight has 1 entries for 2 epochs"),
        (("weight_norms", "stem.weight", 0), -1.0, "weight_norms"),
        (("weight_norms", "stem.weight", 0), 10**400, "weight_norms.stem.weight[0] is 1000"),
        (("provenance",), {}, "provenance"),
        (("provenance", "data"), 3, "provenance"),
        (("provenance", "seconds"), float("inf"), "not JSON compliant"),
        (("surplus",), 3, "surplus"),
        (("sha256",), "0" * 64, "sha256"),
    ],
)
def test_a_record_that_no_run_gives_is_refused_and_the_field_named(tmp_path, finished, place, value, part):
    """Without its digest, as records of old are."""
    run, _ = finished
    path = tmp_path / "run.json"
    run.save(path)
    record = json.loads(path.read_text())
    del record["sha256"]
    *outer, last = place
    inside = record
    for key in outer:
        inside = inside[key]
    inside[last] = value
    path.write_text(json.dumps(record))
    with pytest.raises(ExplrError) as caught:
        Run.load(path)
    assert "run.json" in str(caught.value) and part in str(caught.value)


@pytest.mark.parametrize("value", [float("inf"), float("nan"), object()])
def test_what_json_cannot_hold_is_not_written(tmp_path, finished, value):
    run, _ = finished
    run.save(tmp_path / "run.json")
    before = (tmp_path / "run.json").read_bytes()
    with pytest.raises(ExplrError, match=r"run\.json is not written: a record is made of texts and finite numbers"):
        dataclasses.replace(run, provenance={**run.provenance, "seconds": value}).save(tmp_path / "run.json")
    assert (tmp_path / "run.json").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


# ---- a full disk


class Full:
    """A file on a disk that has room for some bytes more."""

    def __init__(self, file, room):
        self.file, self.room = file, room

    def write(self, content):
        self.file.write(content[: self.room])
        self.file.flush()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def __getattr__(self, name):
        return getattr(self.file, name)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.file.close()


@pytest.fixture
def full_disk(monkeypatch):
    begin = files._begin
    return lambda: monkeypatch.setattr(files, "_begin", lambda part: Full(begin(part), 100))


def test_a_full_disk_leaves_the_old_files_and_says_so(data, tmp_path, finished, full_disk):
    run, content = finished
    record, checkpoint = tmp_path / "run.json", tmp_path / "run.checkpoint"
    run.save(record)
    checkpoint.write_bytes(content)
    before = record.read_bytes()
    full_disk()
    for path, write in ((record, run.save), (checkpoint, lambda path: train(TINY, data, device="cpu", checkpoint=path))):
        with pytest.raises(ExplrError, match=rf"{path.name} cannot be written .*No space left.*as it was. Make room"):
            write(path)
    assert record.read_bytes() == before and checkpoint.read_bytes() == content
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run.checkpoint", "run.json"]


def test_an_experiment_on_a_full_disk_goes_on_when_there_is_room(data, tmp_path, monkeypatch, full_disk):
    one = dataclasses.replace(TINY, precision="float32")
    monkeypatch.setitem(EXPERIMENTS, "one", Experiment("one run", lambda epochs, steps: {"one": one}, 1))
    options = {"epochs": 2, "device": "cpu", "results": tmp_path}
    full_disk()
    with pytest.raises(ExplrError, match="No space left"):
        list(run_experiment("one", data, **options))
    monkeypatch.undo()
    monkeypatch.setitem(EXPERIMENTS, "one", Experiment("one run", lambda epochs, steps: {"one": one}, 1))
    assert len(list(run_experiment("one", data, **options))) == 1
    assert litter(record_folder("one", epochs=2, stand_in=True, results=tmp_path)) == []


def test_a_folder_that_cannot_be_made_is_an_error_that_names_the_file(tmp_path, finished):
    (tmp_path / "file").write_text("")
    with pytest.raises(ExplrError, match=r"run\.json cannot be written"):
        finished[0].save(tmp_path / "file" / "run.json")
