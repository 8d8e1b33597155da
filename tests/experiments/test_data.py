import dataclasses
import hashlib
import pickle
import shutil
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image

from explr import ExplrError
from explr.experiments.data import CLASSES, Dataset, NoDataError, cifar10, cifar10_or_synthetic, epoch_choices, synthetic
from explr.experiments.files import sealed


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """Give the test a user cache of its own."""
    monkeypatch.setattr("platformdirs.user_cache_path", lambda *args, **kwargs: tmp_path / "cache")
    monkeypatch.delenv("EXPLR_DATA", raising=False)
    return tmp_path / "cache"


@pytest.fixture
def folder(tmp_path, cache):
    """Make an image folder with two training images and one test image in each class; the pixels tell which is which."""
    for split, count in (("train", 2), ("test", 1)):
        for label, name in enumerate(CLASSES):
            here = tmp_path / "data" / split / name
            here.mkdir(parents=True)
            for index in range(count):
                pixels = np.full((32, 32, 3), (label, index, 200), dtype=np.uint8)
                pixels[0, 0] = (1, 2, 3)
                Image.fromarray(pixels).save(here / f"{index:04}.png")
    return tmp_path / "data"


def test_image_folder_is_read_as_uint8_tensors_with_its_classes_in_order(folder):
    data = cifar10(folder)
    assert data.train_images.shape == (20, 3, 32, 32) and data.train_images.dtype == torch.uint8
    assert data.train_labels.tolist() == [label for label in range(10) for _ in range(2)]
    assert data.test_labels.tolist() == list(range(10))
    assert data.train_images[5, :, 9, 9].tolist() == [2, 1, 200]
    assert data.train_images[5, :, 0, 0].tolist() == [1, 2, 3]
    assert data.name == "CIFAR-10 (image folder), 20 training and 10 test images"


def test_environment_variable_names_the_folder(folder, monkeypatch):
    monkeypatch.setenv("EXPLR_DATA", str(folder))
    assert len(cifar10().train_labels) == 20


def test_jpeg_images_are_called_so(folder):
    for path in list(folder.rglob("*.png")):
        Image.open(path).save(path.with_suffix(".jpg"))
        path.unlink()
    assert cifar10(folder).name.startswith("CIFAR-10 (JPEG re-encoded)")


def test_decoded_images_come_from_the_cache_the_second_time(folder, cache, monkeypatch):
    first = cifar10(folder)
    assert len(list(cache.glob("images-*.pixels"))) == 1
    monkeypatch.setattr("explr.experiments.data._decode", lambda path: pytest.fail(f"decoded {path} again"))
    assert torch.equal(cifar10(folder).train_images, first.train_images)


