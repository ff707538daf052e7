"""Shared by all tests: one thread, no progress bars, repeatable property tests, a tiny encoder."""

import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings
from torch import distributed as dist

from contsteal import data, encoders
from contsteal.lab.experiment import Lab

os.environ["TQDM_DISABLE"] = "1"
# jsonschema, which nbformat imports, would compile a grammar of URIs: seconds in every worker.
sys.modules.setdefault("rfc3987_syntax", None)  # type: ignore[arg-type]
torch.set_num_threads(1)
settings.register_profile("contsteal", deadline=None, max_examples=20, derandomize=True)
settings.load_profile("contsteal")


@pytest.fixture
def tiny() -> encoders.Encoder:
    """A fresh encoder of 0.4 M weights: images (N, 3, H, W) to features (N, 96)."""
    return encoders.build("test_resnet", seed=0)


def kept(source: data.embedded.Source) -> data.embedded.Source:
    """An embedded set that draws what it is asked for once: a block of 1024 images takes 0.1 s."""
    once = cache(source.read)

    def read(*given: Any) -> tuple[torch.Tensor, torch.Tensor | None]:
        images, labels = once(*given)
        return images.clone(), None if labels is None else labels.clone()

    return source._replace(read=read)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """The smoke profile, with artifacts and figures in folders that one module's tests share."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CONTSTEAL_RUNS", str(tmp_path_factory.mktemp("runs")))
        patch.setenv("CONTSTEAL_FIGURES", str(tmp_path_factory.mktemp("figures")))
        for name, source in [*data.SOURCES.items()]:
            patch.setitem(data.SOURCES, name, kept(source))
        yield Lab("smoke")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the longest test: beside its file, the other worker does most of the others."""
    items.sort(key=lambda item: item.name != "test_the_commands_run_one_after_another")


@pytest.fixture
def together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Any]]:
    """Call a function in two processes that train together on the CPU; return what each has to say."""
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")

    def join(rank: int, meeting: str, function: Callable[..., Any], given: tuple) -> None:
        dist.init_process_group("gloo", f"file://{tmp_path / meeting}", rank=rank, world_size=2)
        torch.save(function(*given), tmp_path / f"{meeting}-{rank}.pt")
        dist.destroy_process_group()

    def call(function: Callable[..., Any], *given: Any) -> list[Any]:
        fork, meeting = multiprocessing.get_context("fork"), f"group{len(list(tmp_path.iterdir()))}"
        both = [fork.Process(target=join, args=(k, meeting, function, given)) for k in range(2)]
        for process in both:
            process.start()
        for process in both:
            process.join(120)
        assert [process.exitcode for process in both] == [0, 0]
        return [torch.load(tmp_path / f"{meeting}-{k}.pt") for k in range(2)]

    return call
