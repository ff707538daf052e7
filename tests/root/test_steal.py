"""The attacks: what they send, what they pay, what they learn, and what they must not touch."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from contsteal import augment, data, encoders, loop, losses, pretrain, steal
from contsteal.defenses.perturbation import GaussianNoise
from contsteal.methods import Head
from contsteal.seeds import generator
from contsteal.victim import BlackBox, digests

N = 32
FAST = steal.Config(encoder="conv4", epochs=2, batch=16, lr=1e-3)
NARROW = 0.5  # 64 features; the victim has 128
AUGMENTED = ("shared", "independent")


@pytest.fixture(scope="module")
def images() -> Tensor:
    return data.load("shapes", n=64).images


@pytest.fixture(scope="module")
def victim() -> encoders.Encoder:
    """A trained network: the answers of a random one hardly differ from image to image."""
    config = pretrain.Config(
        "supervised", "conv4", epochs=8, batch=32, policy="none", lr=3e-3, held_out=0
    )
    net = pretrain.train(config, data.load("shapes", n=256, seed=1))
    net.zero_grad()  # what its own training left
    return net


class Recorder(BlackBox):
    """A victim that keeps what it was sent and what it answered."""

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.sent: list[Tensor] = []
        self.answers: list[Tensor] = []

    def embed(self, images, user="adversary"):
        self.sent.append(images.clone())
        self.answers.append(super().embed(images, user))
        return self.answers[-1]


@pytest.fixture
def seen(monkeypatch) -> list[Tensor]:
    """What surrogates are shown in training, as the victim would get it."""
    shown, build = [], encoders.build

    def note(net: encoders.Encoder, inputs: tuple[Tensor]) -> None:
        x = inputs[0]
        shown.append(x if x.dtype == torch.uint8 else augment.to_uint8(x))

    def noted(*args, **kwargs):
        net = build(*args, **kwargs)
        net.register_forward_pre_hook(note)
        return net

    monkeypatch.setattr(encoders, "build", noted)
    return shown


def api_of(net: nn.Module, **options) -> BlackBox:
    return BlackBox(net, head=lambda x: x[:, :5] * 1e3, projector=lambda x: x[:, :7], **options)


def digest(net: nn.Module) -> str:
    return encoders.digest(net.state_dict().items())


@pytest.mark.parametrize("shuffled", [False, True])
def test_the_embedding_attack_learns_the_answers_of_its_images(images, victim, shuffled):
    config = replace(FAST, attack="embedding", epochs=30, lr=1e-2, shuffled=shuffled)
    stolen = steal.train(config, BlackBox(victim), images).encoder
    truth = encoders.embed(victim, images)
    error = losses.mse(encoders.embed(stolen, images), truth) / truth.var(0, correction=0).mean()
    assert error > 0.9 if shuffled else error < 0.5, "1 is what predicting the mean answer gives"


def test_the_label_attack_learns_the_labels(images, victim):
    api = api_of(victim)
    result = steal.train(replace(FAST, attack="label", epochs=20, lr=3e-3), api, images)
    guess = result.head(encoders.embed(result.encoder, images)).argmax(1)
    truth = api.classify(images)
    rare = truth.bincount().max() / len(truth)
    assert (guess == truth).float().mean() > max(0.8, rare)


def weighty(net: nn.Module) -> list[str]:
    """The kinds of a network's layers that have weights of their own."""
    return [type(m).__name__ for m in net.modules() if [*m.parameters(recurse=False)]]


@pytest.mark.parametrize("output_layer", [True, False])
@pytest.mark.parametrize("width", [1.0, NARROW])
@pytest.mark.parametrize("attack", ["embedding", "recreate-head"])
def test_surrogates_of_embeddings_end_in_a_layer_into_the_victim_s_space(
    images, victim, attack, width, output_layer
):
    """Without it only those whose dimension differs from the victim's 128."""
    config = replace(FAST, attack=attack, width=width, output_layer=output_layer, steps=1)
    net = steal.train(config, BlackBox(victim), images[:N]).encoder
    layer = output_layer or width == NARROW
    assert isinstance(net.projection, nn.Linear if layer else nn.Identity)
    assert net.spec["out_dim"] == (128 if layer else None)
    assert net.dim == 128


