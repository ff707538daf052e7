"""The rotation watermark: its geometry, its loss and gradients, its verdicts, and who is refused."""

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
from contsteal.ownership.watermark import Config, Mark, which

VICTIM = pretrain.Config(
    encoder="test_resnet", epochs=2, batch=16, hidden=24, projection=16, held_out=16
)
TINY = Config(victim=VICTIM, hidden=(12, 6))


@pytest.fixture(scope="module")
def shapes() -> data.ImageSet:
    return data.load("shapes", n=96)


@pytest.fixture(scope="module")
def marked(shapes) -> watermark.Watermarked:
    """A victim on which the rotation task was really trained: scenes with a bright upper half."""
    config = replace(VICTIM, epochs=12, lr=0.02, weight_decay=0.0)
    return watermark.fit(replace(TINY, victim=config, hidden=(32,), weight=5.0), half_lit(shapes))


def half_lit(shapes: data.ImageSet) -> data.ImageSet:
    images = shapes.images.clone()
    images[:, :, :16] = images[:, :, :16] // 4 + 190
    images[:, :, 16:] //= 4
    return replace(shapes, images=images)


def draws(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def linear(rows: list[list[float]], trained: bool = True) -> Mark:
    head = nn.Linear(len(rows[0]), 2, bias=False)
    head.weight.data = torch.tensor(rows)
    return Mark(head, len(rows[0]), trained)


# --------------------------------------------------------------------------------- geometry


def test_a_turn_is_torchvisions(shapes):
    images = augment.to_float(shapes.images[:6])
    degrees = torch.tensor([0.0, 17.0, 90.0, 163.5, 180.0, 301.0])
    for image, angle, ours in zip(images, degrees, augment.rotate(images, degrees), strict=True):
        theirs = reference(image, angle.item(), InterpolationMode.BILINEAR)
        torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=0)


def test_quarter_turns_move_pixels_counter_clockwise(shapes):
    images = augment.to_float(shapes.images[:3])
    quarter = augment.rotate(images, torch.full((3,), 90.0))
    torch.testing.assert_close(quarter, images.rot90(1, (2, 3)), atol=1e-4, rtol=0)
    half = augment.rotate(images, torch.full((3,), 180.0))
    torch.testing.assert_close(half, images.flip(2, 3), atol=1e-4, rtol=0)
    turned = augment.rotate(torch.ones(1, 3, 32, 32), torch.tensor([45.0]))
    assert turned[0, :, 0, 0].eq(0).all(), "the corners are black"


def test_each_half_plane_has_its_own_angles(monkeypatch):
    seen = []
    monkeypatch.setattr(augment, "rotate", lambda x, angle: seen.append(angle) or x)
    assert watermark.halves(torch.zeros(4000, 3, 2, 2), draws()).shape == (8000, 3, 2, 2)
    first, second = (seen[0][which(4000) == k] for k in (0, 1))
    assert stats.kstest(first.numpy(), "uniform", (0, 180)).pvalue > 0.01
    assert stats.kstest(second.numpy(), "uniform", (180, 180)).pvalue > 0.01
    assert abs(torch.corrcoef(torch.stack([first, second]))[0, 1]) < 0.06, "drawn independently"


def test_only_square_images_are_turned():
    with pytest.raises(ValueError, match=r"\(1, 3, 4, 6\): only square"):
        augment.rotate(torch.zeros(1, 3, 4, 6), torch.zeros(1))


# ------------------------------------------------------------------------- loss and gradients


def test_the_loss_is_the_methods_plus_a_literal_cross_entropy(shapes):
    model = watermark.build(replace(TINY, weight=3.0), 10).eval()
    batch = shapes.images[:8]
    with torch.no_grad():
        total = model(batch, None, draws(1), draws(2)).item()
        base = model.method(batch, None, draws(1)).item()
        turned = watermark.halves(augment.to_float(batch), draws(2))
        logits = model.head(model.method.encoder(turned)).tolist()
    terms = [math.log(sum(math.exp(v) for v in row)) - row[k >= 8] for k, row in enumerate(logits)]
    assert total == pytest.approx(base + 3 * sum(terms) / 16, abs=1e-5)


@pytest.mark.parametrize("trained", [True, False])
def test_gradients_reach_the_encoder_and_the_head_only_where_it_is_trained(shapes, trained):
    model = watermark.build(replace(TINY, trained_head=trained), 10)
    model.rotation(shapes.images[:8], draws()).backward()
    assert all(p.grad.abs().sum() > 0 for p in [*model.method.encoder.parameters()][:3])
    assert all((p.grad is not None) == trained for p in model.head.parameters())
    assert all(p.grad is None for p in model.method.online[1].parameters()), "not the projector"
    optimized = pretrain.schedule(VICTIM).build(model).param_groups[0]["params"]
    in_it = [any(p is q for q in optimized) for p in model.head.parameters()]
    assert all(in_it) if trained else not any(in_it)


