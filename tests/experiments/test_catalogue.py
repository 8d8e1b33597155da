import dataclasses
import math
import subprocess
import sys

import numpy as np
import pytest

from explr import ExplrError, Run, RunConfig, __version__, convert
from explr.__main__ import main
from explr.experiments.arms import Arm
from explr.experiments.catalogue import (
    EXPERIMENTS,
    Experiment,
    _sized,
    best_records,
    is_stand_in,
    load,
    record_folder,
    run_experiment,
    run_names,
)
from explr.experiments.data import synthetic
from explr.experiments.records import _command, _commit, same_run
from explr.experiments.training import train_together


@pytest.fixture(scope="module")
def data():
    return synthetic(train=40, test=20)


@pytest.fixture
def small(monkeypatch):
    """Make every experiment train a tiny network."""
    for name, experiment in EXPERIMENTS.items():

        def arms(epochs, steps, make=experiment.arms):
            tiny = {"model": "preresnet"}
            return {
                arm: dataclasses.replace(config, **tiny, model_args={"depth": 8, "width": 4, **config.model_args})
                for arm, config in make(epochs, steps).items()
            }

        monkeypatch.setitem(EXPERIMENTS, name, dataclasses.replace(experiment, arms=arms))


def test_baseline_is_the_source_s():
    config = EXPERIMENTS["figure5"].arms(200, 391)["decay"]
    lrs = config.learning_rates(200 * 391).lr
    assert [lrs[epoch * 391] for epoch in (0, 79, 80, 119, 120, 199)] == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001, 0.001])
    assert (config.weight_decay, config.momentum, config.batch_size, config.model) == (5e-4, 0.9, 128, "preresnet32")


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_arm_has_learning_rates_from_the_first_step_to_the_last(name):
    for epochs, steps in ((200, 391), (2, 40)):
        for config in EXPERIMENTS[name].arms(epochs, steps).values():
            assert np.isfinite(config.learning_rates(epochs * steps).log_lr).all()


def test_growth_arms_grow_by_what_they_are_called():
    for growth in ("1.1", "1.481", "4"):
        log_lr = EXPERIMENTS["growth"].arms(200, 391)[f"growth-{growth}"].learning_rates(10 * 391).log_lr
        assert np.exp(log_lr[-1] - log_lr[-392]) == pytest.approx(float(growth), rel=1e-9)


def test_whole_comparisons_come_first():
    assert run_names("figure2", seeds=2) == [
        ("constant-decay", 0),
        ("constant-exponential", 0),
        ("constant-decay", 1),
        ("constant-exponential", 1),
    ]


def test_only_missing_runs_are_made(small, data, tmp_path, monkeypatch):
    options = {"seeds": 1, "epochs": 1, "device": "cpu", "results": tmp_path}
    first = list(run_experiment("figure2", data, **options))
    assert [(arm, seed) for arm, seed, _ in first] == run_names("figure2", seeds=1)
    folder = record_folder("figure2", epochs=1, stand_in=True, results=tmp_path)
    (folder / "constant-decay-seed0.json").unlink()
    trained = []

    def watched(configs, *args, **options):
        trained.extend(configs)
        return train_together(configs, *args, **options)

    monkeypatch.setattr("explr.experiments.catalogue.train_together", watched)
    second = list(run_experiment("figure2", data, **options))
    assert [config.regime for config in trained] == ["weight_decay"]
    assert [run.history for _, _, run in second] == [run.history for _, _, run in first]
    records = load("figure2", epochs=1, stand_in=True, results=tmp_path)
    assert {arm: len(runs) for arm, runs in records.items()} == {"constant-decay": 1, "constant-exponential": 1}
    assert sorted(path.suffix for path in folder.iterdir()) == [".json", ".json"]


