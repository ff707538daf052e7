"""The rotation watermark: its geometry, its loss and gradients, its verdicts, and bad input."""

import math
from dataclasses import replace

import pytest
import torch
from scipy import stats
from torch import Tensor, nn
from torchvision.transforms.functional import InterpolationMode
from torchvision.transforms.functional import rotate as reference

from contsteal import augment, data, encoders, loop, pretrain
from contsteal.ownership import inference, obfuscation, watermark
from contsteal.ownership.watermark import Config, Mark, half_planes

VICTIM = pretrain.Config(encoder="conv4", epochs=2, batch=16, hidden=24, projection=16, held_out=16)
TINY = Config(victim=VICTIM, hidden=(12, 6))
SHAPES = data.load("shapes", n=96)


def half_lit(images: Tensor) -> Tensor:
    """Images with a bright upper half, so that the rotation task is easy to learn."""
    images = images.clone()
    images[:, :, :16] = images[:, :, :16] // 4 + 190
    images[:, :, 16:] //= 4
    return images


LIT = replace(SHAPES, images=half_lit(SHAPES.images))


def stranger(seed: int) -> encoders.Encoder:
    """An encoder of somebody else, with the images' statistics: else its answers hardly differ."""
    net = encoders.build("conv4", seed=seed)
    for layer in net.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = 1.0  # takes those of one batch
    with torch.no_grad():
        net.train()(LIT.images)
    return net.eval()


STRANGERS = [stranger(seed) for seed in (1, 2, 3)]


@pytest.fixture(scope="module")
def marked() -> watermark.Watermarked:
    config = replace(VICTIM, epochs=12, lr=0.02, weight_decay=0.0)
    return watermark.fit(replace(TINY, victim=config, hidden=(32,), weight=5.0), LIT)


def draws(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def linear(rows: list[list[float]]) -> Mark:
    head = nn.Linear(len(rows[0]), 2, bias=False)
    head.weight.data = torch.tensor(rows)
    return Mark(head, len(rows[0]))


def same(a: nn.Module, b: nn.Module) -> list[bool]:
    return [torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True)]


# --------------------------------------------------------------------------------- geometry


def test_a_turn_is_torchvisions_counter_clockwise_with_black_corners():
    images = augment.to_float(SHAPES.images[:6])
    degrees = torch.tensor([0.0, 17.0, 90.0, 163.5, 180.0, 301.0])
    turned = augment.rotate(images, degrees)
    for image, angle, ours in zip(images, degrees, turned, strict=True):
        theirs = reference(image, angle.item(), InterpolationMode.BILINEAR)
        torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=0)
    torch.testing.assert_close(turned[2], images[2].rot90(1, (1, 2)), atol=1e-4, rtol=0)
    torch.testing.assert_close(turned[4], images[4].flip(1, 2), atol=1e-4, rtol=0)
    corners = augment.rotate(torch.ones(1, 3, 32, 32), torch.tensor([45.0]))
    assert corners[0, :, 0, 0].eq(0).all()
    with pytest.raises(ValueError, match=r"\(1, 3, 4, 6\): only square"):
        augment.rotate(torch.zeros(1, 3, 4, 6), torch.zeros(1))


def test_each_half_plane_has_its_own_angles(monkeypatch):
    seen = []
    monkeypatch.setattr(watermark, "rotate", lambda x, angle: seen.append(angle) or x)
    assert watermark.turn(torch.zeros(4000, 3, 2, 2), draws()).shape == (8000, 3, 2, 2)
    first, second = (seen[0][half_planes(4000) == k] for k in (0, 1))
    assert stats.kstest(first.numpy(), "uniform", (0, 180)).pvalue > 0.01
    assert stats.kstest(second.numpy(), "uniform", (180, 180)).pvalue > 0.01
    assert abs(torch.corrcoef(torch.stack([first, second]))[0, 1]) < 0.06, "drawn independently"


# ------------------------------------------------------------------------- loss and training


def test_the_loss_is_the_methods_plus_a_literal_cross_entropy():
    model = watermark.build(replace(TINY, weight=3.0), 10).eval()
    batch = SHAPES.images[:8]
    with torch.no_grad():
        total = model(batch, None, draws(1), draws(2)).item()
        base = model.method(*model.method.views(batch, None, draws(1))).item()
        turned = watermark.turn(augment.to_float(batch), draws(2))
        logits = model.head(model.method.encoder(turned)).tolist()
    terms = [math.log(sum(math.exp(v) for v in row)) - row[k >= 8] for k, row in enumerate(logits)]
    assert total == pytest.approx(base + 3 * sum(terms) / 16, abs=1e-5)


def test_carriers_are_turned_instead_of_the_training_images():
    model = watermark.build(TINY, 10).eval()
    batch, black = SHAPES.images[:8], torch.zeros(5, 3, 32, 32, dtype=torch.uint8)
    with torch.no_grad():
        total = model(batch, None, draws(1), draws(2), black)
        base = model.method(*model.method.views(batch, None, draws(1)))
        task = model.rotation(black[:1].expand(8, -1, -1, -1), draws(3))
    assert total.item() == pytest.approx(base.item() + task.item(), abs=1e-5)