def test_without_a_place_for_the_cache_the_images_are_read_all_the_same(folder, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr("platformdirs.user_cache_path", lambda name: tmp_path / "file" / name)
    assert len(cifar10(folder).train_labels) == 20


def test_a_changed_image_is_decoded_again(folder):
    cifar10(folder)
    Image.fromarray(np.full((32, 32, 3), 77, dtype=np.uint8)).save(folder / "train" / "airplane" / "0000.png")
    assert cifar10(folder).train_images[0].unique().tolist() == [77]


def flip_a_bit(content):
    return bytes([*content[:5000], content[5000] ^ 8, *content[5001:]])


@pytest.mark.parametrize("damage", [flip_a_bit, lambda content: content[:-3072], lambda content: b"half", lambda content: b""])
def test_a_damaged_cache_is_made_again(folder, cache, damage):
    first = cifar10(folder)
    path = next(cache.glob("images-*.pixels"))
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    again = cifar10(folder)
    assert torch.equal(again.train_images, first.train_images) and torch.equal(again.test_images, first.test_images)
    assert path.read_bytes() == whole


def truncate(folder):
    path = folder / "test" / "cat" / "0000.png"
    path.write_bytes(path.read_bytes()[:60])
    return str(path)


def enlarge(folder):
    path = folder / "train" / "dog" / "0001.png"
    Image.new("RGB", (33, 32)).save(path)
    return str(path)


def empty_a_class(folder):
    (folder / "test" / "frog" / "0000.png").unlink()
    return str(folder / "test" / "frog")


def add_a_class(folder):
    (folder / "train" / "zebra").mkdir()
    return "1 folders that are no class of CIFAR-10, zebra"


def rename_a_class(folder):
    (folder / "test" / "dog").rename(folder / "test" / "hound")
    return "1 folders that are no class of CIFAR-10, hound"


def lose_a_class(folder):
    shutil.rmtree(folder / "train" / "ship")
    return str(folder / "train" / "ship")


def lose_a_split(split):
    def lose(folder):
        shutil.rmtree(folder / split)
        return str(folder / split / "airplane")

    return lose


def put_other_bytes(folder):
    path = folder / "train" / "dog" / "0001.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(range(200)))
    return str(path)


def leave_nothing_of_an_image(folder):
    path = folder / "train" / "dog" / "0001.png"
    path.write_bytes(b"")
    return str(path)


def put_a_folder_among_the_images(folder):
    path = folder / "train" / "dog" / "more"
    path.mkdir()
    return str(path)


@pytest.mark.parametrize(
    "damage",
    [
        truncate,
        enlarge,
        empty_a_class,
        add_a_class,
        rename_a_class,
        lose_a_class,
        lose_a_split("train"),
        lose_a_split("test"),
        put_other_bytes,
        leave_nothing_of_an_image,
        put_a_folder_among_the_images,
    ],
)
def test_a_damaged_folder_gives_an_error_that_names_the_file_and_leaves_no_cache(folder, cache, damage):
    name = damage(folder)
    with pytest.raises(ExplrError) as caught:
        cifar10(folder)
    assert name in str(caught.value)
    assert not list(cache.glob("*images*"))


def test_a_damaged_torchvision_download_gives_an_error_that_names_the_file(tmp_path, cache):
    batches = tmp_path / "cifar-10-batches-py"
    batches.mkdir()
    (batches / "data_batch_1").write_bytes(b"half a file")
    with pytest.raises(ExplrError, match="data_batch_1 is missing or damaged"):
        cifar10(tmp_path)


@pytest.fixture
def batches(tmp_path, cache, monkeypatch):
    """Make a small folder as torchvision's download is, and let its digests be those that are asked for."""
    CIFAR10 = pytest.importorskip("torchvision").datasets.CIFAR10
    folder = tmp_path / CIFAR10.base_folder
    folder.mkdir()

    def write(name, content):
        (folder / name).write_bytes(pickle.dumps(content))
        return name, hashlib.md5((folder / name).read_bytes()).hexdigest()

    rows = {"data": np.zeros((10, 3072), dtype=np.uint8), "labels": list(range(10))}
    monkeypatch.setattr(CIFAR10, "train_list", [write(f"data_batch_{i}", rows) for i in (1, 2)])
    monkeypatch.setattr(CIFAR10, "test_list", [write("test_batch", rows)])
    name, md5 = write("batches.meta", {"label_names": list(CLASSES)})
    monkeypatch.setattr(CIFAR10, "meta", {"filename": name, "key": "label_names", "md5": md5})
    return folder


def test_a_torchvision_folder_is_read(batches):
    data = cifar10(batches.parent)
    assert (data.name, len(data.train_labels), len(data.test_labels)) == ("CIFAR-10", 20, 10)


def test_one_process_downloads_and_the_others_wait_for_it(batches, monkeypatch):
    calls, ready = [], batches.rename(batches.parent / "ready")

    def slow(url, root, **options):
        calls.append(root)
        batches.mkdir()  # unpacking has begun: whoever looks now finds half of it
        time.sleep(0.5)
        for file in ready.iterdir():
            shutil.copy(file, batches)

    monkeypatch.setattr("torchvision.datasets.cifar.download_and_extract_archive", slow)
    with ThreadPoolExecutor() as pool:
        first = pool.submit(cifar10, batches.parent)
        while not batches.exists():
            time.sleep(0.01)
        jobs = [first, *(pool.submit(cifar10, batches.parent) for _ in range(2))]
        found = [job.result() for job in jobs]
    assert [data.name for data in found] == ["CIFAR-10"] * 3 and len(calls) == 1
    assert sorted(path.name for path in batches.parent.iterdir()) == [batches.name, "ready"]  # no lock is left


@pytest.mark.parametrize("name", ["data_batch_1", "data_batch_2", "test_batch", "batches.meta"])
@pytest.mark.parametrize("change", [lambda content: content[:-1], lambda content: content[:-3] + b"?" + content[-2:], None])
def test_one_changed_byte_in_a_torchvision_folder_is_found_and_not_papered_over(batches, name, change):
    path = batches / name
    path.write_bytes(change(path.read_bytes())) if change else path.unlink()
    for read in (cifar10, cifar10_or_synthetic):
        with pytest.raises(ExplrError, match=rf"{name} is missing or damaged: delete the folder") as caught:
            read(batches.parent)
        assert not isinstance(caught.value, NoDataError)  # for which generated images would take the place of the data


def test_a_file_and_the_inside_of_the_data_set_are_no_folder_of_it(batches, monkeypatch):
    monkeypatch.setenv("EXPLR_DATA", str(batches))
    with pytest.raises(ExplrError, match=rf"the inside of CIFAR-10: name the folder that holds it, {batches.parent}\."):
        cifar10_or_synthetic()
    monkeypatch.setenv("EXPLR_DATA", str(batches / "test_batch"))
    with pytest.raises(ExplrError, match="test_batch is a file"):
        cifar10_or_synthetic()


def test_a_cache_of_another_number_of_images_is_made_again(folder, cache):
    first = cifar10(folder)
    next(cache.glob("images-*.pixels")).write_bytes(sealed(bytes(29 * 3072)))
    assert torch.equal(cifar10(folder).test_images, first.test_images)


@pytest.mark.parametrize(
    "change, part",
    [
        ({"train_images": torch.zeros(20, 3, 32, 32)}, "train_images of gratings: torch.float32 (20, 3, 32, 32)"),
        (
            {"test_images": torch.zeros(10, 32, 32, 3, dtype=torch.uint8)},
            "test_images of gratings: torch.uint8 (10, 32, 32, 3)",
        ),
        ({"test_images": torch.zeros(10, 3, 16, 16, dtype=torch.uint8)}, "(3, 32, 32), its test images (3, 16, 16)"),
        ({"train_labels": torch.arange(19)}, "train_labels of gratings: torch.int64 (19,) is not int64 (20,)"),
        ({"train_labels": torch.zeros(20)}, "train_labels of gratings: torch.float32 (20,)"),
        ({"test_images": torch.zeros(0, 3, 32, 32, dtype=torch.uint8), "test_labels": torch.arange(0)}, "at least one image"),
    ],
)
def test_data_that_cannot_be_trained_on_is_refused_and_the_part_named(change, part):
    data = dataclasses.replace(synthetic(20, 10), name="gratings")
    with pytest.raises(ExplrError) as caught:
        dataclasses.replace(data, **change)
    assert part in str(caught.value)


def test_no_data_and_no_download_says_what_to_do(tmp_path, cache):
    with pytest.raises(ExplrError, match="EXPLR_DATA"):
        cifar10(tmp_path / "nowhere", download=False)


def test_stand_in_takes_the_place_of_data_that_nobody_named(cache, monkeypatch, capsys):
    monkeypatch.setattr("explr.experiments.data._read_torchvision", no_network)
    assert cifar10_or_synthetic(train=30, test=10).name == "synthetic gratings, 30 training and 10 test images"
    assert "Using synthetic images" in capsys.readouterr().out


def no_network(folder, download):
    raise NoDataError("no network")


def test_stand_in_hides_neither_a_wrong_folder_nor_damage(folder, tmp_path, monkeypatch):
    with pytest.raises(ExplrError, match="EXPLR_DATA"):
        monkeypatch.setattr("torchvision.datasets.utils.download_and_extract_archive", lambda *args, **kw: no_route())
        monkeypatch.setattr("torchvision.datasets.cifar.download_and_extract_archive", lambda *args, **kw: no_route())
        cifar10_or_synthetic(tmp_path / "typo")
    truncate(folder)
    with pytest.raises(ExplrError, match="cannot be read"):
        cifar10_or_synthetic(folder)


def no_route():
    raise OSError("no route to host")


def test_synthetic_is_deterministic_balanced_and_learnable():
    data = synthetic(train=400, test=100)
    assert torch.equal(data.train_images, synthetic(train=400, test=100).train_images)
    other = synthetic(train=400, test=100, seed=1)
    assert not torch.equal(data.train_images, other.train_images)
    assert data.name != other.name  # by which records and checkpoints know what they were made on
    assert data.train_labels.bincount().tolist() == [40] * 10
    # the mean colour alone tells some classes apart, but not all
    features = [images.double().mean((2, 3)) for images in (data.train_images, data.test_images)]
    centres = torch.stack([features[0][data.train_labels == label].mean(0) for label in range(10)])
    accuracy = (torch.cdist(features[1], centres).argmin(1) == data.test_labels).double().mean()
    assert 0.15 < accuracy < 0.9


def test_normalized_training_images_have_mean_0_and_variance_1():
    data = synthetic(train=100, test=10)
    images = data.normalize(data.train_images, torch.float64)
    torch.testing.assert_close(images.mean((0, 2, 3)), torch.zeros(3, dtype=torch.float64), atol=1e-12, rtol=0)
    torch.testing.assert_close(images.std((0, 2, 3), correction=0), torch.ones(3, dtype=torch.float64), atol=1e-12, rtol=0)


def test_a_batch_is_the_padded_cropped_flipped_image():
    data = synthetic(train=50, test=10)
    choices = epoch_choices(50, seed=3, epoch=2)
    images, labels = data.train_batch(choices, torch.float64)
    padded = torch.nn.functional.pad(data.train_images, (4, 4, 4, 4))
    for row in range(50):
        index, top, left = int(choices.index[row]), int(choices.top[row]), int(choices.left[row])
        expected = padded[index, :, top : top + 32, left : left + 32]
        expected = expected.flip(-1) if choices.flip[row] else expected
        assert torch.equal(images[row], data.normalize(expected, torch.float64))
        assert labels[row] == data.train_labels[index]
    assert {int(v) for v in choices.top} <= set(range(9)) and len(choices.flip.unique()) == 2


def test_without_augmentation_a_batch_is_the_images_themselves():
    data = synthetic(train=50, test=10)
    choices = epoch_choices(50, seed=0, epoch=0)
    assert torch.equal(data.train_batch(choices, augment=False)[0], data.normalize(data.train_images[choices.index]))


def test_choices_depend_on_seed_and_epoch_alone():
    def flat(seed, epoch):
        torch.rand(1)  # the global generator has no part in it
        choices = epoch_choices(64, seed, epoch)
        return torch.cat([choices.index, choices.top, choices.left, choices.flip.long()])

    assert torch.equal(flat(1, 2), flat(1, 2))
    assert not torch.equal(flat(1, 2), flat(1, 3)) and not torch.equal(flat(1, 2), flat(2, 2))


def test_every_image_is_seen_once_an_epoch_and_the_last_batch_is_kept():
    batches = list(epoch_choices(10, seed=0, epoch=0).batches(4))
    assert [len(batch.index) for batch in batches] == [4, 4, 2]
    assert torch.cat([batch.index for batch in batches]).sort().values.tolist() == list(range(10))


def test_different_images_have_different_names():
    seeds = [synthetic(train=200, test=100, seed=seed).subset(50, 20) for seed in (0, 3)]
    assert seeds[0].name != seeds[1].name and not torch.equal(seeds[0].train_images, seeds[1].train_images)


@pytest.mark.parametrize("ordered", [True, False])  # class after class, as an image folder is; or taking turns
def test_subset_is_spread_over_the_classes(ordered):
    data = synthetic(train=200, test=100)
    rows = torch.argsort(data.train_labels, stable=True) if ordered else torch.arange(200)
    data = Dataset(data.train_images[rows], data.train_labels[rows], data.test_images, data.test_labels, "gratings")
    small = data.subset(train=50, test=20)
    assert small.train_labels.bincount().tolist() == [5] * 10
    assert small.test_labels.bincount().tolist() == [2] * 10
    assert small.name == "gratings, 50 training and 20 test images"
    assert small.subset(10, 10).name == "gratings, 50 training and 20 test images, 10 training and 10 test images"
    assert sorted(data.subset(200, 100).train_labels.tolist()) == sorted(data.train_labels.tolist())


@pytest.mark.parametrize(
    "call, part",
    [
        (lambda: synthetic(train=0), "train=0"),
        (lambda: synthetic(20, 10).subset(21, 5), "train=21"),
        (lambda: synthetic(20, 10).subset(5, 0), "test=0"),
    ],
)
def test_bad_input_gets_one_error_that_restates_it(call, part):
    with pytest.raises(ExplrError, match=part):
        call()