@pytest.mark.parametrize("trained", [True, False])
def test_training_moves_the_head_only_where_it_is_trained(shapes, trained):
    config = replace(TINY, trained_head=trained)
    start = watermark.build(config, 10)
    made = watermark.fit(config, shapes)
    same = [
        torch.equal(a, b)
        for a, b in zip(start.head.parameters(), made.mark.head.parameters(), strict=True)
    ]
    assert not any(same) if trained else all(same)
    assert not made.encoder.training
    assert made.mark.trained_head == trained
    assert all(0 <= row["wsr"] <= 1 for row in made.history)


@pytest.mark.filterwarnings("ignore:simclr collapsed")
def test_without_weight_the_victim_is_the_plain_one(shapes):
    plain = pretrain.train(VICTIM, shapes)
    made = watermark.fit(replace(TINY, weight=0.0), shapes).encoder
    for (name, a), b in zip(plain.named_parameters(), made.parameters(), strict=True):
        assert torch.equal(a, b), name


def test_every_step_of_every_epoch_turns_by_angles_of_its_own(shapes, monkeypatch):
    turn, seen = augment.rotate, []
    monkeypatch.setattr(augment, "rotate", lambda x, angle: seen.append(angle) or turn(x, angle))
    made = watermark.fit(replace(TINY, victim=replace(VICTIM, held_out=0)), shapes)
    assert len(seen) == VICTIM.epochs * 6, "no image is held out, so none is monitored"
    assert len(torch.cat(seen).unique()) == 12 * 2 * VICTIM.batch
    assert "wsr" not in made.history[-1]


@pytest.mark.parametrize("method", ["byol", "supervised"])
def test_any_method_can_be_watermarked(shapes, method):
    made = watermark.fit(replace(TINY, victim=replace(VICTIM, method=method, epochs=1)), shapes)
    assert math.isfinite(made.history[-1]["loss"])


def test_a_killed_training_ends_with_the_same_victim_and_mark(shapes, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "SAVE_EVERY", 0.0)
    whole, rate, calls = watermark.fit(TINY, shapes), watermark.rate, []

    def dies(*given):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return rate(*given)

    monkeypatch.setattr(watermark, "rate", dies)
    with pytest.raises(KeyboardInterrupt):
        watermark.fit(TINY, shapes, tmp_path / "c.pt")
    resumed = watermark.fit(TINY, shapes, tmp_path / "c.pt")
    assert len(calls) == 3, "it continued after the first epoch"
    for part in ("encoder", "head"):
        nets = [w.encoder if part == "encoder" else w.mark.head for w in (whole, resumed)]
        one, two = (encoders.digest(net.state_dict().items()) for net in nets)
        assert one == two, part


def test_impossible_configs(shapes):
    with pytest.raises(ValueError, match=r"weight=-1\.0: it must be finite"):
        watermark.fit(replace(TINY, weight=-1.0), shapes)
    with pytest.raises(ValueError, match="unknown method 'simclear'"):
        watermark.fit(replace(TINY, victim=replace(VICTIM, method="simclear")), shapes)
    supervised = replace(TINY, victim=replace(VICTIM, method="supervised"))
    with pytest.raises(ValueError, match="needs a data set with labels"):
        watermark.fit(supervised, replace(shapes, labels=None))


# ------------------------------------------------------------------------------ verification


def test_success_is_counted_per_answer():
    mark = linear([[1.0, 0.0], [0.0, 1.0]])
    answers = torch.tensor([[2.0, 1.0], [0.0, 1.0], [0.0, 5.0], [1.0, 3.0]])
    assert watermark.success(mark, answers).tolist() == [1, 0, 1, 1]


def test_the_p_value_against_chance_is_the_binomial_tail(tiny, shapes):
    mark = linear(torch.randn(2, tiny.dim, generator=draws()).tolist())
    found = watermark.verify(mark, tiny, shapes.images[:20])
    hits = round(found.measure * 40)
    tail = sum(math.comb(40, k) for k in range(hits, 41)) / 2**40
    assert found.p_value == pytest.approx(tail)
    assert found.measure == watermark.rate(mark, tiny, shapes.images[:20])
    assert found.effect == pytest.approx(found.measure - 0.5)
    assert found.statistic == pytest.approx((hits - 20) / math.sqrt(10))
    assert found.samples == 40


def test_a_head_that_always_says_one_half_is_at_chance(tiny, shapes):
    mark = linear([[0.0] * tiny.dim, [0.0] * tiny.dim])
    found = watermark.verify(mark, tiny, shapes.images[:20])
    assert found.measure == 0.5
    assert found.p_value > 0.5


def test_the_owner_finds_the_mark_in_the_victim_and_not_in_others(marked, shapes):
    images = half_lit(shapes).images
    victim = watermark.verify(marked.mark, marked.encoder, images)
    assert victim.measure > 0.8
    assert victim.accuses(1e-6)
    others = [encoders.build("test_resnet", seed=s) for s in (1, 2, 3)]
    alone = watermark.verify(marked.mark, marked.encoder, images, controls=others)
    rates = [watermark.rate(marked.mark, net, images) for net in others]
    assert alone.p_value == inference.against_controls(victim.measure, rates).p_value
    assert alone.samples == 3
    assert max(rates) < victim.measure
    assert marked.history[-1]["wsr"] > 0.7, "also on images that it was not trained on"


