"""The table of attacks: what each sends and pays, what its loss is given, and what it refuses."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from contsteal import augment, data, defenses, encoders, losses, methods, steal
from contsteal.seeds import derive
from contsteal.victim import BlackBox, BudgetExceeded

N = 32
FAST = steal.Config(encoder="conv4", epochs=2, batch=16, lr=1e-3)
NARROW = 0.5  # 64 features; the victim has 128
COST = {"pair": 2, "prototype": 10}  # images sent per query image; 1 under other views


@pytest.fixture(scope="module")
def shapes() -> data.ImageSet:
    return data.load("shapes", n=N)


@pytest.fixture(scope="module")
def victim() -> encoders.Encoder:
    return encoders.build("conv4", seed=3).eval()


def api_of(victim: encoders.Encoder, **options: object) -> BlackBox:
    torch.manual_seed(0)
    head = torch.nn.Linear(victim.dim, 10).requires_grad_(False)
    projector = methods.Head(victim.dim, 24, 12, norm=False).requires_grad_(False)
    return BlackBox(victim, head=head, projector=projector, **options)


def spied(
    attack, victim, shapes, monkeypatch, **changes
) -> tuple[list, list[Tensor], steal.Result]:
    """Train; return what the loss was given, what the surrogate was shown, and the result."""
    given, shown = [], []

    def spy(s: Tensor, t: Tensor, **options: object) -> Tensor:
        given.append((s.detach().float(), t, options))
        return s.square().mean()

    monkeypatch.setitem(steal.ATTACKS, attack, replace(steal.ATTACKS[attack], loss=spy))
    forward = encoders.Encoder.forward

    def watch(net, x):
        if net.training:
            shown.append(x)
        return forward(net, x)

    monkeypatch.setattr(encoders.Encoder, "forward", watch)
    config = replace(FAST, attack=attack, **changes)
    result = steal.train(config, api_of(victim), shapes.images, labels=shapes.labels)
    monkeypatch.setattr(encoders.Encoder, "forward", forward)
    return given, shown, result


@pytest.mark.parametrize("attack", steal.ATTACKS)
def test_every_attack_trains_a_surrogate_and_pays_for_its_views(
    shapes, victim, monkeypatch, attack
):
    recipe, used, before = steal.ATTACKS[attack], [], encoders.identity(victim)

    def spy(s, t, **options):
        used.append({k: v for k, v in options.items() if k not in ("labels", "negatives")})
        return recipe.loss(s, t, **options)

    monkeypatch.setitem(steal.ATTACKS, attack, replace(recipe, loss=spy))
    config, cost = replace(FAST, attack=attack, width=NARROW), N * COST.get(recipe.views, 1)
    result = steal.train(config, api_of(victim, budget=cost), shapes.images, labels=shapes.labels)
    assert result.calls == config.distinct(N) == cost
    least = 5 * N if recipe.views == "prototype" else cost  # two crops may be the same pixels
    assert least <= result.unique_inputs <= cost
    assert [row["epoch"] for row in result.history] == [1, 2]
    assert all(math.isfinite(row["loss"]) for row in result.history)
    expected = {} if recipe.temperature is None else {"temperature": recipe.temperature}
    assert used == [expected] * (2 * N // FAST.batch * recipe.patches)
    assert replace(config, temperature=3.0).tau == (3.0 if expected else None)
    embeds = recipe.answer == "embedding"
    width = victim.dim if embeds else None
    start = encoders.build("conv4", width=NARROW, seed=derive("surrogate", 0), out_dim=width)
    first, stolen = start.state_dict(), result.encoder.state_dict()
    assert not [k for k, v in stolen.items() if v.ndim > 1 and v.equal(first[k])], "never trained"
    assert encoders.embed(result.encoder, shapes.images[:3]).shape == (3, start.dim)
    assert not result.encoder.training
    assert (result.head is None) == (embeds and not recipe.recreate)
    assert encoders.identity(victim) == before
    assert all(p.grad is None for p in victim.parameters())
    assert recipe.source
    assert 5 < len(recipe.description) < 70


@pytest.mark.parametrize("attack", ["sup-con", "info-nce-2", "barlow-published"])
def test_a_pair_is_two_shared_views_beside_their_answers(shapes, victim, monkeypatch, attack):
    given, shown, _ = spied(attack, victim, shapes, monkeypatch)
    for (s, t, _), x in zip(given, shown, strict=True):
        assert len(s) == len(t) == len(x) == 32, "two views of a batch of 16"
        assert torch.allclose(t, encoders.embed(victim, augment.to_uint8(x)), atol=1e-5)
        assert not torch.equal(x[:16], x[16:])
    epoch = torch.cat([x[:16] for x in shown[:2]]), torch.cat([x[16:] for x in shown[:2]])
    draws = [steal.view(replace(FAST, attack=attack), shapes.images, k) for k in range(2)]
    for half, view in zip(epoch, draws, strict=True):
        seen = {bytes(row.numpy()) for row in augment.to_uint8(half)}
        assert seen == {bytes(row.numpy()) for row in view}


def test_both_is_the_clean_image_over_a_view_and_one_answer(shapes, victim, monkeypatch):
    given, shown, result = spied("stolen-encoder", victim, shapes, monkeypatch)
    clean = {bytes(image.numpy()): i for i, image in enumerate(shapes.images)}
    answers = encoders.embed(victim, shapes.images)
    for (s, t, _), x in zip(given, shown, strict=True):
        assert (len(s), len(t)) == (32, 16)
        rows = [clean[bytes(augment.to_uint8(image).numpy())] for image in x[:16]]
        assert torch.allclose(t, answers[rows], atol=1e-5)
        assert not any(bytes(augment.to_uint8(image).numpy()) in clean for image in x[16:])
    assert result.calls == N


def test_patches_share_the_mean_of_the_normalised_answers(shapes, victim, monkeypatch):
    given, shown, result = spied("rda", victim, shapes, monkeypatch)
    config = replace(FAST, attack="rda")
    views = [steal.view(config, shapes.images, k) for k in range(10)]
    expected = sum(F.normalize(encoders.embed(victim, v), dim=1) for v in views) / 10
    assert result.calls == 10 * N
    assert len(given) == 5 * len(shown), "five patches a step"
    assert all(len(x) == 5 * 16 for x in shown)
    seen = torch.cat([t for _, t, _ in given[:5:5] + given[5:10:5]])
    assert torch.allclose(seen.sort(0).values, expected.sort(0).values, atol=1e-5)
    assert all(t.equal(given[0][1]) for _, t, _ in given[:5])
    assert given[0][2] == {"temperature": 0.07}


def test_labels_reach_the_loss_that_uses_them_and_no_other(shapes, victim, monkeypatch):
    given, shown, _ = spied("sup-con", victim, shapes, monkeypatch)
    config = replace(FAST, attack="sup-con")
    view = {
        bytes(image.numpy()): int(label)
        for k in range(2)
        for image, label in zip(steal.view(config, shapes.images, k), shapes.labels, strict=True)
    }
    for (_, _, options), x in zip(given, shown, strict=True):
        own = [view[bytes(augment.to_uint8(image).numpy())] for image in x]
        assert options["labels"].tolist() == own
    other, _, _ = spied("info-nce-2", victim, shapes, monkeypatch)
    assert all("labels" not in options for *_, options in other)


def test_access_head_compares_projections_behind_a_head_of_its_own(shapes, victim, monkeypatch):
    given, _, result = spied("access-head", victim, shapes, monkeypatch, width=NARROW)
    s, t, options = given[0]
    assert s.shape == t.shape == (16, 12)
    assert options == {"temperature": 0.07}
    sent = {row.numpy().tobytes() for row in api_of(victim).project(shapes.images)}
    assert {row.numpy().tobytes() for row in t} <= sent
    assert [type(m).__name__ for m in result.head] == ["Linear", "ReLU", "Linear"]
    assert result.encoder.dim == 64, "its own width: the attacker never sees the victim's"


def test_recreate_head_compares_behind_one_frozen_head(shapes, victim, monkeypatch):
    made, own = [], steal.recreate_head

    def watch(*given):
        made.append((given, own(*given)))
        return made[-1][1]

    monkeypatch.setattr(steal, "recreate_head", watch)
    given, _, result = spied("recreate-head", victim, shapes, monkeypatch)
    (one, two, epochs, batch, _), g = made[0]
    assert result.head is g
    assert (epochs, batch) == (2 * FAST.epochs, FAST.batch)
    views = [steal.view(replace(FAST, attack="recreate-head"), shapes.images, k) for k in range(2)]
    answers = [encoders.embed(victim, v) for v in views]
    assert torch.allclose(one, answers[0], atol=1e-5)
    assert torch.allclose(two, answers[1], atol=1e-5)
    _, t, _ = given[0]
    behind = torch.cat([g(a) for a in answers[:2]])
    assert all((behind - row).abs().sum(1).min() < 1e-3 for row in t)


def test_a_recreated_head_learns_what_two_views_share_and_holds_still():
    torch.manual_seed(0)
    content, noise = torch.randn(256, 16), torch.randn(2, 256, 16)
    one, two = (torch.cat([content, 1.5 * view], 1) for view in noise)
    g = steal.recreate_head(one, two, epochs=20, batch=32, seed=0)
    hardly = steal.recreate_head(one, two, epochs=1, batch=32, seed=0)
    assert losses.cosine(g(one), g(two)) < 0.85 * losses.cosine(hardly(one), hardly(two))
    assert g(one).std(0).min() > 1e-3, "not collapsed"
    assert torch.allclose(g.train()(one[:2]), g(one)[:2], atol=1e-5), "its statistics are fixed"
    assert not any(p.requires_grad for p in g.parameters())
    again = steal.recreate_head(one, two, epochs=20, batch=32, seed=0)
    assert torch.equal(again(one), g(one))


@pytest.mark.parametrize("negatives", ["victim", "self"])
def test_cont_steal_can_leave_negatives_out(shapes, victim, monkeypatch, negatives):
    given, _, _ = spied("cont-steal", victim, shapes, monkeypatch, negatives=negatives)
    assert all(options["negatives"] == negatives for _, _, options in given)


def answers_of(victim, shapes, chain=(), **changes) -> tuple[Tensor, BlackBox]:
    api = BlackBox(victim, list(chain))
    config = replace(FAST, attack="embedding", **changes)
    return steal.ask(config, api, shapes.images, "thief")[0], api


def test_averaging_undoes_fresh_noise_at_the_price_of_answers(shapes, victim):
    clean = encoders.embed(victim, shapes.images)
    errors = []
    for answers in (1, 16):
        noise = [defenses.GaussianNoise(1.0)]
        got, api = answers_of(victim, shapes, noise, adapt="average", answers=answers)
        errors.append((got - clean).square().mean().item())
        assert (api.ledger.unique_inputs, api.ledger.calls) == (N, N * answers)
    assert errors[1] == pytest.approx(errors[0] / 16, rel=0.2)


def test_centring_undoes_an_offset(shapes, victim):
    clean = encoders.embed(victim, shapes.images)
    got, _ = answers_of(victim, shapes, [defenses.GaussianNoise(0.0, mean=7.0)], adapt="centre")
    assert torch.allclose(got, clean - clean.mean(0), atol=1e-4)


def literally_possible(surrogate: Tensor, answers: Tensor, half: float, truncated: bool) -> Tensor:
    """Coordinate by coordinate, the value nearest to the surrogate's that gives the answer."""
    result = surrogate.detach().clone()
    for i, row in enumerate(answers):
        sent = [v for v in row.tolist() if v != 0]
        for j, value in enumerate(row.tolist()):
            low, high = value - half, value + half
            if truncated and value == 0:
                low, high = -math.inf, min(sent) + half
            result[i, j] = min(max(surrogate[i, j].item(), low), high)
    return result