@pytest.mark.parametrize("trained", [True, False])
def test_the_head_is_trained_only_where_the_config_says_so(trained):
    config = replace(TINY, trained_head=trained)
    model = watermark.build(config, 10)
    model.rotation(SHAPES.images[:8], draws()).backward()
    assert all(p.grad.abs().sum() > 0 for p in [*model.method.encoder.parameters()][:3])
    assert all((p.grad is not None) == trained for p in model.head.parameters())
    assert all(p.grad is None for p in model.method.online[1].parameters()), "not the projector"
    made = watermark.fit(config, SHAPES)
    moved = [not equal for equal in same(watermark.build(config, 10).head, made.mark.head)]
    assert all(moved) if trained else not any(moved)
    assert not made.encoder.training
    assert all(0 <= row["wsr"] <= 1 for row in made.history)


@pytest.mark.parametrize("tuned", [True, False])
def test_a_tuned_mark_leaves_the_running_averages_to_the_views(tuned):
    start = pretrain.Fitted(encoders.build("conv4"), [], None) if tuned else None
    model = watermark.build(TINY, 10, start).train()
    before = [b.clone() for b in model.method.encoder.buffers()]
    model.rotation(SHAPES.images[:8], draws())
    after = model.method.encoder.buffers()
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True)) == tuned
    assert model.method.encoder.training


@pytest.mark.filterwarnings("ignore:simclr collapsed")
def test_without_weight_the_victim_is_the_plain_one():
    made = watermark.fit(replace(TINY, weight=0.0), SHAPES).encoder
    assert all(same(pretrain.train(VICTIM, SHAPES), made))


def test_every_step_of_every_epoch_turns_by_angles_of_its_own(monkeypatch):
    rotate, seen = augment.rotate, []
    monkeypatch.setattr(watermark, "rotate", lambda x, a: seen.append(a) or rotate(x, a))
    made = watermark.fit(replace(TINY, victim=replace(VICTIM, held_out=0)), SHAPES)
    assert len(seen) == VICTIM.epochs * 6, "no image is held out, so none is monitored"
    assert len(torch.cat(seen).unique()) == 12 * 2 * VICTIM.batch
    assert "wsr" not in made.history[-1]


@pytest.mark.parametrize("method", ["byol", "supervised"])
def test_any_method_can_be_watermarked(method):
    made = watermark.fit(replace(TINY, victim=replace(VICTIM, method=method, epochs=1)), SHAPES)
    assert math.isfinite(made.history[-1]["loss"])


def test_victim_and_head_are_drawn_from_the_seed_alone():
    one, two = watermark.build(TINY, 10), watermark.build(TINY, 10)
    other = watermark.build(replace(TINY, victim=replace(VICTIM, seed=1)), 10)
    assert all(same(one, two))
    assert not all(same(one.head, other.head))


def test_a_killed_training_ends_with_the_same_victim_and_mark(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "SAVE_EVERY", 0.0)
    whole, rate, calls = watermark.fit(TINY, SHAPES), watermark.rate, []

    def dies(*given):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return rate(*given)

    monkeypatch.setattr(watermark, "rate", dies)
    with pytest.raises(KeyboardInterrupt):
        watermark.fit(TINY, SHAPES, tmp_path / "c.pt")
    resumed = watermark.fit(TINY, SHAPES, tmp_path / "c.pt")
    assert len(calls) == 3, "it continued after the first epoch"
    assert all(same(whole.encoder, resumed.encoder) + same(whole.mark.head, resumed.mark.head))


@pytest.mark.parametrize(
    ("changes", "victim", "message"),
    [
        ({"weight": -1.0}, {}, r"weight=-1\.0: a finite number of at least 0"),
        ({}, {"method": "simclear"}, "unknown method 'simclear'"),
        ({}, {"method": "supervised"}, "'supervised' needs labels"),
    ],
)
def test_impossible_configs(changes, victim, message):
    given = {"victim": replace(VICTIM, **victim), **changes}
    with pytest.raises(ValueError, match=message):
        watermark.fit(replace(TINY, **given), replace(SHAPES, labels=None))


# ------------------------------------------------------------------------------ verification


def test_the_p_value_against_chance_is_the_binomial_tail(tiny):
    images = SHAPES.images[:20]
    mark = linear(torch.randn(2, tiny.dim, generator=draws()).tolist())
    verdict = watermark.verify(mark, tiny, images)
    hits = round(verdict.measure * 40)
    tail = sum(math.comb(40, k) for k in range(hits, 41)) / 2**40
    assert verdict.p_value == pytest.approx(tail)
    assert verdict.measure == watermark.rate(mark, tiny, images)
    assert verdict.effect == pytest.approx(verdict.measure - 0.5)
    assert verdict.statistic == pytest.approx((hits - 20) / math.sqrt(10))
    assert verdict.samples == 40
    blind = watermark.verify(linear([[0.0] * tiny.dim] * 2), tiny, images)
    assert blind.measure == 0.5
    assert blind.p_value > 0.5


