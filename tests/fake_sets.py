"""Small data sets on the disk in the formats of MNIST and CIFAR, as torchvision reads them."""

import pickle

import numpy as np


def images(count, *shape, classes=10):
    """Random bytes whose first one is the label."""
    numbers = np.random.default_rng(count)
    labels = numbers.integers(classes, size=count)
    pixels = numbers.integers(256, size=(count, *shape), dtype=np.uint8)
    pixels.reshape(count, -1)[:, 0] = labels
    return pixels, labels


def write_idx(folder, train, test):
    """Four files of MNIST's: a head of big-endian numbers, then bytes."""
    folder.mkdir(parents=True)
    for part, count in (("train", train), ("t10k", test)):
        pixels, labels = images(count, 28, 28)
        head = np.array([0x00000803, count, 28, 28], ">i4").tobytes()
        (folder / f"{part}-images-idx3-ubyte").write_bytes(head + pixels.tobytes())
        head = np.array([0x00000801, count], ">i4").tobytes()
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(head + labels.astype(np.uint8).tobytes())


def write_cifar(folder, kind, train, test, monkeypatch):
    """The pickles that `kind` (torchvision.datasets.CIFAR10 or CIFAR100) reads, `train` images in each of its parts;
    their checksums are not asked for."""
    fine, target = kind.__name__ == "CIFAR100", folder / kind.base_folder
    target.mkdir(parents=True)
    for parts, count in (("train_list", train), ("test_list", test)):
        for name, _ in getattr(kind, parts):
            pixels, labels = images(count, 3, 32, 32, classes=100 if fine else 10)
            content = {"data": pixels.reshape(count, -1), "fine_labels" if fine else "labels": labels.tolist()}
            (target / name).write_bytes(pickle.dumps(content))
        monkeypatch.setattr(kind, parts, [[name, None] for name, _ in getattr(kind, parts)])
    (target / kind.meta["filename"]).write_bytes(pickle.dumps({kind.meta["key"]: [str(k) for k in range(100)]}))
    monkeypatch.setattr(kind, "meta", {**kind.meta, "md5": None})
