"""The only door to a victim: what is counted, what is refused, and what never happens."""

import math
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor, nn

from contsteal import encoders
from contsteal.defenses.b4b import B4B
from contsteal.defenses.perturbation import GaussianNoise, Normalise, Rounding, TopK
from contsteal.victim import AnswerCache, AnswerStore, BlackBox, BudgetExceeded, digests

DIM = 5


class Toy(nn.Module):
    """An encoder that notes how many images it saw, and whether it was in train mode."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.layers = nn.Sequential(
                nn.Flatten(), nn.Linear(3 * 4 * 4, DIM), nn.BatchNorm1d(DIM)
            )
        self.images, self.modes = 0, set()

    def forward(self, images: Tensor) -> Tensor:
        self.images += len(images)
        self.modes.add(self.training)
        return self.layers(images.float() / 255)


def pictures(n: int, seed: int = 0) -> Tensor:
    draws = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, 3, 4, 4), dtype=torch.uint8, generator=draws)


def counts(api: BlackBox, user: str | None = None) -> tuple[int, int]:
    book = api.ledger.account(user) if user else api.ledger
    return book.unique_inputs, book.calls


def test_an_image_is_known_by_its_content():
    api, x = BlackBox(Toy()), pictures(4)
    api.embed(x[[0, 1, 1]])
    assert counts(api) == (2, 3)
    api.embed(x[[1, 2]].clone())
    assert counts(api) == (3, 5)
    api.embed(x[:3].permute(2, 3, 1, 0).contiguous().permute(3, 2, 0, 1))
    assert counts(api) == (3, 8), "another memory layout is no other image"
    almost = x[:1].clone()
    almost[0, 0, 0, 0] ^= 1
    api.embed(almost)
    assert counts(api) == (4, 9)


def test_two_sizes_with_equal_bytes_are_two_images():
    class Mean(Toy):
        def forward(self, images):
            return super().forward(images[..., :4, :4]) + images.shape[-1]

    api = BlackBox(Mean())
    tall = api.embed(torch.zeros(1, 3, 8, 4, dtype=torch.uint8))
    wide = api.embed(torch.zeros(1, 3, 4, 8, dtype=torch.uint8))
    assert counts(api) == (2, 2)
    assert not tall.equal(wide)


@settings(max_examples=60, deadline=None)
@given(
    budget=st.none() | st.integers(1, 6),
    requests=st.lists(
        st.tuples(st.sampled_from("ab"), st.lists(st.integers(0, 7), min_size=1, max_size=6)),
        max_size=8,
    ),
)
def test_the_ledger_equals_a_literal_reference(budget, requests):
    net, x = Toy(), pictures(8)
    api, clean = BlackBox(net, budget=budget), BlackBox(Toy()).embed(x)
    seen, calls = {"a": set(), "b": set()}, {"a": 0, "b": 0}
    for user, chosen in requests:
        if budget is not None and len(seen[user] | set(chosen)) > budget:
            with pytest.raises(BudgetExceeded):
                api.embed(x[chosen], user=user)
        else:
            torch.testing.assert_close(api.embed(x[chosen], user=user), clean[chosen])
            seen[user] |= set(chosen)
            calls[user] += len(chosen)
        for name in "ab":
            assert counts(api, name) == (len(seen[name]), calls[name])
    assert counts(api) == (sum(map(len, seen.values())), sum(calls.values()))
    assert net.images == len(seen["a"] | seen["b"])


def test_a_request_past_the_budget_gets_no_answer_and_costs_nothing():
    net, x = Toy(), pictures(5)
    api = BlackBox(net, budget=4)
    api.embed(x[:3])
    with pytest.raises(BudgetExceeded, match=r"adversary.*5 distinct.*budget is 4.*3 used"):
        api.embed(x)
    with pytest.raises(BudgetExceeded, match="needs 5 distinct inputs, and the budget is 4"):
        api.require(2)
    api.require(1)
    assert counts(api) == (3, 3)
    assert net.images == 3


@pytest.mark.parametrize("budget", [0, -1, math.nan, math.inf, 1.5, 4.0, True, "4"])
def test_a_budget_is_a_whole_number_from_one(budget):
    with pytest.raises(ValueError, match=r"budget=.*: a whole number of at least 1 is needed"):
        BlackBox(Toy(), budget=budget)
    with pytest.raises(ValueError, match=r"count=.*: a whole number of at least 0 is needed"):
        BlackBox(Toy()).require(-1.0 if budget == 0 else budget if budget != "4" else -4)


@pytest.mark.parametrize("net", [None, nn.Flatten, lambda x: x])
def test_what_is_no_network_is_no_victim(net):
    for odd in (
        {"defenses": None},
        {"defenses": [3]},
        {"defenses": Rounding(0)},
        {"defenses": iter([])},
        {"head": "a"},
    ):
        with pytest.raises(ValueError, match="a list of defences is needed, and functions"):
            BlackBox(Toy(), **odd)
    with pytest.raises(ValueError, match="a victim is a torch"):
        BlackBox(net)


@pytest.mark.parametrize("training", [True, False])
def test_the_victim_answers_in_eval_mode_and_keeps_its_state(training):
    net = Toy().train(training)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    api, x = BlackBox(net, head=nn.Linear(DIM, 3)), pictures(6)
    one_by_one = torch.cat([BlackBox(net).embed(image[None]) for image in x])
    torch.testing.assert_close(api.embed(x), one_by_one, msg="an answer depends on its batch")
    api.classify(x)
    assert net.modes == {False}
    assert all(v.equal(before[k]) for k, v in net.state_dict().items())


@pytest.mark.parametrize(
    "ask",
    [
        lambda api, x: api.embed(x),
        lambda api, x: api.classify(x, answer="posterior"),
        lambda api, x: api.classify(x),
        lambda api, x: api.project(x),
    ],
    ids=["embed", "posterior", "label", "projection"],
)
def test_no_gradient_reaches_the_victim(ask):
    net, head, surrogate = Toy(), nn.Linear(DIM, 3), Toy()
    x = pictures(4)
    answers = ask(BlackBox(net, head=head, projector=head), x)
    assert not answers.requires_grad
    assert answers.grad_fn is None
    (surrogate(x).sum() * answers.float().sum()).backward()
    assert surrogate.layers[1].weight.grad is not None
    assert all(p.grad is None for p in [*net.parameters(), *head.parameters()])


def test_black_boxes_share_answers_and_nothing_else():
    net, x = Toy(), pictures(4)
    shared = AnswerCache(net)
    open_, closed = BlackBox(shared), BlackBox(shared, defenses=[Rounding(0)], budget=2)
    clean = open_.embed(x)
    assert closed.embed(x[:2]).equal(clean[:2].round())
    assert net.images == shared.forwards == 4
    assert counts(open_) == (4, 4)
    assert counts(closed) == (2, 2)
    with pytest.raises(BudgetExceeded):
        closed.embed(x)


def test_an_answer_belongs_to_who_got_it():
    api, x = BlackBox(Toy()), pictures(3)
    answers = api.embed(x)
    kept = answers.clone()
    answers.zero_()
    assert api.embed(x).equal(kept)


def test_floats_equal_their_8_bit_form():
    net, x = Toy(), pictures(6)
    api = BlackBox(net)
    answers = api.embed(x)
    for floats in (x.float() / 255, x.double() / 255, (x.float() / 255 + 1e-4).clamp(max=1)):
        assert api.embed(floats).equal(answers)
    assert counts(api) == (6, 24)
    assert net.images == 6


REFUSED = {
    "below 0": (torch.full((2, 3, 4, 4), -0.1), r"-0\.1.*\[0, 1\]"),
    "above 1": (torch.full((2, 3, 4, 4), 255.0), r"255.*\[0, 1\]"),
    "NaN": (torch.full((2, 3, 4, 4), float("nan")), "nan"),
    "one NaN": (torch.zeros(2, 3, 4, 4).index_fill(3, torch.tensor(1), float("nan")), "nan"),
    "integers": (torch.zeros(2, 3, 4, 4, dtype=torch.int64), r"int64.*uint8"),
    "booleans": (torch.zeros(2, 3, 4, 4, dtype=torch.bool), r"bool.*uint8"),
    "empty": (torch.zeros(0, 3, 4, 4, dtype=torch.uint8), r"\(0, 3, 4, 4\).*at least one"),
    "no batch": (torch.zeros(3, 4, 4, dtype=torch.uint8), r"\(3, 4, 4\)"),
    "gray": (torch.zeros(2, 1, 4, 4, dtype=torch.uint8), r"\(2, 1, 4, 4\)"),
    "no pixel": (torch.zeros(2, 3, 4, 0, dtype=torch.uint8), r"\(2, 3, 4, 0\).*at least one"),
    "numpy": (np.zeros((2, 3, 4, 4), np.uint8), "of kind ndarray"),
    "nothing": (None, "of kind NoneType"),
    "a list": ([[1]], "of kind list"),
    "a path": ("image.png", "of kind str"),
    "sparse": (torch.zeros(2, 3, 4, 4).to_sparse(), "of kind Tensor"),
    "complex": (torch.zeros(2, 3, 4, 4) + 0j, "of kind Tensor"),
    "meta": (torch.zeros(2, 3, 4, 4, dtype=torch.uint8, device="meta"), "of kind Tensor"),
    "channels last": (torch.zeros(2, 4, 4, 3, dtype=torch.uint8), r"\(2, 4, 4, 3\)"),
}


@pytest.mark.parametrize(("images", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_what_is_no_image_is_refused_and_not_counted(images, message):
    api = BlackBox(Toy(), head=nn.Identity())
    for ask in (api.embed, api.classify):
        with pytest.raises(ValueError, match=message):
            ask(images)
    assert counts(api) == (0, 0)


def test_classes_and_projections_come_from_their_heads_and_are_counted():
    head, projector = nn.Linear(DIM, 3), nn.Linear(DIM, 2)
    api, x = BlackBox(Toy(), head=head, projector=projector), pictures(20)
    logits, posterior = (api.classify(x, answer=kind) for kind in ("logits", "posterior"))
    label, projections = api.classify(x), api.project(x)
    assert (posterior.shape, posterior.dtype, label.dtype) == ((20, 3), torch.float32, torch.int64)
    with torch.no_grad():
        torch.testing.assert_close(logits, head(api.embed(x)))
        torch.testing.assert_close(projections, projector(api.embed(x)))
    torch.testing.assert_close(posterior, logits.softmax(1))
    assert label.equal(posterior.argmax(1))
    assert counts(api) == (20, 120)
    defended = BlackBox(Toy(), [Rounding(1)], projector=projector).project(x)
    assert defended.equal(projections.round(decimals=1))


@pytest.mark.parametrize("order", [1, -1])
def test_defences_act_in_order_on_what_leaves_and_not_on_the_cache(order):
    x, chain = pictures(4), [Normalise(), Rounding(1)][::order]
    clean = expected = BlackBox(Toy()).embed(x)
    for defense in chain:
        expected = defense(expected, "adversary")
    shared = AnswerCache(Toy())
    api = BlackBox(shared, defenses=chain)
    assert api.embed(x).equal(expected)
    assert api.embed(x).equal(expected)
    assert BlackBox(shared).embed(x).equal(clean)


def test_defences_act_on_the_posterior():
    api, x = BlackBox(Toy(), defenses=[TopK(1)], head=nn.Identity()), pictures(4)
    plain = BlackBox(Toy(), head=nn.Identity())
    assert ((api.classify(x, answer="posterior") > 0).sum(1) == 1).all()
    assert api.classify(x).equal(plain.classify(x))


def test_perturbed_posteriors_stay_posteriors() -> None:
    class Wreck:
        def __call__(self, answers: torch.Tensor, user: str) -> torch.Tensor:
            answers = answers - answers.amax(1, keepdim=True) / 2
            answers[0] = -1.0
            return answers

    net = encoders.build("test_resnet")
    api = BlackBox(net, [Wreck()], head=torch.nn.Linear(96, 5))
    posterior = api.classify(torch.randint(256, (4, 3, 32, 32), dtype=torch.uint8), "posterior")
    assert (posterior >= 0).all()
    assert torch.allclose(posterior.sum(1), torch.ones(4))
    assert torch.allclose(posterior[0], torch.full((5,), 0.2))


@pytest.mark.parametrize("user", ["", "x" * 257, "two\nlines", "\ud800", None, 7])
def test_a_user_without_a_proper_name_is_refused(user: object) -> None:
    api, x = BlackBox(Toy(), head=nn.Identity()), pictures(2)
    for ask in (api.embed, api.classify, lambda _, user: api.require(1, user)):
        with pytest.raises(ValueError, match="1 to 256 printable characters"):
            ask(x, user=user)
    assert not api.ledger.accounts


def test_unusual_names_are_names() -> None:
    api, x = BlackBox(Toy(), [GaussianNoise(1.0)]), pictures(2)
    answers = [api.embed(x, user=name) for name in ("ünal/a b", "x" * 256, "x" * 255, " ", "0")]
    assert len({a.numpy().tobytes() for a in answers}) == 5
    assert api.ledger.calls == 10


PAD = B4B(transform="pad", padding=4)


@pytest.mark.parametrize(
    ("options", "answer", "message"),
    [
        ({"head": None}, "label", "embeddings only"),
        ({}, "gradient", "'gradient': choose one of label, posterior, logits"),
        ({"defenses": [TopK(DIM + 1)]}, "label", "TopK"),
        ({"defenses": [PAD]}, "label", "5 classes into 9 coordinates: use padding for embeddings"),
    ],
)
def test_what_fails_before_an_answer_leaves_is_not_counted(options, answer, message):
    api = BlackBox(Toy(), **{"head": nn.Identity()} | options)
    with pytest.raises(ValueError, match=message):
        api.classify(pictures(2), answer=answer)
    assert counts(api) == (0, 0)
    assert BlackBox(Toy(), [PAD]).embed(pictures(2)).shape == (2, DIM + 4)


@pytest.mark.parametrize(
    "change",
    [
        lambda a: a[:-1], lambda a: torch.cat([a, a]), lambda a: a[:0], lambda a: a[0], lambda a: None,
        lambda a: a.numpy(), lambda a: a.tolist(), lambda a: a.long(), lambda a: a.to_sparse(),
        lambda a: a.to("meta"), lambda a: a + 0j, lambda a: a / 0, lambda a: a.double() - 1e300,
    ],
)  # fmt: skip
def test_what_a_defence_may_not_return_does_not_leave_and_is_not_billed(change):
    x = pictures(3)
    api = BlackBox(Toy(), [lambda answers, user: change(answers)], head=nn.Identity())
    for ask in (api.embed, api.classify):
        with pytest.raises(ValueError, match="answer"):
            ask(x)
    for options in ({"head": change}, {"projector": change}):
        odd = BlackBox(Toy(), **options)
        with pytest.raises(ValueError, match="answer"):
            odd.classify(x, answer="logits") if "head" in options else odd.project(x)
        assert counts(odd) == (0, 0)
    assert counts(api) == (0, 0)


def test_what_leaves_is_float32_without_gradient_whatever_a_defence_computes_in():
    x, clean = pictures(3), BlackBox(Toy()).embed(pictures(3))
    for change in (Tensor.double, Tensor.clone, lambda a: a.clone().requires_grad_()):
        answers = BlackBox(Toy(), [lambda a, user, change=change: change(a)]).embed(x)
        assert answers.equal(clean)
        assert (answers.dtype, answers.requires_grad) == (torch.float32, False)


def test_images_of_another_size_may_not_make_vectors_of_another_width():
    class Flat(nn.Flatten):
        def forward(self, images: Tensor) -> Tensor:
            return super().forward(images).float()

    api = BlackBox(Flat())  # which has no weights, and so no device of its own
    api.embed(pictures(2))
    with pytest.raises(
        ValueError, match="192 coordinates, but earlier ones 48: send images of one"
    ):
        api.embed(torch.zeros(2, 3, 8, 8, dtype=torch.uint8))
    assert counts(api) == (2, 2)


# ------------------------------------------------------------------------------- threads


class Slow(Toy):
    """Toy, which lets other threads run while it computes."""

    def forward(self, images: Tensor) -> Tensor:
        time.sleep(1e-4)
        return super().forward(images)


@pytest.mark.parametrize("users", [1, 8])
@pytest.mark.parametrize("stored", [False, True])
def test_threads_share_a_budget_and_each_gets_the_answers_to_its_own_images(
    tmp_path, users, stored
):
    x, want = pictures(128), BlackBox(Toy()).embed(pictures(128))
    for trial in range(4):
        store = AnswerStore(tmp_path / str(trial)) if stored else None
        net, barrier = Slow(), threading.Barrier(8)
        api = BlackBox(AnswerCache(net, store), budget=64)

        def ask(k: int, api: BlackBox = api, barrier: threading.Barrier = barrier) -> Tensor | None:
            barrier.wait()
            try:
                return api.embed(x[16 * k : 16 * k + 16], user=f"user {k % users}")
            except BudgetExceeded:
                return None

        with ThreadPoolExecutor(8) as pool:
            results = list(pool.map(ask, range(8)))
        answered = [k for k, answers in enumerate(results) if answers is not None]
        assert len(answered) == (4 if users == 1 else 8)
        assert counts(api) == (16 * len(answered), 16 * len(answered))
        assert net.images == 16 * len(answered)
        for k in answered:
            torch.testing.assert_close(results[k], want[16 * k : 16 * k + 16])


# -------------------------------------------------------------------------- stored answers


def test_nan_never_leaves_and_costs_nothing() -> None:
    net = Toy()
    nn.init.constant_(net.layers[1].bias, float("nan"))
    api = BlackBox(net, [GaussianNoise(1.0)], head=nn.Identity())
    for ask in (api.embed, api.classify):
        with pytest.raises(ValueError, match="input 0 of 3 holds NaN"):
            ask(pictures(3))
    assert counts(api) == (0, 0)


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randint(256, (12, 3, 32, 32), dtype=torch.uint8)


@pytest.fixture(scope="module")
def net() -> nn.Module:
    return encoders.build("test_resnet", 32, seed=0).eval()


def test_another_process_reads_what_one_has_computed(net, images, tmp_path) -> None:
    names = digests(images)
    one, two = (AnswerCache(net, AnswerStore(tmp_path / "kept")) for _ in range(2))
    made = one(images, names)
    read = two(images.flip(0), names[::-1])  # another request: computed
    again = AnswerCache(net, AnswerStore(tmp_path / "kept"))
    assert torch.equal(again(images, names), made)
    assert torch.equal(again(images[3:5], names[3:5]), made[3:5])
    assert (one.forwards, two.forwards, again.forwards) == (12, 12, 0)
    torch.testing.assert_close(read.flip(0), made)


def test_a_damaged_file_is_moved_aside_and_computed_again(net, images, tmp_path) -> None:
    names = digests(images)
    made = AnswerCache(net, AnswerStore(tmp_path))(images, names)
    (file,) = tmp_path.glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:-40])
    anew = AnswerCache(net, AnswerStore(tmp_path))
    with pytest.warns(UserWarning, match="does not hold this victim's answers.*computed again"):
        assert torch.equal(anew(images, names), made)
    assert anew.forwards == 12
    assert len(list(tmp_path.glob("*.corrupt-*"))) == 1
    assert AnswerCache(net, AnswerStore(tmp_path)).store.get(names) is not None


def test_no_flipped_bit_of_a_stored_answer_is_ever_shown(tmp_path: Path) -> None:
    store, names, answers = AnswerStore(tmp_path), [b"a", b"b"], torch.arange(4.0).view(2, 2)
    store.put(names, answers)
    (file,) = tmp_path.glob("*.safetensors")
    raw = file.read_bytes()
    for place in range(len(raw)):
        file.write_bytes(raw[:place] + bytes([raw[place] ^ (1 << place % 8)]) + raw[place + 1 :])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = store.get(names)
        assert found is None or found.equal(answers)
    file.write_bytes(raw)
    assert store.get(names).equal(answers)
    assert len(list(tmp_path.glob("*.corrupt-*"))) > 0.9 * len(raw), "what is damaged is kept aside"


@pytest.mark.parametrize(
    "harm",
    [
        lambda _, file: AnswerStore(file.parent.with_name("b")).put([b"a"], torch.ones(1, 2)),
        lambda store, file: store.put([b"b"], torch.ones(1, 2)),
        lambda store, file: save_file({"answers": torch.ones(1, 2)}, file),
        lambda store, file: save_file({"other": torch.ones(1, 2)}, file),
        lambda store, file: file.write_bytes(b""),
    ],
    ids=["victim", "request", "unsealed", "name", "empty"],
)
def test_a_table_of_another_victim_or_request_is_not_shown(harm, tmp_path) -> None:
    store = AnswerStore(tmp_path / "one")
    store.put([b"a"], torch.zeros(1, 2))
    file = store._file([b"a"])
    harm(store, file)
    made = [f for f in tmp_path.glob("*/*.safetensors") if f != file]
    for other in made:
        other.replace(file)
    with pytest.warns(UserWarning, match="does not hold this victim's answers"):
        assert store.get([b"a"]) is None
    assert not file.exists()


def test_a_full_store_keeps_what_it_has_and_takes_no_more(tmp_path: Path) -> None:
    full = AnswerStore(tmp_path, limit=1000)
    full.put([b"a"], torch.ones(1, 100))
    full.put([b"b"], torch.ones(1, 200))
    assert full.get([b"a"]).shape == (1, 100)
    assert full.get([b"b"]) is None
    assert 400 < full.size() <= 1000
