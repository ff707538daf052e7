"""Tiny data sets in their original formats, with torchvision's checksums made theirs."""

import gzip
import hashlib
import io
import pickle
import struct
import tarfile
from pathlib import Path

import numpy as np
import pytest
import scipy.io
from PIL import Image
from torchvision import datasets

from contsteal.data import torchsets

CIFAR = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}
rng = np.random.default_rng(0)


def md5(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


def noise(*shape: int) -> np.ndarray:
    return rng.integers(0, 256, shape, dtype=np.uint8)


def put(path: Path, content: bytes) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return md5(content)


def tar(folder: str, members: dict[str, bytes]) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(f"{folder}/{name}")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return packed.getvalue()


def publish(
    cls: type, members: dict[str, bytes], home: Path, patch: pytest.MonkeyPatch, form: str
) -> None:
    """Place an archive, or what is in it, and make torchvision's checksums those of the tiny files."""
    for table in ("train_list", "test_list"):
        sums = [[name, md5(members[name])] for name, _ in getattr(cls, table)]
        patch.setattr(cls, table, sums)
    if hasattr(cls, "meta"):
        patch.setattr(cls, "meta", cls.meta | {"md5": md5(members[cls.meta["filename"]])})
    archive = tar(cls.base_folder, members)
    patch.setattr(cls, "tgz_md5", md5(archive))
    if form == "archive":
        put(home / cls.filename, archive)
    else:
        for name, content in members.items():
            put(home / cls.base_folder / name, content)


def cifar(
    name: str, home: Path, patch: pytest.MonkeyPatch, form: str, n: int = 3
) -> dict[str, list]:
    """Write a tiny CIFAR of `n` images a file; return each split's flat images and labels, in order."""
    cls, fine = CIFAR[name], "labels" if name == "cifar10" else "fine_labels"
    members, rows = {}, {"train": ([], []), "test": ([], [])}
    for split, table in (("train", cls.train_list), ("test", cls.test_list)):
        for batch, _ in table:
            flat, labels = noise(n, 3072), rng.integers(0, 10, n).tolist()
            members[batch] = pickle.dumps({"data": flat, fine: labels, "coarse_labels": [0] * n}, 2)
            rows[split][0].extend(flat)
            rows[split][1].extend(labels)
    names = {cls.meta["key"]: [f"class {i}" for i in range(10)]}
    members[cls.meta["filename"]] = pickle.dumps(names, 2)
    publish(cls, members, home, patch, form)
    return rows


def stl10(
    home: Path, patch: pytest.MonkeyPatch, form: str, times: int = 1
) -> dict[str, np.ndarray]:
    """Write a tiny STL10 of four images, each so many times: columns before rows, labels from 1."""
    images = {split: noise(4 * times, 3, 96, 96) for split in ("train", "test", "unlabeled")}
    members = {f"{s}_X.bin": x.transpose(0, 1, 3, 2).tobytes() for s, x in images.items()}
    members |= {
        "train_y.bin": bytes([1, 10, 3, 3] * times),
        "test_y.bin": bytes([2, 2, 9, 10] * times),
    }
    members["class_names.txt"] = "\n".join(torchsets.STL10_CLASSES).encode() + b"\n"
    publish(datasets.STL10, members, home, patch, form)
    return images


def svhn(
    home: Path, patch: pytest.MonkeyPatch, *splits: str, times: int = 1
) -> dict[str, np.ndarray]:
    """Write tiny .mat files of some splits: images (H, W, 3, N), the digit 0 labelled 10."""
    images, table = {}, {}
    for split, (url, path, _) in datasets.SVHN.split_list.items():
        images[split], packed = noise(32, 32, 3, 4 * times), io.BytesIO()
        labels = np.array([[10], [1], [9], [10]] * times, "u1")
        scipy.io.savemat(packed, {"X": images[split], "y": labels})
        table[split] = [url, path, md5(packed.getvalue())]
        if split in splits:
            put(home / path, packed.getvalue())
    patch.setattr(datasets.SVHN, "split_list", table)
    return images


def fashion_mnist(home: Path, patch: pytest.MonkeyPatch, times: int = 1) -> dict[str, np.ndarray]:
    """Write tiny idx-ubyte files and their archives."""
    images, table = {}, []
    for split, prefix in (("train", "train"), ("test", "t10k")):
        images[split], n = noise(5 * times, 28, 28), 5 * times
        pixels = struct.pack(">4i", 2051, n, 28, 28) + images[split].tobytes()
        labels = struct.pack(">2i", 2049, n) + bytes([0, 9, 4, 4, 1] * times)
        for name, content in (("images-idx3", pixels), ("labels-idx1", labels)):
            path = f"{prefix}-{name}-ubyte.gz"
            packed = gzip.compress(content, mtime=0)
            table.append((path, put(home / "FashionMNIST" / "raw" / path, packed)))
            put(home / "FashionMNIST" / "raw" / path.removesuffix(".gz"), content)
    patch.setattr(datasets.FashionMNIST, "resources", table)
    return images


def ppm(pixels: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, format="ppm")
    return out.getvalue()


def gtsrb(home: Path, patch: pytest.MonkeyPatch, times: int = 1) -> dict[str, list[np.ndarray]]:
    """Write tiny signs of many sizes, (H, W, 3), with the annotation files; 2 classes, 2 tests."""
    train = [noise(30 + 9 * i, 25 + 12 * i, 3) for i in range(4)]
    test = [noise(64, 64, 3), np.full((17, 90, 3), 77, dtype=np.uint8)]
    for i, pixels in enumerate(train):
        for k in range(times):
            put(home / f"gtsrb/GTSRB/Training/{i // 2:05}/{k:04}{i}_00000.ppm", ppm(pixels))
    put(home / "gtsrb/GTSRB/Training/00000/GT-00000.csv", b"Filename;Width\n")
    for i, pixels in enumerate(test):
        put(home / f"gtsrb/GTSRB/Final_Test/Images/0000{i}.ppm", ppm(pixels))
    labels = (42, 7) if times == 1 else (1, 0)  # those of the published set, or of the training
    head = "Filename;Width;Height;Roi.X1;Roi.Y1;Roi.X2;Roi.Y2;ClassId\n"
    lines = [f"0000{i}.ppm;9;9;1;1;8;8;{label}\n" for i, label in enumerate(labels)]
    put(home / "gtsrb/GT-final_test.csv", (head + "".join(lines)).encode())
    patch.setattr(torchsets, "SIGNS", {"train": 4 * times, "test": 2})
    return {"train": train, "test": test}


def noise_file(path: Path, red: int) -> None:
    """Write an image of noise whose red is even."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = noise(30, 40, 3)
    pixels[..., 0] = red
    Image.fromarray(pixels).save(path)


def folder(root: Path) -> Path:
    """Write a folder with two splits, two classes and images of noise, known by their even red."""
    for split, count in (("train", 12), ("test", 4)):
        for k in range(count):
            noise_file(root / split / ("cat", "dog")[k % 2] / f"{k:02}.png", 10 * k)
    return root


def make(name: str, home: Path, patch: pytest.MonkeyPatch, times: int = 1) -> None:
    """Place a data set as it is read: unpacked. Splits have so many times their images."""
    if name in CIFAR:
        cifar(name, home, patch, "extracted", 3 * times)
    elif name == "svhn":
        svhn(home, patch, "train", "test", "extra", times=times)
    elif name == "stl10":
        stl10(home, patch, "extracted", times)
    elif name == "fashion_mnist":
        fashion_mnist(home, patch, times)
    else:
        gtsrb(home, patch, times)
