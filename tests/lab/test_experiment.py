"""A profile's experiments: each computed once, resumed, never paid twice, and read back the same."""

import copy
import dataclasses
import shutil
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.record import forced
from contsteal import data, defenses, encoders, evaluate, loop, methods, pretrain
from contsteal.lab import artifacts, experiment, owner, provider
from contsteal.lab.experiment import Lab
from contsteal.ownership.watermark import rate

MARK = {"epochs": 1, "batch": 32}
KEY = {"kind": "sslguard", "epochs": 1, "images": 128}


def folders_of(kind: str) -> list[Path]:
    return sorted((artifacts.runs_dir() / "artifacts").glob(f"{kind}-*"))


def newest(kind: str) -> Path:
    return max(folders_of(kind), key=lambda f: f.stat().st_mtime)


def weights(net: torch.nn.Module) -> str:
    return encoders.digest(net.state_dict().items())


def contents(images: torch.Tensor) -> set[bytes]:
    return {image.numpy().tobytes() for image in images}


def test_the_victim_is_trained_once_and_read_back_the_same(
    lab: Lab, capsys: pytest.CaptureFixture[str]
) -> None:
    """That it is trained is kept as a message: on a notebook's page it would be a line of a log."""
    first, again = lab.victim, Lab("smoke").victim
    assert again.sha256 == first.sha256 == lab.train(method="simclr").sha256
    assert len(folders_of("victim")) == 1
    assert list(first.history["epoch"]) == [1, 2]
    for _ in range(2):
        assert lab.train("victim", lr=0.002).sha256 != first.sha256
    assert (lab.messages, capsys.readouterr().out) == (2 * ["computing victim"], "")