@pytest.mark.parametrize("together", [1, 3])
def test_a_run_that_diverges_does_not_cost_the_others_their_records(small, data, tmp_path, monkeypatch, together):
    evaluate = Arm.evaluate
    monkeypatch.setattr(Arm, "evaluate", lambda self: (math.nan, 0.1) if self.config.seed == 0 else evaluate(self))
    options = {"seeds": 2, "epochs": 1, "device": "cpu", "together": together, "results": tmp_path}
    made = []
    with pytest.raises(ExplrError) as caught:
        made.extend((arm, seed) for arm, seed, _ in run_experiment("figure2", data, **options))
    lost = str(caught.value).splitlines()
    assert [line.split(":")[0] for line in lost] == [
        f"figure2-1-epochs-stand-in {arm} seed 0" for arm in ("constant-decay", "constant-exponential")
    ]
    assert all("test loss after epoch 1 is nan" in line for line in lost)
    records = load("figure2", epochs=1, stand_in=True, results=tmp_path)
    assert {arm: [run.config.seed for run in runs] for arm, runs in records.items()} == {
        "constant-decay": [1],
        "constant-exponential": [1],
    }


def test_a_run_that_another_process_is_making_is_left_to_it(small, data, tmp_path, capsys):
    options = {"seeds": 1, "epochs": 1, "device": "cpu", "results": tmp_path}
    folder = record_folder("figure2", epochs=1, stand_in=True, results=tmp_path)
    code = "import sys, pathlib\nfrom explr.experiments.files import try_lock\nlock = try_lock(pathlib.Path(sys.argv[1]))\n"
    code += "print(flush=True)\nsys.stdin.read()"
    command = [sys.executable, "-c", code, str(folder / "constant-decay-seed0.lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        assert [arm for arm, _, _ in run_experiment("figure2", data, **options)] == ["constant-exponential"]
        assert "constant-decay-seed0 is being made by another process" in capsys.readouterr().err
        other.kill()  # a dead process holds no lock
    assert [arm for arm, _, _ in run_experiment("figure2", data, **options)] == ["constant-decay", "constant-exponential"]
    assert sorted(path.suffix for path in folder.iterdir()) == [".json", ".json"]


def test_stand_ins_and_miniatures_never_lie_where_full_records_do():
    names = {record_folder("figure5", epochs=e, stand_in=s).name for e in (200, 16) for s in (False, True)}
    assert names == {"figure5", "figure5-16-epochs", "figure5-stand-in", "figure5-16-epochs-stand-in"}
    assert record_folder("figure5", precision="bfloat16").name == "figure5-bfloat16"


def test_runs_that_share_the_device_are_the_same_runs(small, data, tmp_path):
    options = {"seeds": 2, "epochs": 1, "device": "cpu"}
    alone = list(run_experiment("figure2", data, **options, results=tmp_path / "alone"))
    shared = list(run_experiment("figure2", data, **options, results=tmp_path / "shared", together=3))
    assert [(arm, seed, run.history) for arm, seed, run in shared] == [(arm, seed, run.history) for arm, seed, run in alone]


def test_small_runs_have_a_smaller_network_fewer_images_and_a_folder_of_their_own(tmp_path):
    images = synthetic(train=10_040, test=2_010)
    runs = run_experiment("head", images, seeds=1, epochs=1, small=True, device="cpu", results=tmp_path)
    arm, _, run = next(runs)
    assert run.config.model_args == {"depth": 14, "width": 8} and arm == "frozen"
    assert run.provenance["data"] == f"{images.name}, 10000 training and 2000 test images"
    assert record_folder("head", epochs=1, small=True, stand_in=True, results=tmp_path).is_dir()


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_can_be_listed_and_loaded(name, tmp_path):
    assert run_names(name)
    assert load(name, results=tmp_path) == {}


def of(run, **changes):
    return dataclasses.replace(run, config=dataclasses.replace(run.config, **changes))


def test_best_records_prefer_full_scale_then_a_tenth_of_the_length_and_say_what_they_are(small, tmp_path):
    runs, words = best_records("figure2", results=tmp_path)
    assert runs == {}
    assert all(f"`explr run figure2{options}`" in words for options in ("", " --epochs 20", " --epochs 16 --small"))
    options = {"seeds": 1, "epochs": 1, "device": "cpu", "results": tmp_path}
    made = [run for _, _, run in run_experiment("figure2", synthetic(40, 20), **options)]
    arms = ("constant-decay", "constant-exponential")
    for place, scale in (
        ({"epochs": 16, "small": True}, "a miniature, full scale is missing: preresnet"),
        ({"epochs": 20, "precision": "bfloat16"}, "one tenth of the length, full scale is missing: preresnet"),
        ({"epochs": 20}, "one tenth of the length, full scale is missing: preresnet"),
        ({}, "full scale: preresnet"),
    ):
        folder = record_folder("figure2", **place, results=tmp_path)
        before = best_records("figure2", results=tmp_path)
        made[0].save(folder / f"{arms[0]}-seed0.json")
        assert best_records("figure2", results=tmp_path) == before  # one arm cannot be compared
        made[1].save(folder / f"{arms[1]}-seed0.json")
        of(made[1], seed=1).save(folder / f"{arms[1]}-seed1.json")
        runs, words = best_records("figure2", results=tmp_path)
        assert runs == {arm: [run] for arm, run in zip(arms, made, strict=True)}  # the second seed is alone
        assert words.startswith(scale) and ", 1 seed, synthetic" in words and "--seeds 1" in words
        assert (", bfloat16, " in words) == ("--precision bfloat16" in words) == ("precision" in place)


def test_of_records_of_one_length_those_with_most_seeds_count(small, data, tmp_path):
    (_, _, decay), (_, _, growing) = run_experiment("figure2", data, seeds=1, epochs=1, device="cpu", results=tmp_path)
    for precision, seeds in {"float32": 1, "bfloat16": 2}.items():
        for seed in range(seeds):
            folder = record_folder("figure2", epochs=20, precision=precision, results=tmp_path)
            for arm, run in {"constant-decay": decay, "constant-exponential": growing}.items():
                of(run, seed=seed).save(folder / f"{arm}-seed{seed}.json")
    assert "bfloat16, 2 seeds" in best_records("figure2", results=tmp_path)[1]


def test_a_seed_of_an_optional_arm_does_not_make_records_worse(small, data, tmp_path):
    _, _, run = next(run_experiment("head", data, seeds=1, epochs=1, device="cpu", results=tmp_path))
    for precision, seeds in {"float32": 3, "bfloat16": 2}.items():
        folder = record_folder("figure5", epochs=20, precision=precision, results=tmp_path)
        for arm in ("decay", "decay-one-ulp", "texp", "exponential"):
            for seed in range(seeds):
                of(run, seed=seed).save(folder / f"{arm}-seed{seed}.json")
    of(run, seed=0).save(record_folder("figure5", epochs=20, results=tmp_path) / "decay-rescaled-seed0.json")
    assert "float32, 3 seeds (1 of decay-rescaled)" in best_records("figure5", results=tmp_path)[1]


def test_an_arm_may_have_fewer_seeds_than_another_and_an_optional_one_none(small, data, tmp_path):
    _, _, run = next(run_experiment("figure2", data, seeds=1, epochs=1, device="cpu", results=tmp_path))
    folder = record_folder("figure5", epochs=20, results=tmp_path)

    def seeds_with(*made):
        for arm, seed in made:
            of(run, seed=seed).save(folder / f"{arm}-seed{seed}.json")
        runs, words = best_records("figure5", results=tmp_path)
        return {arm: [r.config.seed for r in side] for arm, side in runs.items()}, words

    assert seeds_with(("decay", 0), ("texp", 0), ("exponential", 0))[0] == {}  # an arm is missing
    assert seeds_with(("decay-one-ulp", 1))[0] == {}  # and now there is no seed that all have
    once = {"decay": [0], "decay-one-ulp": [0], "texp": [0], "exponential": [0]}
    runs, words = seeds_with(("decay-one-ulp", 0), ("decay", 5))  # what has nothing to be paired with is left out
    assert runs == once and ", 1 seed, " in words and "--seeds 1`" in words
    runs, words = seeds_with(("decay", 1), ("texp", 1))
    assert runs == {**once, "decay": [0, 1], "decay-one-ulp": [0, 1], "texp": [0, 1]}
    assert ", 2 seeds (1 of exponential), " in words and "--seeds 2`" in words
    runs, words = seeds_with(("exponential", 1), ("decay-rescaled", 1))
    assert runs["decay-rescaled"] == [1] and ", 2 seeds (1 of decay-rescaled), " in words


def test_a_run_that_is_an_arm_of_two_experiments_is_made_once(small, data, tmp_path, capsys, monkeypatch):
    options = {"seeds": 1, "epochs": 1, "device": "cpu", "results": tmp_path}
    decay = next(run for arm, _, run in run_experiment("figure5", data, **options, only={("decay", 0)}))
    made = dict((arm, run) for arm, _, run in run_experiment("head", data, **options))
    assert made["frozen"] == decay and made["trained"].history != decay.history
    assert "frozen-seed0 is the run figure5-1-epochs-stand-in/decay-seed0" in capsys.readouterr().err
    folder = record_folder("head", epochs=1, stand_in=True, results=tmp_path)
    assert Run.load(folder / "frozen-seed0.json") == decay
    assert sorted(file.name for file in folder.iterdir()) == ["frozen-seed0.json", "trained-seed0.json"]


def test_a_run_on_other_images_is_not_the_same_run(small, data, tmp_path):
    options = {"seeds": 1, "epochs": 1, "device": "cpu", "results": tmp_path}
    other = next(run for _, _, run in run_experiment("figure5", synthetic(48, 20), **options, only={("decay", 0)}))
    made = {arm: run for arm, _, run in run_experiment("head", data, **options)}
    assert made["frozen"].provenance["data"] == data.name != other.provenance["data"]


def test_runs_that_wait_are_given_back_when_the_loop_is_left(small, data, tmp_path):
    options = {"seeds": 2, "epochs": 1, "device": "cpu", "results": tmp_path, "together": 4}
    folder = record_folder("figure2", epochs=1, stand_in=True, results=tmp_path)
    next(made := run_experiment("figure2", data, **{**options, "seeds": 1}))
    made.close()
    assert [path.name for path in folder.glob("*.[jl]*")] == ["constant-decay-seed0.json"]  # no lock
    foreign = next(run_experiment("head", synthetic(48, 20), **{**options, "seeds": 1}))[2]
    foreign.save(folder / "constant-exponential-seed1.json")
    for _ in range(2):
        with pytest.raises(ExplrError, match="record of another run"):
            list(run_experiment("figure2", data, **options))
    assert list(folder.glob("*.lock")) == []


@pytest.mark.parametrize("name", ["CIFAR-100", "CIFAR-10 (image folder), 20 training and 10 test images", "noise"])
def test_only_all_of_cifar10_makes_records_of_the_book(name, data):
    assert is_stand_in(dataclasses.replace(data, name=name))
    assert not is_stand_in(dataclasses.replace(data, name="CIFAR-10 (JPEG re-encoded)"))


def test_of_two_experiments_the_best_records_are_those_that_both_have(small, data, tmp_path):
    _, _, run = next(run_experiment("head", data, seeds=1, epochs=1, device="cpu", results=tmp_path))
    assert "`explr run figure2` and `explr run head` makes" in best_records("figure2", "head", results=tmp_path)[1]
    for place, seeds in (({"epochs": 16, "small": True}, 3), ({"epochs": 20}, 2), ({}, 1)):
        for name in ("figure2", "head")[: 1 if place == {} else 2]:
            for arm in EXPERIMENTS[name].arms(1, 1):
                for seed in range(seeds - (name == "head")):
                    of(run, seed=seed).save(record_folder(name, **place, results=tmp_path) / f"{arm}-seed{seed}.json")
    assert best_records("figure2", results=tmp_path)[1].startswith("full scale: ")
    runs, words = best_records("figure2", "head", results=tmp_path)
    assert words.startswith("one tenth of the length") and ", 2 seeds (1 of frozen, 1 of trained), " in words
    assert "`explr run figure2 --epochs 20 --seeds 2` and `explr run head --epochs 20 --seeds 2`" in words
    assert {arm: [r.config.seed for r in side] for arm, side in runs.items()} == {
        "constant-decay": [0, 1],
        "constant-exponential": [0, 1],
        "frozen": [0],
        "trained": [0],
    }


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_record_of_the_book_is_the_run_that_its_place_says(name):
    """So that its command finds it there, and no arm is changed behind its records' back."""
    found = 0
    for epochs, steps, small in ((200, 391, False), (20, 391, False), (16, 79, True)):
        arms = _sized(EXPERIMENTS[name].arms(epochs, steps), small, "float32")
        for path in record_folder(name, epochs=epochs, small=small).glob("*.json"):
            arm, _, seed = path.stem.rpartition("-seed")
            config = dataclasses.replace(arms[arm], seed=int(seed))
            assert same_run(Run.load(path).config, config), f"{path} is of another run than {config}"
            found += 1
    assert found


def test_a_number_that_another_machine_rounds_otherwise_is_of_the_same_run(small, data, tmp_path):
    options = {"seeds": 1, "epochs": 1, "device": "cpu", "results": tmp_path}
    (_, _, run), *_ = run_experiment("figure2", data, **options)
    folder = record_folder("figure2", epochs=1, stand_in=True, results=tmp_path)
    of(run, weight_decay=math.nextafter(run.config.weight_decay, 1)).save(folder / "constant-decay-seed0.json")
    assert len(list(run_experiment("figure2", data, **options))) == 2
    of(run, weight_decay=run.config.weight_decay * (1 + 1e-9)).save(folder / "constant-decay-seed0.json")
    with pytest.raises(ExplrError, match="record of another run"):
        list(run_experiment("figure2", data, **options))


def test_an_experiment_that_diverges_does_not_stop_the_next(data, tmp_path, monkeypatch, capsys):
    def only(lr):
        config = RunConfig(epochs=1, batch_size=20, model="preresnet", model_args={"depth": 8, "width": 4})
        return lambda epochs, steps: {"only": dataclasses.replace(config, schedule_args={"lr": lr})}

    monkeypatch.setattr("explr.experiments.data.find", lambda name: data)
    experiments = {"wild": Experiment("diverges", only(1e30), 1), "tame": Experiment("trains", only(0.1), 1)}
    for name in [*EXPERIMENTS]:
        monkeypatch.delitem(EXPERIMENTS, name)
    for name, experiment in experiments.items():
        monkeypatch.setitem(EXPERIMENTS, name, experiment)
    assert main(["run", "--missing", "--epochs", "1", "--device", "cpu", "--results", str(tmp_path)]) == 2
    out, err = capsys.readouterr()
    assert out.startswith("tame only seed 0: ") and "wild-1-epochs-stand-in only seed 0: the norm of" in err


def test_a_folder_that_cannot_be_made_is_one_clear_error(data, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr("explr.experiments.data.find", lambda name: data)
    (tmp_path / "file").write_text("")
    assert main(["run", "head", "--epochs", "1", "--device", "cpu", "--results", str(tmp_path / "file" / "x")]) == 2
    assert "frozen-seed0.lock cannot be made (" in capsys.readouterr().err


def test_record_of_another_run_is_not_overwritten(small, data, tmp_path):
    options = {"seeds": 1, "epochs": 1, "device": "cpu", "results": tmp_path}
    list(run_experiment("figure2", data, **options))
    with pytest.raises(ExplrError, match="record of another run"):
        list(run_experiment("figure2", synthetic(train=48, test=20), **options))


def test_the_command_tells_its_version(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["--version"])
    assert (stopped.value.code, capsys.readouterr().out) == (0, f"explr {__version__}\n")


def test_convert_command_prints_the_numbers_of_the_theory(capsys):
    assert main(["convert", "--lr", "0.1", "--weight-decay", "5e-4", "--momentum", "0.9", "--steps-per-epoch", "391"]) == 0
    out = capsys.readouterr().out
    for number in ("0.999497728367892", "1.001005300602", "1.481233356287", "90600 steps, 231.7 epochs"):
        assert number in out


@pytest.mark.parametrize(
    "options, numbers",
    [
        (["--momentum", "0.9", "--nesterov"], ["momentum          0.899955000000", "-0.001004843721", "1.001004843721"]),
        (["--momentum", "0.9", "--dampening", "0.5"], ["0.999749434812163", "1.000501318787"]),
        (["--dampening", "0.5"], ["0.999950000000000", "1.000100007500"]),  # of a buffer that there is not
        (["--optimizer", "adamw", "--betas", "0.9", "0.99"], ["beta1             0.899955000000", "0.989901002475", "1.00005"]),
    ],
)
def test_convert_command_knows_the_other_optimizers(options, numbers, capsys):
    assert main(["convert", "--lr", "0.1", "--weight-decay", "5e-4", *options]) == 0
    out = capsys.readouterr().out
    for number in numbers:
        assert number in out


@pytest.mark.parametrize(
    "decay, dampening, said", [("0.1", "0.5", "weight_decay=0.05 is 0.1 times 1 - 0.5"), ("5e-4", "2", "dampening=2")]
)
def test_convert_command_restates_a_dampening_that_is_wrong(decay, dampening, said, capsys):
    options = ["--lr", "0.1", "--weight-decay", decay, "--momentum", "0.9", "--dampening", dampening]
    assert main(["convert", *options]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("lr, decay, momentum", [("1e-6", "1000", "0.5"), ("0.1", "5e-4", "0"), ("100", "1e-5", "0.9")])
def test_horizon_is_where_the_exact_schedule_overflows(lr, decay, momentum, capsys):
    assert main(["convert", "--lr", lr, "--weight-decay", decay, "--momentum", momentum, "--steps-per-epoch", "1"]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if "float32 holds" in line and "bfloat16" not in line)
    step = int(line.split()[2])
    schedule = convert([float(lr)] * (step + 1), float(decay), float(momentum))
    assert schedule.first_overflow("float32") == step


def test_horizon_without_growth_still_looks_at_the_rate(capsys):
    main(["convert", "--lr", "1e5", "--weight-decay", "0"])
    assert "float16 holds     0 steps" in capsys.readouterr().out


def test_convert_command_without_decay(capsys):
    assert main(["convert", "--lr", "0.1", "--weight-decay", "0"]) == 0
    assert "every step" in capsys.readouterr().out


def test_check_command_prints_the_report(capsys):
    assert main(["check", "explr.models:preresnet32", "--input", "2,3,32,32"]) == 0
    assert capsys.readouterr().out.startswith("scale-invariant")
    assert main(["check", "torchvision.models:resnet18", "--input", "2,3,64,64", "--no-verify"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("not scale-invariant") and "fc.weight" in out and "layer1.1.relu" not in out
    assert main(["check", "torchvision.models:resnet18", "--input", "x=2,3,64,64", "--full"]) == 0
    assert "layer1.1.relu" in capsys.readouterr().out


def test_check_command_gives_arguments_to_what_makes_the_network_and_to_the_network(capsys):
    make = ["check", "torchvision.models:get_model", "--kwargs", '{"name": "resnet18", "num_classes": 10}']
    assert main([*make, "--input", "2,3,64,64"]) == 0
    assert capsys.readouterr().out.startswith("not scale-invariant\n99.9% of the weights")
    arguments = ["check", "torch.nn:Bilinear", "--kwargs", '{"in1_features": 3, "in2_features": 2, "out_features": 4}']
    assert main([*arguments, "--input", "5,3", "--input", "input2=5,2"]) == 0
    assert "bilinear" in capsys.readouterr().out
    arguments = ["check", "torch.nn:ConvTranspose1d", "--kwargs", '{"in_channels": 3, "out_channels": 2, "kernel_size": 2}']
    assert main([*arguments, "--input", "5,3,8", "--forward", '{"output_size": [8]}']) == 2
    assert "output_size" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["{", "[1]", "num_classes=10"])
def test_kwargs_that_are_no_json_are_refused_with_the_reason(text, capsys):
    with pytest.raises(SystemExit):
        main(["check", "torchvision.models:resnet18", "--input", "2,3,64,64", "--kwargs", text])
    assert text in capsys.readouterr().err


def test_check_command_takes_it_that_its_reader_has_seen_enough():
    command = f"{sys.executable} -m explr check torchvision.models:resnet18 --full --input 2,3,64,64 | head -1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("not scale-invariant\n", "")


@pytest.mark.parametrize(
    "arguments, part",
    [
        (["check", "nowhere:net", "--input", "1"], "nowhere:net"),
        (["check", "torchvision.models:resnet999", "--input", "1"], "resnet999"),
        (["check", "builtins:dict", "--input", "1"], "makes a dict"),
        (["check", "torchvision.models:get_model", "--input", "1"], "its arguments as --kwargs JSON"),
        (["check", "torchvision.models:resnet18", "--kwargs", '{"no": 1}', "--input", "1"], 'no network with {"no": 1}'),
        (["check", "torchvision.models:resnet18", "--input", "x=1,a"], "--input 1,a is not"),
        (["check", "explr.models:preresnet32", "--input", "2,three"], "--input 2,three"),
        (["check", "explr.models:preresnet32", "--input", "2:int99"], "--input 2:int99"),
        (["check", "explr.models:preresnet32", "--input", "1" + 40 * "0"], "that fits into memory"),
        (["check", "explr.models:preresnet32", "--input", "2,5"], "5"),
        (["convert", "--lr", "0.8", "--weight-decay", "0.005", "--momentum", "0.9"], "exceeds"),
        (["convert", "--lr", "0.1", "--weight-decay", "5e-4", "--steps-per-epoch", "0"], "--steps-per-epoch 0"),
        (["convert", "--lr", "1", "--weight-decay", "0", "--optimizer", "adamw", "--nesterov"], "--nesterov is not an option"),
        (["convert", "--lr", "1", "--weight-decay", "0", "--betas", "0.9", "0.9"], "--betas is not an option"),
        (["convert", "--lr", "1", "--weight-decay", "0", "--nesterov"], "--nesterov needs a positive --momentum"),
        (["run"], "--missing"),
        (["run", "figure2", "--data", "synthetic", "--device", "cudaa"], "device='cudaa'"),
        (["run", "figure2", "--data", "/nowhere/at/all"], "/nowhere/at/all"),
        (["check", "explr.models:preresnet32", "--input", "2,5:Tensor"], "--input 2,5:Tensor"),
        (["run", "figure9", "--data", "synthetic"], "figure5"),
        (["run", "figure2", "--data", "synthetic", "--epochs", "0"], "epochs=0"),
        (["run", "figure2", "--data", "synthetic", "--seeds", "0"], "seeds=0"),
        (["run", "figure2", "--data", "synthetic", "--together", "0"], "together=0"),
        (["run", "figure2", "--data", "synthetic", "--epochs", "1" + 400 * "0"], "epochs=1000"),
        (["run", "figure2", "--data", "synthetic", "--seeds", "1000000000"], "at most 10,000"),
        (["run", "figure2", "--executor", "local", "--data", "synthetic", "--epochs", "1" + 400 * "0"], "epochs=1000"),
        (["run", "figure2", "--executor", "local", "--data", "synthetic", "--together", "0"], "together=0"),
        (["run", "figure2", "--data", "synthetic", "--precision", "float8"], "float8"),
        (["run", "figure2", "--data", "synthetic", "--partition", "big"], "--partition is of jobs: name an --executor"),
        (["run", "figure2", "--executor", "slurm", "--gpus", "2"], "gpus=2 must be 0 or 1"),
        (["run", "figure2", "--executor", "local", "--hours", "nan"], "hours=nan must lie between"),
        (["run", "figure2", "--executor", "local", "--jobs", "0"], "jobs=0 between"),
        (["run", "figure2", "--executor", "local", "--partition", "big"], "is Slurm's"),
    ],
)
def test_bad_arguments_give_one_line_and_status_2(arguments, part, capsys):
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert part in error and error.count("\n") == 1


SCRIPT = """
import sys
from torch import nn

class Net(nn.Linear):
    def __init__(self, width):
        super().__init__(3, width)

net, sizes = Net(4), [1, 2]

def absent():
    return {}["weights"]
"""


@pytest.mark.parametrize(
    "named, message",
    [
        ("train.py:Net", "train.py:Net names a file, not a module: say train:Net."),
        ("models/train.py", "models/train.py names a file, not a module: in models say train:CALLABLE."),
        ("train", "train must be MODULE:CALLABLE, such as torchvision.models:resnet18."),
        ("train:net", "train:net is a Net: give what makes a network, its class or a function."),
        ("train:sizes", "train:sizes is a list: give what makes a network, its class or a function."),
        ("train:nothing", "train has no nothing: give what its top level defines, a class or a function."),
        ("train:Net", "1 required positional argument: 'width'): give its arguments as --kwargs JSON."),
        ("train:absent", "train:absent makes no network (KeyError: 'weights'): give its arguments as --kwargs JSON."),
        ("elsewhere.nets:Net", "elsewhere.nets:Net: there is no module elsewhere in {here} or among what is installed for"),
        ("needing:Net", "(ModuleNotFoundError: No module named 'elsewhere'). python -c 'import needing' shows where."),
        ("wrong:Net", "wrong cannot be imported (SyntaxError:"),
        ("running:Net", "(SystemExit: 3). It runs as a script: put all but definitions under if __name__ == '__main__'."),
    ],
)
def test_check_command_says_what_is_wrong_with_what_it_is_given(named, message, tmp_path, monkeypatch, capsys):
    files = {"train": SCRIPT, "needing": "import elsewhere", "wrong": "def net(:", "running": "raise SystemExit(3)"}
    for name, text in files.items():
        (tmp_path / f"{name}.py").write_text(text, encoding="utf-8")
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    try:
        assert main(["check", named, "--input", "2,3"]) == 2
    finally:
        for name in files:
            sys.modules.pop(name, None)
    error = capsys.readouterr().err
    assert message.format(here=tmp_path) in error and error.count("\n") == 1


def test_the_commit_of_the_project_that_explr_is_installed_in_is_not_explr_s(tmp_path, monkeypatch):
    for command in (
        ["init", "-q"],
        ["-c", "user.name=x", "-c", "user.email=x@y.z", "commit", "-q", "--allow-empty", "-m", "x"],
    ):
        subprocess.run(["git", "-C", str(tmp_path), *command], check=True)
    (tmp_path / ".gitignore").write_text("installed\n")
    (tmp_path / "installed").mkdir()
    (tmp_path / "installed" / "__init__.py").touch()
    monkeypatch.setattr("explr.experiments.records.PACKAGE", tmp_path / "installed")
    assert _commit() is None
    (tmp_path / ".gitignore").unlink()
    subprocess.run(["git", "-C", str(tmp_path), "add", "."], check=True)
    assert _commit().endswith("+changes")


def test_run_command_trains_and_keeps_records(small, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("explr.experiments.data.synthetic", lambda: synthetic(train=40, test=20))
    arguments = ["run", "figure2", "--epochs", "1", "--seeds", "1", "--device", "cpu", "--data", "synthetic"]
    monkeypatch.setattr("sys.argv", ["/somewhere/bin/explr", *arguments, "--results", str(tmp_path)])
    assert _command() == " ".join(["explr", *arguments])
    monkeypatch.setattr("sys.argv", ["explr", "run", "--data", "/my/folder", "--results=/here", "head", "--data=/there"])
    assert _command() == "explr run head"
    for words, said in [
        (["--data=synthetic", "head"], "explr run head --data synthetic"),
        (["head", "--results", "synthetic"], "explr run head"),
    ]:
        monkeypatch.setattr("sys.argv", ["explr", "run", *words])
        assert _command() == said
    monkeypatch.setattr("sys.argv", ["/somewhere/bin/explr", *arguments, "--results", str(tmp_path)])
    assert main([*arguments, "--results", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "figure2 constant-exponential seed 0: test accuracy" in out
    records = [Run.load(path) for path in tmp_path.rglob("*.json")]
    assert len(records) == 2
    # the command makes the record again anywhere, so it names no folder of this machine
    assert {record.provenance["command"] for record in records} == {" ".join(["explr", *arguments])}