@pytest.mark.parametrize(
    ("chain", "gaps"),
    [
        ([], (0.0, False)),
        ([defenses.Rounding(1)], (0.05, False)),
        ([defenses.Rounding(-1)], (5.0, False)),
        ([defenses.TopK(8)], (0.0, True)),
        ([defenses.TopK(8), defenses.Rounding(0)], (0.5, True)),
    ],
)
def test_a_thief_sees_what_rounding_and_truncation_have_left_out(chain, gaps):
    clean = 5 + 20 * torch.randn(40, 24, generator=torch.Generator().manual_seed(0)).abs()
    answers = clean
    for defense in chain:
        answers = defense(answers, "thief")
    assert steal.left_out([answers[:20], answers[20:]]) == pytest.approx(gaps)
    surrogate = (answers + torch.randn(answers.shape)).requires_grad_()
    found = steal.possible(surrogate, answers, *gaps)
    assert not found.requires_grad, "the target is no way around the loss"
    assert torch.allclose(found, literally_possible(surrogate, answers, *gaps), atol=1e-5)
    truth = steal.possible(clean, answers, *gaps)
    assert torch.allclose(truth, clean, atol=1e-4), "a surrogate that is right is left alone"


def test_zeros_of_the_victim_s_own_are_no_truncation():
    answers = torch.randn(40, 24, generator=torch.Generator().manual_seed(0)).relu()
    assert steal.left_out([answers]) == (0.0, False)
    dead = 1 + torch.rand(40, 24, generator=torch.Generator().manual_seed(1))
    dead[:, 3] = 0
    assert steal.left_out([dead]) == (0.0, False), "a coordinate of zeros is the victim's"
    assert steal.left_out([torch.zeros(40, 24)]) == (0.0, False)