def test_an_interrupted_victim_continues_elsewhere_and_ends_the_same(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Between the two runs everything is copied to another folder, as to another machine."""
    lab.steal("embedding", 32)
    whole = lab.train("victim", epochs=3, seed=5)
    shutil.rmtree(newest("victim"))
    real, seen = loop._epoch, []

    def dying(*arguments: object) -> float:
        epoch = next(a for a in reversed(arguments) if isinstance(a, int))
        if epoch == 2 and "died" not in seen:
            seen.append("died")
            raise KeyboardInterrupt
        seen.append(epoch)
        return real(*arguments)

    monkeypatch.setattr(loop, "_epoch", dying)
    monkeypatch.setattr(loop, "SAVE_EVERY", 0.0)
    with pytest.raises(KeyboardInterrupt):
        lab.train("victim", epochs=3, seed=5)
    shutil.copytree(artifacts.runs_dir(), tmp_path / "a" / "b", copy_function=shutil.copyfile)
    monkeypatch.setenv("CONTSTEAL_RUNS", str(tmp_path / "a" / "b"))
    there = Lab("smoke")
    resumed = there.train("victim", epochs=3, seed=5)
    assert seen == [0, 1, "died", 2], "what was done before the kill is not repeated"
    assert resumed.sha256 == whole.sha256
    there.messages.clear()
    there.steal("embedding", 32)
    assert there.messages == [], "it is read back"
    assert there.steal("cosine", 32).queries["forwards"] == 0, "and so are the victim's answers"


def test_an_altered_surrogate_is_moved_aside_and_made_again(lab: Lab) -> None:
    before, folder = lab.steal("embedding", 32), newest("attack")
    blob = bytearray((folder / "encoder.safetensors").read_bytes())
    blob[-1] ^= 1
    (folder / "encoder.safetensors").write_bytes(blob)
    with pytest.warns(UserWarning, match="was altered"):
        assert lab.steal("embedding", 32).sha256 == before.sha256
    assert list(folder.parent.glob(f"{folder.name}.corrupt-*"))


def test_queries_are_nested_prefixes_and_disjoint_from_all_other_images(lab: Lab) -> None:
    few, many = lab.queries(16, seed=1), lab.queries(64, seed=1)
    assert torch.equal(few, many[:16])
    assert not torch.equal(few, lab.queries(16, seed=2))
    known = [lab.train_images(), lab.images("shapes"), lab.images("shapes", "test")]
    assert not contents(lab.queries(128)) & set.union(*(contents(s.images) for s in known))
    with pytest.raises(ValueError, match=r"999 queries: 1 to 128 are possible"):
        lab.queries(999)
    for odd in ("8", 8.5, True):
        with pytest.raises(ValueError, match=r"queries=.*: a whole number is needed"):
            lab.queries(odd)


def test_pixels_and_labels_are_part_of_what_a_set_is(lab: Lab) -> None:
    images = lab.train_images()
    pixels = 255 - images.images
    others = [
        data.ImageSet(images.images, images.labels.flip(0), images.name, "train", images.classes),
        data.ImageSet(pixels, images.labels, images.name, "train", images.classes),
    ]
    keys = [str(lab.data_key(one)) for one in (images, lab.train_images(), *others)]
    assert keys[0] == keys[1]
    assert len(set(keys)) == 3


def test_a_lab_under_other_settings_is_the_same_one_each_time(lab: Lab) -> None:
    other, byol = lab.but(query_data="patches"), lab.but(method="byol")
    assert other is lab.but(query_data="patches")
    assert other.victim.sha256 == lab.victim.sha256
    assert not torch.equal(other.queries(8), lab.queries(8))
    assert lab.but() is lab
    assert byol.victim.sha256 == lab.train(method="byol").sha256 != lab.victim.sha256
    assert lab.settings["query_data"] == "shapes", "the lab itself is as it was"


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"query_date": "patches"}, "query_date"), ({"watermark": {"weight": 2.0}}, "epochs")],
)
def test_other_settings_are_checked(lab: Lab, changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        lab.but(**changes)


def test_epochs_that_are_asked_for_replace_the_steps_of_a_profile(lab: Lab) -> None:
    own = lab.settings
    parts = {part: own[part] | {"steps": n} for part, n in (("surrogate", 3), ("victim", 6))}
    stepped = lab.but(**parts)
    assert stepped.steal("embedding", 32).queries["steps"] == 3
    assert stepped.steal("embedding", 32, epochs=3).queries["steps"] == 6
    assert stepped.steal("embedding", 32, epochs=3, steps=5).queries["steps"] == 5
    lengths = [len(one.history) for one in (stepped.victim, stepped.train(epochs=1))]
    assert lengths == [2, 1]
    assert stepped.train(epochs=1).sha256 == lab.train(epochs=1).sha256
    assert len(stepped.but(watermark=MARK).victim.history) == 1
    plan = owner.Strangers(epochs=1, images=96)
    assert len(owner.train_independent(stepped, plan, 0).history) == 1


def test_an_attack_may_have_a_learning_rate_of_its_own(lab: Lab) -> None:
    """It belongs to what the surrogate sees, however that is said; one that is given comes first."""
    rates = {"embedding": 0.01, "embedding, own views": 0.02, "cont-steal, independent views": 0.03}
    rated, general = lab.but(rates=rates), lab.settings["surrogate"]["lr"]
    names = {"embedding": 0.01, "embedding, clean": 0.01, "embedding, own views, shuffled": 0.02,
             "cont-steal": 0.03, "cont-steal, clean": general, "label": general}  # fmt: skip
    for name, lr in names.items():
        assert rated.rate(name) == rated.attack_config(name, 16).lr == lr
        assert rated.attack_config(name, 16, lr=3e-4).lr == 3e-4
    assert rated.attack_config("embedding", 16, views="surrogate").lr == 0.02
    ratio = [one.steal("embedding", 16).history["lr"].iloc[0] for one in (rated, lab)]
    assert ratio[0] / 0.01 == pytest.approx(ratio[1] / general)
    with pytest.raises(ValueError, match=r"'cont-steal, RandAugment': name an attack, with no"):
        lab.but(rates={"cont-steal, RandAugment": 2e-3})


def own_head(lab: Lab, stolen: artifacts.Trained, task: str = "shapes") -> dict[str, float]:
    """What a thief's own head adds to the score of its encoder."""
    score = lab.score(stolen.encoder, task, head=stolen.projector)
    assert list(score)[:5] == list(lab.score(stolen.encoder, task)), "columns of tables"
    return {name: value for name, value in score.items() if name.startswith("own_")}


@pytest.mark.parametrize("attack", ["label", "posterior"])
def test_a_classifier_s_thief_is_worth_what_its_own_head_gets_right(lab: Lab, attack: str) -> None:
    stolen, held_out = lab.steal(attack, 128, epochs=10), lab.images("shapes", "test")
    with loop.autocast(lab.device):
        features = encoders.embed(stolen.encoder, held_out.images)
    weights = stolen.projector.state_dict()
    predicted = (features @ weights["0.weight"].T + weights["0.bias"]).argmax(1)
    served = lab.api().classify(held_out.images, answer="label")
    found = own_head(lab, stolen)
    right = (predicted == held_out.labels).float().mean().item()
    assert found["own_head"] == pytest.approx(right)
    assert right > 0.1, "better than chance"
    agreed = (predicted == served).float().mean().item()
    assert found["own_agreement"] == pytest.approx(agreed, abs=0.02)  # bf16 beside float32
    assert found["own_agreement"] != found["own_head"]
    assert own_head(lab, stolen, "shapes:texture") == {}, "the victim serves another task"
    lab.messages.clear()
    assert own_head(lab, stolen) == found
    assert not lab.messages, "it is read back"
    other = copy.deepcopy(stolen.projector)
    torch.nn.init.zeros_(other[0].weight)
    changed = own_head(lab, dataclasses.replace(stolen, projector=other))
    assert changed != found, "another head has a key of its own"


@pytest.mark.parametrize("name", ["shapes:texture", "digits", "patches"])
def test_embedded_images_are_drawn_once_for_all_processes(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    each = [("train", 9, 7, 16), ("test", 9, 7, 16), ("train", 8, 7, 16), ("train", 9, 6, 16),
            ("train", 9, 7, 20)]  # fmt: skip
    drawn = [data.load(name, *given) for given in each]
    first = [experiment.load(name, *given) for given in each]
    monkeypatch.delattr(data, "load")
    again = [experiment.load(name, *given) for given in each]
    for made, *kept in zip(drawn, first, again, strict=True):
        for images in kept:
            assert torch.equal(images.images, made.images), "each has a key of its own"
            assert (images.labels is None) == (made.labels is None) == (name == "patches")
            assert images.labels is None or torch.equal(images.labels, made.labels)
            about = [(one.name, one.split, one.classes) for one in (images, made)]
            assert about[0] == about[1]


@pytest.mark.parametrize("attack", ["embedding", "access-head", "recreate-head"])
def test_other_thieves_have_no_classifier(lab: Lab, attack: str) -> None:
    assert own_head(lab, lab.steal(attack, 16)) == {}


@pytest.mark.parametrize("method", ["simclr", "supervised"])
def test_what_is_learnt_without_the_victim_is_what_the_images_alone_give(
    lab: Lab, method: str
) -> None:
    """The surrogate's architecture and batch, the victim's or the ceiling's recipe."""
    own = {"encoder": "conv4", "width": 0.5, "batch": 24}
    other = lab.but(surrogate=lab.settings["surrogate"] | own, probe_images=160)
    before = other.answers.forwards
    trained = other.alone(method, 48, seed=1, steps=3)
    assert other.answers.forwards == before
    config = methods.Config(
        method, "conv4", 0.5, 32, steps=3, batch=24, lr=3e-3, optimizer="adamw", weight_decay=1e-4,
        temperature=0.2 if method == "simclr" else None, held_out=0, seed=1,
    )  # fmt: skip
    images = other.labelled("shapes", 1)[0] if method == "supervised" else lab._queries(48, seed=1)
    assert trained.sha256 == encoders.identity(pretrain.train(config, images))
    ready = {"method": "ready", "encoder": "conv4", "weights": "timm"}
    supervised = other.but(supervised=ready).alone("supervised", 48, seed=1, steps=3)
    assert len(supervised.history) == 1, "a ready encoder is not what a thief trains"
    assert other.alone(method, 48, seed=1, steps=3).sha256 == trained.sha256
    assert other.alone(method, 48, seed=2, steps=3).sha256 != trained.sha256
    assert len(trained.history) == (2 if method == "simclr" else 1)


def test_labelled_images_are_drawn_anew_for_each_seed_and_are_nobody_s(lab: Lab) -> None:
    several = lab.but(probe_images=24, probe_draws=3)
    sets = [s for seed in (0, 1) for s in several.labelled("shapes", seed)]
    assert [len(s) for s in sets] == [24] * 6
    drawn = [contents(s.images) for s in sets]
    assert all(a != b for a, b in combinations(drawn, 2))
    theirs = contents(lab.train_images().images) | contents(lab.queries(128))
    assert not theirs & set().union(*drawn)
    other = several.labelled("shapes:texture", 1)[2]
    assert torch.equal(other.images, sets[5].images), "label sets share their images"
    assert torch.equal(several.labelled("shapes", 1)[2].labels, sets[5].labels)


def test_a_stored_set_gives_its_own_labelled_images_and_all_where_no_more_are_there(
    lab: Lab,
) -> None:
    few, every = lab.but(probe_images=24, probe_draws=2), lab.but(probe_images=0, probe_draws=2)
    train = contents(data.load("digits").images)
    first, second = few.labelled("digits", 3)
    assert contents(first.images) < train > contents(second.images) != contents(first.images)
    (all_of_it,) = every.labelled("digits", 3)
    assert contents(all_of_it.images) == train
    many = lab.but(probe_images=experiment.POOL, probe_draws=2)
    drawn = [contents(s.images) for seed in (0, 1) for s in many.labelled("glyphs", seed)]
    assert all(a != b for a, b in combinations(drawn, 2)), "an endless set has more to draw from"


def test_a_score_is_the_mean_over_probes_on_each_set_of_labelled_images(lab: Lab) -> None:
    several = lab.but(probe_images=40, probe_draws=3)
    net, victim, test = lab.random(), lab.victim.encoder, lab.images("shapes", "test")
    accuracies, agreements = [], []
    for known in several.labelled("shapes", 7):
        with loop.autocast(torch.device("cpu")):
            x, victim_x = (encoders.embed(n, known.images) for n in (net, victim))
            y, victim_y = (encoders.embed(n, test.images) for n in (net, victim))
        mine, theirs = (
            evaluate.linear_probe(a, known.labels, b, test.labels)
            for a, b in ((x, y), (victim_x, victim_y))
        )
        accuracies.append(mine.accuracy)
        agreements.append(evaluate.agreement(mine.predictions, theirs.predictions))
    score = several.score(net, "shapes", 7)
    assert score["accuracy"] == pytest.approx(np.mean(accuracies), abs=1e-6)
    assert score["agreement"] == pytest.approx(np.mean(agreements), abs=1e-6)
    assert several.score(net, "shapes", 7, draws=1)["accuracy"] == pytest.approx(accuracies[0])
    assert len(set(accuracies)) > 1
    assert several.score(net, "shapes", 8)["accuracy"] != score["accuracy"]
    assert several.score(net, "shapes", 8)["cka"] == several.score(net, "shapes", 7)["cka"]


def test_a_task_needs_labels_and_a_number_of_images_that_is_one(lab: Lab) -> None:
    with pytest.raises(ValueError, match="patches has no labels: choose another downstream task"):
        lab.score(lab.random(), "patches")
    for name, value in (("probe_images", -3), ("test_images", -1), ("probe_draws", 0)):
        with pytest.raises(ValueError, match=f"{name}={value} should be greater than or equal to"):
            lab.but(**{name: value})


def test_an_attack_knows_its_queries_by_their_pixels_whatever_they_are_called(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Labels are part of it where they are used: folders may be moved, and labels come to be known."""
    plain = lab._queries(16, 0)
    moved = data.ImageSet(plain.images, plain.labels.flip(0), "moved", "other", plain.classes)
    attacks, made = ("embedding", "sup-con"), []
    for queries in (plain, moved):
        monkeypatch.setattr(Lab, "_queries", lambda *_, queries=queries: queries)
        for attack in attacks:
            lab.steal(attack, 16, steps=1)
        made.append(len([*(artifacts.runs_dir() / "artifacts").glob("attack-*")]))
    assert made[1] == made[0] + 1, "the attack that uses labels alone"


def test_only_a_classifier_s_thief_depends_on_the_provider_s_labelled_images(lab: Lab) -> None:
    fewer = lab.but(probe_images=80)
    embedding = lab.steal("embedding", 16).sha256
    before = len(fewer.messages)
    assert fewer.steal("embedding", 16).sha256 == embedding
    assert len(fewer.messages) == before, "it is the same artifact"
    assert fewer.steal("label", 16).sha256 != lab.steal("label", 16).sha256


def test_defences_start_afresh_and_a_ruinous_one_harms_the_legitimate_user(lab: Lab) -> None:
    noise, ruin = (defenses.GaussianNoise(1.0),), (defenses.GaussianNoise(1e4),)
    answers = [lab.api(noise).embed(lab.queries(16)) for _ in range(2)]
    assert torch.equal(*answers)
    paid = [provider.purchase(lab, chain, "shapes")[0]["legitimate"] for chain in (ruin, ())]
    assert paid[0] < paid[1]


class Scale:
    """A defence that is no part of the package, and has no repr of its own."""

    def __init__(self, factor: float) -> None:
        self.factor = factor

    def __call__(self, answers: torch.Tensor, user: str) -> torch.Tensor:
        return answers * self.factor


def test_a_defence_is_part_of_an_attack_and_its_parameters_are(lab: Lab) -> None:
    """Also one of a user's own, which is known by its content."""
    noise, own = [[kind(x) for x in (0.5, 2.0)] for kind in (defenses.GaussianNoise, Scale)]
    chains = [[], *([defense] for defense in (*noise, *own, defenses.TopK(4)))]
    stolen = [lab.steal("embedding", 16, defenses=chain).sha256 for chain in chains]
    assert len(set(stolen)) == 6
    known = len(folders_of("attack"))
    assert lab.steal("embedding", 16, defenses=chains[1]).sha256 == stolen[1]
    assert lab.steal("embedding", 16, defenses=[Scale(0.5)]).sha256 == stolen[3]
    assert len(folders_of("attack")) == known


def test_kept_answers_belong_to_one_victim(lab: Lab) -> None:
    one, two, other = Lab("smoke"), Lab("smoke"), lab.but(method="byol")
    first, again = (each.api().embed(lab.queries(11, seed=5)) for each in (one, two))
    assert torch.equal(first, again)
    assert two.answers.forwards == 0, "another process reads what one has computed"
    assert other.answers.store.folder != one.answers.store.folder == two.answers.store.folder


def test_exact_mode_is_part_of_every_key_and_of_the_stamp(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual, stamp = lab.machine, lab.stamp([0, 1])
    assert stamp == {**stamp, **artifacts.stamp("smoke", "shapes", "0, 1")}
    monkeypatch.setattr(experiment, "modes", lambda: ["exact mode"])
    assert lab.machine == [*usual, "exact mode"]
    assert lab.stamp([0, 1])["device"] == f"{stamp['device']}, exact mode"


def test_a_stamp_follows_the_settings_and_the_images(lab: Lab) -> None:
    names = ("configuration", "images")
    changes = {"price": 2.0}, {"query_images": 100}, {"train_images": 100}
    stamps = [lab.but(**change).stamp([0]) for change in ({}, *changes)]
    settings, images = ([stamp[name] for stamp in stamps] for name in names)
    assert len(set(settings)) == 4
    assert (images[0] == images[1], len(set(images))) == (True, 3)


def test_a_lab_in_exact_mode_makes_torch_deterministic(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    with forced(mode="exact"):  # which puts torch's flags back
        torch.use_deterministic_algorithms(False)
        Lab("smoke")
        assert torch.are_deterministic_algorithms_enabled()


# ------------------------------------------------------------------------- marked victims


def test_a_marked_lab_has_another_victim_which_carries_its_mark(lab: Lab) -> None:
    marked = lab.but(watermark=MARK)
    victim = marked.victim
    assert victim.sha256 != lab.victim.sha256
    assert victim.mark.dim == victim.encoder.dim
    assert lab.victim.mark is None
    assert marked.steal("embedding", 16).sha256 != lab.steal("embedding", 16).sha256
    fixed = lab.but(watermark=MARK | {"trained_head": False}).victim
    assert fixed.sha256 not in (victim.sha256, lab.victim.sha256)
    carried = lab.but(watermark=MARK | {"data": "digits"}).victim
    assert carried.sha256 not in (victim.sha256, lab.victim.sha256)


def test_a_mark_and_a_key_read_back_the_same(lab: Lab) -> None:
    first, again = (Lab("smoke", watermark=MARK).victim for _ in range(2))
    assert first.sha256 == again.sha256
    assert weights(first.mark.head) == weights(again.mark.head)
    assert not any(p.requires_grad for p in again.mark.head.parameters())
    images = lab.queries(16)
    assert rate(first.mark, first.encoder, images) == rate(again.mark, again.encoder, images)
    guarded = [Lab("smoke", watermark=KEY).victim for _ in range(2)]
    assert weights(guarded[0].mark) == weights(guarded[1].mark)
    assert guarded[0].sha256 == guarded[1].sha256 != lab.victim.sha256
    assert len(folders_of("guarded")) == 1


def test_tuning_starts_at_the_victim_and_scratch_does_not(lab: Lab) -> None:
    slow, plain = MARK | {"lr": 1e-9}, dict(lab.victim.encoder.named_parameters())
    for start, near in (("victim", True), ("scratch", False)):
        net = lab.but(watermark=slow | {"start": start}).victim.encoder
        gap = max((p - plain[name]).abs().max().item() for name, p in net.named_parameters())
        assert (gap < 1e-5) == near


def test_a_ready_victim_is_scored_stolen_and_not_marked(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = encoders.build("test_resnet", seed=9)
    encoders.save(theirs, tmp_path / "theirs.safetensors")
    ready = {"method": "ready", "encoder": "test_resnet",
             "weights": str(tmp_path / "theirs.safetensors")}  # fmt: skip
    other = Lab("smoke", victim=ready)
    assert other.train().sha256 == encoders.identity(theirs) == other.victim.sha256
    assert other.train().history.empty
    assert other.steal("embedding", 16).queries["unique_inputs"] == 16
    assert 0 <= other.score(other.random(), "shapes")["accuracy"] <= 1
    with pytest.raises(ValueError, match="which method 'ready' does not know: set another"):
        _ = Lab("smoke", victim=ready, watermark={"epochs": 1}).victim
    np.testing.assert_array_equal(lab.train().history["epoch"], [1, 2])


def test_a_knob_that_the_name_of_an_attack_sets_is_not_set_again(lab: Lab) -> None:
    with pytest.raises(ValueError, match="parameter of an attack 'epoch': choose one of attack"):
        lab.steal("embedding", 32, epoch=3)
    with pytest.raises(ValueError, match="attack=3: a text is needed"):
        lab.steal(3, 32)
    with pytest.raises(ValueError, match="views='shared': the attack's name sets it already"):
        lab.steal("embedding, clean", 16, views="shared")