@pytest.mark.parametrize("output_layer", [True, False])
@pytest.mark.parametrize(
    ("attack", "sizes"),
    [
        ("label", None),
        ("posterior", (128, 5)),
        ("posterior-logits", (128, 5)),
        ("access-head", (128, 128, 7)),
    ],
)
def test_other_surrogates_have_their_layer_in_a_head_that_can_be_kept(
    images, victim, tmp_path, attack, sizes, output_layer
):
    config = replace(FAST, attack=attack, output_layer=output_layer, steps=1)
    api = api_of(victim)
    result = steal.train(config, api, images[:N])
    assert isinstance(result.encoder.projection, nn.Identity)
    assert isinstance(result.head, Head)
    if attack == "label":
        sizes = (128, 1 + int(api.classify(images[:N]).max()))
    assert tuple(result.head.spec["sizes"]) == sizes
    assert weighty(result.head) == ["Linear"] * (len(sizes) - 1)
    result.head.save(tmp_path / "head.safetensors")
    assert digest(Head.load(tmp_path / "head.safetensors")) == digest(result.head)


def test_the_optimizer_is_the_one_that_was_asked_for(images, victim):
    seen = []
    hook = register_optimizer_step_post_hook(lambda optimizer, *_: seen.append(type(optimizer)))
    try:
        for name in ("adamw", "sgd"):
            config = replace(FAST, attack="embedding", steps=1, optimizer=name)
            steal.train(config, BlackBox(victim), images[:N])
    finally:
        hook.remove()
    assert seen == [torch.optim.AdamW, torch.optim.SGD]


@pytest.mark.parametrize(("steps", "epochs"), [(1, 1), (4, 2), (5, 3)])
@pytest.mark.parametrize("attack", ["cont-steal", "info-nce-2"])
def test_an_attack_of_so_many_steps_asks_for_its_epochs(images, victim, attack, steps, epochs):
    """32 images are two batches an epoch; anew in each epoch is asked for views of an own."""
    config = replace(FAST, attack=attack, steps=steps, epochs=99, answers=0)
    each = 2 if attack == "info-nce-2" else 1
    cost = N * epochs * each
    assert config.for_images(N).epochs == config.for_images(N).rounds == epochs
    assert config.for_images(N).distinct(N) == cost
    done = []
    hook = register_optimizer_step_post_hook(lambda *_: done.append(1))
    try:
        result = steal.train(config, BlackBox(victim, budget=cost), images[:N])
    finally:
        hook.remove()
    assert len(done) == steps
    assert len(result.history) == epochs
    assert (result.unique_inputs, result.calls) == (cost, cost)
    asked = steal.ask(config, BlackBox(victim), images[:N])
    assert len(asked) == epochs * each
    by_epochs = replace(config, steps=0, epochs=2)
    same = steal.train(by_epochs, BlackBox(victim), images[:N])
    assert (digest(same.encoder) == digest(result.encoder)) == (steps == 4)


@pytest.mark.parametrize(("answers", "rounds"), [(1, 1), (2, 2), (0, 3), (9, 3)])
@pytest.mark.parametrize("views", ["clean", "surrogate", "shared", "independent"])
def test_what_an_attack_costs(images, views, answers, rounds):
    api = BlackBox(encoders.build("conv4"))
    config = replace(FAST, views=views, answers=answers, epochs=3)
    steal.ask(config, api, images[:N])
    unique = N * rounds if views in AUGMENTED else N
    assert (api.ledger.unique_inputs, api.ledger.calls) == (unique, N * rounds)
    assert config.distinct(N) == unique