def test_taking_bounds_trains_on_what_is_possible_alone(shapes, victim, monkeypatch):
    chain = [defenses.TopK(8)]
    seen = {}
    for adapt in ("none", "bounds"):
        given = []

        def spy(s: Tensor, t: Tensor, given: list = given) -> Tensor:
            given.append((s.detach().float(), t))
            return losses.mse(s, t)

        recipe = replace(steal.ATTACKS["embedding"], loss=spy)
        monkeypatch.setitem(steal.ATTACKS, "embedding", recipe)
        config = replace(FAST, attack="embedding", adapt=adapt)
        steal.train(config, BlackBox(victim, chain), shapes.images)
        seen[adapt] = given[0]
    (s, t), (same, answers) = seen["bounds"], seen["none"]
    assert torch.equal(s, same), "the first step starts alike"
    assert torch.allclose(t, literally_possible(s, answers, 0.0, True), atol=1e-5)


def test_accounts_are_mapped_into_the_space_of_the_first():
    victim = encoders.build("test_resnet", seed=3).eval()  # 96 features, fewer than anchors
    images = data.load("shapes", n=200, seed=2)
    chain = [defenses.build("user-transform", transform="affine")]
    whole = BlackBox(victim, chain).embed(images.images, user="thief")
    one, api = answers_of(victim, images, chain, accounts=3, anchors=110)
    assert torch.allclose(one[:110], whole[:110], atol=1e-4), "the first account's own answers"
    assert torch.allclose(one, whole, atol=1e-2 * float(whole.abs().max()))
    spent = {name: a.unique_inputs for name, a in api.ledger.accounts.items()}
    assert spent == {"thief": 140, "thief 2": 140, "thief 3": 140}
    naive = torch.cat([BlackBox(victim, chain).embed(images.images, user=f"u{k}")[k * 66:][:66]
                       for k in range(3)])  # fmt: skip
    assert not torch.allclose(naive[66:132], whole[66:132], atol=0.1)  # there is something to map