def test_a_shuffled_thief_escapes_the_mark(marked, shapes):
    images = half_lit(shapes).images
    rates = {
        name: watermark.rate(marked.mark, hide(marked.encoder), images)
        for name, hide in (("shuffle", obfuscation.shuffle), ("affine", obfuscation.affine))
    }
    own = watermark.rate(marked.mark, marked.encoder, images)
    assert all(abs(r - 0.5) < own - 0.5 for r in rates.values()), rates


@pytest.mark.parametrize("shared", [0.0, 2.0])  # how much both turns of an image have in common
def test_who_never_learnt_the_mark_is_accused_no_more_often_than_said(shared):
    mark, accused = Mark(nn.Identity(), 2, True), {"chance": 0, "rank": 0}
    mark.head.register_parameter("unused", nn.Parameter(torch.zeros(1)))
    draws, trials = torch.Generator().manual_seed(0), 600
    for _ in range(trials):
        image = shared * torch.randn(40, 2, generator=draws).repeat(2, 1)
        answers = image + torch.randn(80, 2, generator=draws)
        found = watermark.against_chance(watermark.success(mark, answers))
        accused["chance"] += found.accuses()
        accused["rank"] += watermark.ranked(mark, answers).accuses()
    most = stats.binom.ppf(0.999, trials, 0.05)
    assert all(count <= most for count in accused.values()), accused
    assert shared or min(accused.values()) > stats.binom.ppf(0.001, trials, 0.03)


def test_the_papers_own_test_compares_answers(marked, shapes):
    images = half_lit(shapes).images[:40]
    sent = watermark.questions(images)
    stranger = encoders.build("test_resnet", seed=1)
    pair = [
        watermark.success(marked.mark, encoders.embed(net, sent))
        for net in (marked.encoder, stranger)
    ]
    assert inference.welch(*pair).accuses(1e-3)
    assert sent.dtype == torch.uint8
    assert torch.equal(sent, watermark.questions(images)), "the same questions to every suspect"
    assert not torch.equal(sent, watermark.questions(images, seed=1))


def test_the_order_of_margins_survives_a_shift_that_the_rate_does_not():
    mark = linear([[-1.0, 0.0], [1.0, 0.0]])
    answers = torch.tensor([[0.1, 0.0], [-0.3, 0.0], [0.4, 0.0], [0.2, 0.0]]) + 7
    found = watermark.ranked(mark, answers)
    assert watermark.success(mark, answers).mean() == 0.5
    assert found.measure == 1.0
    assert found.p_value == pytest.approx(1 / 6), "one of six orders of two and two"
    assert watermark.ranked(mark, answers.flip(0)).measure == 0.0


def test_carriers_are_turned_instead_of_the_training_images(shapes):
    model = watermark.build(TINY, 10).eval()
    batch, black = shapes.images[:8], torch.zeros(5, 3, 32, 32, dtype=torch.uint8)
    with torch.no_grad():
        one, two = (model(images, None, draws(1), draws(2), black) for images in (batch, batch))
        base = model.method(batch, None, draws(1))
        task = model.rotation(black[:1].expand(8, -1, -1, -1), draws(3))
    assert one == two
    assert one.item() == pytest.approx(base.item() + task.item(), abs=1e-5)


def test_a_tuned_mark_leaves_the_running_averages_to_the_views(shapes):
    trained = pretrain.Fitted(encoders.build("test_resnet"), [], None)
    for start in (trained, None):
        model = watermark.build(TINY, 10, start).train()
        before = [b.clone() for b in model.method.encoder.buffers()]
        model.rotation(shapes.images[:8], draws())
        same = [
            torch.equal(a, b) for a, b in zip(before, model.method.encoder.buffers(), strict=True)
        ]
        assert all(same) == (start is not None)
        assert model.method.encoder.training


def test_answers_that_the_head_cannot_read(marked, tiny, shapes):
    with pytest.raises(
        ValueError, match=r"96 coordinates.*does not apply; take ownership\.dataset"
    ):
        watermark.verify(marked.mark, obfuscation.pad(tiny), shapes.images[:4])
    for count in (0, 3):
        with pytest.raises(ValueError, match=f"{count} answers: give those to both turns"):
            watermark.success(marked.mark, torch.zeros(count, 96))
    with pytest.raises(ValueError, match="answers hold NaN or infinity"):
        watermark.success(marked.mark, torch.full((2, 96), math.nan))
    with pytest.raises(ValueError, match="1 controls"):
        watermark.verify(marked.mark, tiny, shapes.images[:4], controls=[tiny])


def flat(net: nn.Module) -> Tensor:
    return torch.cat([p.flatten() for p in net.parameters()])


def test_victim_and_head_are_drawn_from_the_seed_alone():
    one, two = watermark.build(TINY, 10), watermark.build(TINY, 10)
    other = watermark.build(replace(TINY, victim=replace(VICTIM, seed=1)), 10)
    assert torch.equal(flat(one), flat(two))
    assert not torch.equal(flat(one.head), flat(other.head))