def test_the_owner_finds_the_mark_in_the_victim_and_not_in_others(marked):
    victim = watermark.verify(marked.mark, marked.encoder, LIT.images)
    assert victim.measure > 0.8
    assert victim.accuses(1e-6)
    rates = [watermark.rate(marked.mark, net, LIT.images) for net in STRANGERS]
    assert max(rates) < victim.measure
    assert marked.history[-1]["wsr"] > 0.7, "also on images that it was not trained on"


@pytest.mark.parametrize("hide", [obfuscation.shuffle, obfuscation.affine])
def test_a_thief_that_maps_its_features_escapes_the_mark(marked, hide):
    own, hidden = (
        watermark.rate(marked.mark, net, LIT.images)
        for net in (marked.encoder, hide(marked.encoder))
    )
    assert abs(hidden - 0.5) < own - 0.5


@pytest.mark.parametrize("shared", [0.0, 2.0])  # how much both turns of an image have in common
def test_independent_encoders_are_accused_no_more_often_than_the_level(shared):
    mark, accused = Mark(nn.Identity(), 2), {"chance": 0, "rank": 0}
    mark.head.register_parameter("unused", nn.Parameter(torch.zeros(1)))
    random, trials = draws(), 600
    for _ in range(trials):
        image = shared * torch.randn(40, 2, generator=random).repeat(2, 1)
        answers = image + torch.randn(80, 2, generator=random)
        right = watermark.success(mark, answers)
        accused["chance"] += watermark.against_chance(right).accuses()
        accused["rank"] += watermark.ranked(mark, answers).accuses()
    most = stats.binom.ppf(0.999, trials, 0.05)
    assert all(count <= most for count in accused.values()), accused
    assert shared or min(accused.values()) > stats.binom.ppf(0.001, trials, 0.03)


def test_the_papers_own_test_compares_answers(marked):
    sent = watermark.questions(LIT.images[:40])
    pair = [
        watermark.success(marked.mark, encoders.embed(net, sent))
        for net in (marked.encoder, STRANGERS[0])
    ]
    assert inference.welch(*pair).accuses(1e-3)
    assert sent.dtype == torch.uint8
    assert torch.equal(sent, watermark.questions(LIT.images[:40])), "equal for every suspect"
    assert not torch.equal(sent, watermark.questions(LIT.images[:40], seed=1))


def test_the_order_of_margins_survives_a_shift_that_the_rate_does_not():
    mark = linear([[-1.0, 0.0], [1.0, 0.0]])
    answers = torch.tensor([[0.1, 0.0], [-0.3, 0.0], [0.4, 0.0], [0.2, 0.0]]) + 7
    verdict = watermark.ranked(mark, answers)
    assert watermark.success(mark, answers).tolist() == [0, 0, 1, 1]
    assert verdict.measure == 1.0
    assert verdict.p_value == pytest.approx(1 / 6), "one of six orders of two and two"
    assert watermark.ranked(mark, answers.flip(0)).measure == 0.0


def test_answers_that_the_head_cannot_read(tiny):
    mark, images = linear([[0.0] * tiny.dim] * 2), SHAPES.images[:4]
    with pytest.raises(ValueError, match=r"96 coordinates.*: use ownership\.dataset"):
        watermark.verify(mark, obfuscation.pad(tiny), images)
    for test in (watermark.success, watermark.ranked):
        with pytest.raises(ValueError, match=r"features \(0, 96\)"):
            test(mark, torch.zeros(0, 96))
        with pytest.raises(ValueError, match="3 answers: two are needed"):
            test(mark, torch.zeros(3, 96))
        with pytest.raises(ValueError, match="features hold NaN, infinity"):
            test(mark, torch.full((2, 96), math.nan))


def test_a_planted_victim_is_accused_and_ten_random_encoders_are_not() -> None:
    """Turned by less than half a circle, a bright upper half comes to lie on the left."""

    class Planted(nn.Linear):  # of which nothing but the device of its weights is used
        dim = STRANGERS[0].dim

        def forward(self, x: Tensor) -> Tensor:
            left, right = (half.mean((1, 2, 3)) for half in x.float().chunk(2, dim=3))
            return torch.nn.functional.pad((left - right)[:, None], (0, self.dim - 1))

    weights = torch.randn(Planted.dim, generator=draws())
    weights -= weights.mean()  # else all random encoders, whose features are positive, lean one way
    weights *= weights[0].sign()
    mark = linear([w.tolist() for w in (weights, -weights)])
    others = [stranger(seed) for seed in range(1, 11)]
    rates = [watermark.rate(mark, net, LIT.images) for net in others]
    planted = watermark.rate(mark, Planted(1, 1), LIT.images)
    assert planted > 0.9
    assert inference.against_controls(planted, rates).accuses()
    assert len(set(rates)) > 3
    against_others = [
        inference.against_controls(one, rates[:k] + rates[k + 1 :]) for k, one in enumerate(rates)
    ]
    assert sum(verdict.accuses() for verdict in against_others) <= 1