MSE, LABEL = {"attack": "embedding"}, {"attack": "label"}
REFUSED: dict[str, tuple[dict[str, object], str]] = {
    "attack": ({"attack": "contsteal"}, rf"'contsteal'.*{', '.join(steal.ATTACKS)}"),
    "views": ({"views": "sideways"}, r"'sideways'.*clean, surrogate, shared, independent"),
    "fixed both": ({"attack": "stolen-encoder", "views": "clean"}, "needs views='both'"),
    "fixed pair": ({"attack": "info-nce-2", "views": "shared"}, "needs views='pair'"),
    "both": ({**MSE, "views": "both"}, "only stolen-encoder takes them"),
    "answers": ({"answers": -1}, "answers=-1"),
    "batch": ({"batch": N + 1}, f"{N} images are fewer than one batch of {N + 1}"),
    "epochs": ({"epochs": 0}, "epochs"),
    "steps": ({"steps": -3}, "steps=-3: a whole number of at least 0"),
    "optimizer": ({"optimizer": "lars"}, "optimizer 'lars': choose one of adamw, sgd"),
    "infinite rate": ({"lr": math.inf}, "lr=inf: a finite number above 0"),
    "weight decay": ({"weight_decay": math.nan}, "weight_decay=nan: a finite number of at least 0"),
    "temperature": ({"temperature": 0.0}, "temperature=0.0: a finite number above 0"),
    "no image": ({"image_size": 0}, "image_size=0: a whole number of at least 1"),
    "small images": ({"image_size": 8}, "conv4 at 8 px: it needs images of at least 16 px"),
    "size": (
        {"encoder": "vit_tiny_patch16_224", "image_size": 64},
        r"64 does not run on images of \(32, 32\) px: set image_size",
    ),
    "width": ({"encoder": "conv4", "width": 0.3}, "width=0.3 of conv4: 16 x width must be"),
    "seed": ({"seed": None}, "seed=None: a whole number"),
    "policy": ({"policy": "simclear"}, "'simclear'.*simclr"),
    "negatives": (
        {"attack": "info-nce", "negatives": "self"},
        "negatives='self' of info-nce: only cont-steal",
    ),
    "centred labels": ({**LABEL, "adapt": "centre"}, "adapt='centre', accounts=1 of label: only"),
    "accounts of labels": ({**LABEL, "accounts": 2}, "accounts=2 of label: only answers that are"),
    "average of views": ({"adapt": "average"}, "adapt='average' of views='independent'"),
    "average of one": (
        {**MSE, "adapt": "average"},
        "adapt='average' with answers=None: set 2 or more",
    ),
    "no head": (LABEL, "embeddings only"),
    "no head for posteriors": ({"attack": "posterior"}, "embeddings only"),
    "no projector": ({"attack": "access-head"}, "this API gives no projections"),
    "no labels": (
        {"attack": "sup-con"},
        r"labels of kind NoneType: whole numbers \(32,\) are needed",
    ),
    "all anchors": ({**MSE, "accounts": 2, "anchors": N}, f"anchors={N} of {N} images"),
    "no anchors": ({**MSE, "accounts": 2, "anchors": 0}, "anchors=0 of"),
    "adaptation": (
        {"adapt": "subtract"},
        "unknown Config adapt 'subtract': choose one of none, average, centre, bounds",
    ),
    "no account": ({"accounts": 0}, "accounts=0: a whole number of at least 1"),
}