@pytest.mark.parametrize("answers", [1, 0])
@pytest.mark.parametrize("attack", ["cont-steal-code", "embedding"])
def test_shared_shows_both_the_same_view(images, victim, seen, monkeypatch, attack, answers):
    recipe, pairs = steal.ATTACKS[attack], []

    def spy(s, t, **options):
        pairs.append((seen[-1], t))
        return recipe.loss(s, t, **options)

    monkeypatch.setitem(steal.ATTACKS, attack, replace(recipe, loss=spy))
    api = Recorder(victim)
    steal.train(replace(FAST, attack=attack, views="shared", answers=answers), api, images[:N])
    assert len(api.sent) == len({digests(x)[0] for x in api.sent}) == (answers or FAST.epochs)
    known = dict(zip(digests(torch.cat(api.sent)), torch.cat(api.answers), strict=True))
    assert known.keys().isdisjoint(digests(images))
    assert len(pairs) == FAST.epochs * N // FAST.batch
    assert {name for x, _ in pairs for name in digests(x)} == set(known), "all that was paid for"
    for x, t in pairs:
        assert torch.stack([known[name] for name in digests(x)]).equal(t), "the answer to this view"


@pytest.mark.parametrize("views", ["clean", "surrogate", "independent"])
def test_who_sees_what(images, victim, seen, views):
    api = Recorder(victim)
    steal.train(replace(FAST, views=views, answers=0), api, images[:N])
    clean = set(digests(images[:N]))
    sent, shown = set(digests(torch.cat(api.sent))), digests(torch.cat(seen))
    assert sent.isdisjoint(clean) if views == "independent" else sent == clean
    if views == "clean":
        assert set(shown) == clean
    else:
        assert clean.isdisjoint(shown)
        assert sent.isdisjoint(shown)
        assert len(set(shown)) == len(shown), "the surrogate's views are fresh in every epoch"


@pytest.mark.parametrize(("views", "each"), [("shared", 1), ("pair", 2)])
@pytest.mark.parametrize("answers", [2, 0])
def test_views_are_drawn_once_where_they_fit(images, victim, monkeypatch, views, each, answers):
    attack = "info-nce-2" if views == "pair" else "cont-steal-code"
    config = replace(FAST, attack=attack, views=views, answers=answers, epochs=4)
    rounds, view, drawn, results = answers or 4, steal.view, [], []
    monkeypatch.setattr(steal, "view", lambda c, x, k: drawn.append(k) or view(c, x, k))
    for kept in (each * rounds * images[:N].nbytes, each * rounds * images[:N].nbytes - 1):
        monkeypatch.setattr(steal, "KEPT", kept)
        drawn.clear()
        net = steal.train(config, BlackBox(victim), images[:N]).encoder
        results.append((len(drawn), encoders.digest(net.state_dict().items())))
    assert results[0][0] == each * rounds
    held = (views, answers) == ("shared", 2)  # two views are always held
    assert results[1][0] > results[0][0] or held
    assert results[0][1] == results[1][1], "a view is the same whenever it is drawn"


@pytest.mark.parametrize("views", AUGMENTED)
def test_views_depend_on_seed_and_round_alone(images, victim, views):
    def sent(**knobs) -> list[list[bytes]]:
        api = Recorder(victim)
        steal.ask(replace(FAST, views=views, **knobs), api, images[:N])
        return [digests(x) for x in api.sent]

    two = sent(attack="embedding", answers=2)
    assert sent(attack="info-nce", answers=2, lr=1e-4) == two, "all attacks share cached views"
    assert sent(answers=1) == two[:1]
    assert two[0] != two[1]
    assert sent(answers=1, seed=1)[0] != two[0]


def test_the_seed_alone_decides_the_surrogate(images, victim):
    def stolen(global_seed: int, **knobs) -> str:
        torch.manual_seed(global_seed)
        api = BlackBox(victim, defenses=[GaussianNoise(0.1)])
        config = replace(FAST, **knobs)
        return digest(steal.train(config, api, images[:N]).encoder)

    assert stolen(1) == stolen(2)
    assert stolen(1, seed=1) != stolen(1)


