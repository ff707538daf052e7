"""The only door to a victim: what is counted, what is refused, and what never happens."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
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
    with pytest.raises(
        BudgetExceeded, match="would need 5 distinct inputs in all, the budget is 4"
    ):
        api.require(2)
    api.require(1)
    assert counts(api) == (3, 3)
    assert net.images == 3


@pytest.mark.parametrize("budget", [0, -1])
def test_a_budget_below_one(budget):
    with pytest.raises(ValueError, match=f"budget={budget}.*at least 1"):
        BlackBox(Toy(), budget=budget)


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
        ({"defenses": [PAD]}, "label", "9 coordinates of 5 classes.*padding is for embeddings"),
    ],
)
def test_what_fails_before_an_answer_leaves_is_not_counted(options, answer, message):
    api = BlackBox(Toy(), **{"head": nn.Identity()} | options)
    with pytest.raises(ValueError, match=message):
        api.classify(pictures(2), answer=answer)
    assert counts(api) == (0, 0)
    assert BlackBox(Toy(), [PAD]).embed(pictures(2)).shape == (2, DIM + 4)


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
    assert torch.equal(anew(images, names), made)
    assert anew.forwards == 12
    assert len(list(tmp_path.glob("*.corrupt-*"))) == 1
    assert AnswerCache(net, AnswerStore(tmp_path)).store.get(names) is not None


def test_a_full_store_keeps_what_it_has_and_takes_no_more(tmp_path: Path) -> None:
    full = AnswerStore(tmp_path, limit=1000)
    full.put([b"a"], torch.ones(1, 100))
    full.put([b"b"], torch.ones(1, 200))
    assert full.get([b"a"]).shape == (1, 100)
    assert full.get([b"b"]) is None
    assert 400 < full.size() <= 1000