@pytest.mark.parametrize(("changes", "message"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_work_is_refused_before_a_query_is_paid(shapes, victim, changes, message):
    api = BlackBox(victim)
    with pytest.raises(ValueError, match=message):
        steal.train(replace(FAST, **changes), api, shapes.images)
    assert api.ledger.calls == 0


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"images": None}, "images of kind NoneType"),
        ({"images": [1]}, "images of kind list"),
        ({"images": torch.zeros(N, 3, 32, 32).to_sparse()}, "images of kind Tensor"),
        ({"images": torch.zeros(N, 3, 32, 0, dtype=torch.uint8)}, r"images \(32, 3, 32, 0\)"),
        ({"images": torch.zeros(N, 3, 32, 32)}, "uint8 of shape"),
        ({"labels": torch.arange(3)}, r"labels \(3,\) torch.int64: whole numbers \(32,\)"),
        ({"labels": torch.zeros(N)}, r"labels \(32,\) torch.float32: whole numbers \(32,\)"),
        ({"labels": -torch.ones(N, dtype=torch.int64)}, "label -1 of image 0"),
        ({"checkpoint": Path()}, "checkpoint=. is a folder"),
        ({"user": ""}, "1 to 256 printable characters"),
    ],
)
def test_what_is_no_query_or_label_is_refused_before_one_is_paid(shapes, victim, given, message):
    api, config = BlackBox(victim), replace(FAST, attack="sup-con", steps=1)
    labels = torch.arange(N) % 3
    with pytest.raises(ValueError, match=message):
        steal.train(config, api, **{"images": shapes.images, "labels": labels} | given)
    assert api.ledger.calls == 0


def test_an_unknown_mode_and_a_long_name_of_an_account_cost_no_query(shapes, victim, monkeypatch):
    api, config = BlackBox(victim), replace(FAST, attack="embedding", accounts=2, anchors=8)
    with pytest.raises(ValueError, match="printable characters"):
        steal.train(config, api, shapes.images, user="x" * 256)  # the second would be "xxx... 2"
    monkeypatch.setenv("CONTSTEAL_MODE", "slow")
    with pytest.raises(ValueError, match="'slow'"):
        steal.train(config, api, shapes.images)
    assert api.ledger.calls == 0


def test_too_small_a_budget_is_refused(shapes, victim):
    small = BlackBox(victim, budget=2 * N - 1)
    with pytest.raises(BudgetExceeded, match="needs 64 distinct inputs"):
        steal.train(replace(FAST, attack="barlow"), small, shapes.images)
    assert small.ledger.calls == 0


def test_a_budget_is_each_account_s_own_and_all_are_billed(shapes, victim):
    config = replace(FAST, attack="cont-steal", accounts=2, anchors=8)
    result = steal.train(config, BlackBox(victim, budget=20), shapes.images)  # 8 anchors, 12 of 24
    assert result.unique_inputs == result.calls == N + 8, "the anchors are sent twice"
    api = BlackBox(victim, budget=19)
    with pytest.raises(BudgetExceeded):
        steal.train(config, api, shapes.images)
    assert api.ledger.calls == 0