@pytest.mark.parametrize("attack", ["cont-steal", "posterior"])
def test_a_killed_attack_ends_with_the_same_weights(images, victim, tmp_path, monkeypatch, attack):
    monkeypatch.setattr(loop, "SAVE_EVERY", 0.0)
    config = replace(FAST, attack=attack, views="independent", answers=2, epochs=4)
    recipe = steal.ATTACKS[attack]

    def run(**options) -> steal.Result:
        return steal.train(
            config, api_of(victim, defenses=[GaussianNoise(0.01)]), images[:N], **options
        )

    whole, steps = run(), []

    def dies(s, t, **options):
        steps.append(0)
        if len(steps) == 6:  # in the third epoch
            raise KeyboardInterrupt
        return recipe.loss(s, t, **options)

    with monkeypatch.context() as patch:
        patch.setitem(steal.ATTACKS, attack, replace(recipe, loss=dies))
        with pytest.raises(KeyboardInterrupt):
            run(checkpoint=tmp_path / "c.pt")
    resumed = run(checkpoint=tmp_path / "c.pt")
    assert digest(resumed.encoder) == digest(whole.encoder)
    assert whole.head is None or digest(resumed.head) == digest(whole.head)
    assert (resumed.unique_inputs, resumed.calls) == (whole.unique_inputs, whole.calls)
    assert [r["loss"] for r in resumed.history] == [r["loss"] for r in whole.history]


def test_a_checkpoint_of_another_attack_is_refused_before_any_query(
    images, victim, tmp_path, monkeypatch
):
    monkeypatch.setattr(loop, "SAVE_EVERY", 0.0)
    path, api = tmp_path / "c.pt", BlackBox(victim)
    steal.train(FAST, BlackBox(victim), images[:N], checkpoint=path)
    before = path.read_bytes()
    changes = {"attack": "embedding", "temperature": 0.1, "views": "shared", "width": NARROW}
    for name, value in changes.items():
        with pytest.raises(ValueError, match="another run"):
            steal.train(replace(FAST, **{name: value}), api, images[:N], path)
    with pytest.raises(ValueError, match="another run"):
        steal.train(FAST, api, images[1 : N + 1], path)
    assert api.ledger.calls == 0
    assert path.read_bytes() == before
    with pytest.raises(ValueError, match="api of kind NoneType: a BlackBox is needed"):
        steal.train(FAST, None, images[:N])


def test_a_checkpoint_of_another_victim_is_moved_aside_since_the_answers_are_paid_for(
    images, victim, tmp_path, monkeypatch
):
    monkeypatch.setattr(loop, "SAVE_EVERY", 0.0)
    path, other = tmp_path / "c.pt", [GaussianNoise(1.0)]
    steal.train(FAST, BlackBox(victim), images[:N], checkpoint=path)
    with pytest.warns(UserWarning, match="is of other answers: it is moved aside"):
        anew = steal.train(FAST, BlackBox(victim, other), images[:N], path)
    fresh = steal.train(FAST, BlackBox(victim, [GaussianNoise(1.0)]), images[:N])
    assert digest(anew.encoder) == digest(fresh.encoder)
    assert len(list(tmp_path.glob("c.pt.corrupt-*"))) == 1


def test_a_class_may_first_appear_in_a_later_round(images, victim):
    class Later(BlackBox):
        """Answer class 1 in the first round and class 4 in the second."""

        def classify(self, images, answer="label", user="adversary"):
            labels = super().classify(images, answer, user)
            return torch.full_like(labels, 1 if self.ledger.calls == N else 4)

    api = Later(victim, head=nn.Identity())
    config = replace(FAST, attack="label", views="independent", answers=2)
    assert steal.train(config, api, images[:N]).head[0].out_features == 5


ANSWERS = torch.randn(60, 8, generator=generator("answers"))


def test_a_remap_is_the_least_squares_solution():
    target = torch.randn(60, 3, generator=generator("target"))
    rows = torch.cat([ANSWERS, torch.ones(60, 1)], 1).double()
    literal = rows @ torch.linalg.solve(rows.T @ rows, rows.T @ target.double())
    mapped = steal.learn_remap(ANSWERS, target)(ANSWERS)
    torch.testing.assert_close(mapped, literal.float(), rtol=1e-4, atol=1e-5)


def test_constant_coordinates_do_no_harm():
    padded = torch.cat([ANSWERS, torch.full((60, 4), 2.5)], 1)
    mapped = steal.learn_remap(padded, ANSWERS)(padded)
    torch.testing.assert_close(mapped, ANSWERS, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("source", [ANSWERS[:0], ANSWERS[:59], ANSWERS / 0])
def test_answers_to_other_images_or_nan_are_refused(source):
    with pytest.raises(ValueError, match=r"the same images|NaN or infinity"):
        steal.learn_remap(source, ANSWERS if len(source) else source)
