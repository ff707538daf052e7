"""What an owner proves: strangers that share no image with the victim, and tables of verdicts."""

from collections.abc import Iterator

import pandas as pd
import pytest
import torch

from contsteal.lab import artifacts, owner, tables
from contsteal.lab.experiment import Lab
from contsteal.lab.owner import Strangers
from contsteal.ownership import inference
from contsteal.ownership.watermark import rate

MARK = {"epochs": 1, "batch": 32}
HOW = {"count": 3, "epochs": 1, "images": 96}
TURNED = {"attack": "embedding", "views": "shared", "policy": "rotation"}
THIEVES = {"embedding": {"attack": "embedding"}, "embedding, turned": TURNED}
MEMORISES = {"method": "supervised", "epochs": 1, "batch": 32}
SMALL = {"images": 48, "components": 2, "covariance": "diag"}
pytestmark = pytest.mark.filterwarnings("ignore:simclr collapsed")


@pytest.fixture(scope="module", autouse=True)
def few_questions() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, "ASKED", 32)
        yield


@pytest.fixture(scope="module")
def marked(lab: Lab) -> pd.DataFrame:
    marks = [MARK, MARK | {"trained_head": False}]
    return owner.watermark(lab, marks, THIEVES, [16, 32], [0, 1], HOW)


@pytest.fixture(scope="module")
def inferred(lab: Lab) -> pd.DataFrame:
    options = SMALL | {"train_images": 96, "victim": MEMORISES}
    return owner.dataset_inference(lab, THIEVES, [32], [0, 1], HOW, **options)


def rows_of(images: torch.Tensor) -> set[bytes]:
    return {i.numpy().tobytes() for i in images}


# --------------------------------------------------------------------- images and strangers


def test_strangers_never_see_an_image_of_the_victim_or_of_each_other(lab: Lab) -> None:
    plan = Strangers(**HOW)
    sets = [rows_of(plan.load(lab, k).images) for k in range(3)]
    known = rows_of(lab.train_images().images) | rows_of(lab.queries(128))
    known |= rows_of(owner.public(lab, 96))
    assert not any(one & known for one in sets)
    assert len(set.union(*sets)) == 3 * 96
    nets = [owner.train_independent(lab, plan, k).sha256 for k in (0, 1, 0)]
    assert nets[0] == nets[2] != nets[1]


def test_the_images_of_a_test_are_those_that_carried_the_mark(lab: Lab) -> None:
    trained = rows_of(lab.train_images().images)
    assert rows_of(owner.trained_on(lab.but(watermark=MARK), owner.ASKED)) <= trained
    carried = lab.but(watermark=MARK | {"data": "digits"})
    assert not rows_of(owner.trained_on(carried, 32)) & trained


@pytest.mark.parametrize("name", ["shapes", "digits"])
def test_public_images_are_fresh_for_each_block(lab: Lab, name: str) -> None:
    blocks = [rows_of(owner.public(lab.but(data=name), 32, block)) for block in (0, 1, 1)]
    assert blocks[1] == blocks[2] != blocks[0]
    if name == "shapes":
        assert not blocks[0] & blocks[1], "an endless set has others each time"


def test_stored_data_of_the_victim_are_no_strangers_data(lab: Lab) -> None:
    digits = lab.but(data="digits")
    with pytest.raises(ValueError, match="trained on digits; name other"):
        Strangers().load(digits, 0)
    assert len(Strangers(data="digits", images=20).load(lab, 0)) == 20


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda lab: owner.train_suspects(lab, {"number": 3}, []), "number"),
        (lambda lab: owner.train_suspects(lab, {"count": "3"}, []), "count"),
        (lambda lab: owner.train_suspects(lab, {"count": -1}, []), "strangers: count=-1 should be"),
        (lambda lab: owner.trained_on(lab, 999), "trained on=999: .* of at most 288"),
        (lambda lab: owner.public(lab.but(data="digits"), 9999), "images of digits=9999: .* of at most"),
        (lambda lab: owner.dataset_inference(lab, {}, [16], [0], {"count": 0}, images=8, components=9),
         "n_components = 9, n_samples = 8"),
    ],
)  # fmt: skip
def test_impossible_strangers_and_counts(lab: Lab, call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(lab)


def test_strangers_of_a_ready_victim_are_refused() -> None:
    ready = {"method": "ready", "encoder": "test_resnet", "weights": "timm"}
    with pytest.raises(ValueError, match="recipe, which method 'ready' does not know"):
        owner.train_independent(Lab("smoke", victim=ready), Strangers(), 0)


# ----------------------------------------------------------------------------- watermarks


def test_every_suspect_has_a_row_per_head(marked: pd.DataFrame) -> None:
    heads = list(marked["head"].unique())
    assert heads == list(owner.HEADS.values())
    counts = marked[marked["head"] == heads[0]]["kind"].value_counts().to_dict()
    assert counts == {"stolen": 8, "obfuscated": 4, "independent": 3, "stolen before": 2, "victim": 1,
                      "unmarked": 1}  # fmt: skip
    other = marked[(marked["head"] == heads[1]) & (marked["kind"] == "stolen")]
    assert set(other["images"]) == {32}, "the largest budget alone"
    assert set(other["suspect"]) == {"embedding"}, "the first thief alone"
    assert marked["mark"].eq("tuned into the victim, 1 epoch of 320 images").all()
    on = "32 training images that the mark was trained on, each turned twice"
    assert set(marked["on"].dropna()) == {on}
    assert set(marked["answers"].dropna()) == {64}
    worth = marked[marked["accuracy"].notna()]
    assert set(worth["kind"]) == {"victim", "unmarked"}, "the price is that of victims alone"
    assert len(set(worth[worth["kind"] == "unmarked"]["accuracy"])) == 1


def test_rates_are_those_of_the_verdict_functions(lab: Lab, marked: pd.DataFrame) -> None:
    victim = lab.but(watermark=MARK).victim
    images = owner.trained_on(lab.but(watermark=MARK), owner.ASKED)
    before = marked[marked["kind"] == "stolen before"].iloc[0]
    surrogate = lab.steal("embedding", 32, int(before["seed"])).encoder
    assert before["wsr"] == rate(victim.mark, surrogate, images), "of the victim unmarked"
    first = marked[marked["head"] == owner.HEADS[True]].set_index(["kind", "seed"])["wsr"]
    assert first["victim", 0] == rate(victim.mark, victim.encoder, images)
    plan = Strangers(**HOW)
    nets = [owner.train_independent(lab, plan, k).encoder for k in range(3)]
    controls = [rate(victim.mark, net, images) for net in nets]
    assert [first["independent", k] for k in range(3)] == controls


def test_a_suspect_of_another_dimension_is_not_judged(lab: Lab, marked: pd.DataFrame) -> None:
    dim = lab.victim.encoder.dim
    padded = marked[marked["suspect"] == "pad"]
    assert padded["applies"].eq(f"does not apply: {dim + 16} features, the owner reads {dim}").all()
    assert padded[["wsr", "p_chance", "p_controls", "p_paper", "auc"]].isna().all(axis=None)
    assert marked[marked["suspect"] != "pad"]["applies"].eq("yes").all()


def judge(rates: list[float], others: list[float]) -> pd.DataFrame:
    kinds = ["stolen"] * len(rates) + ["independent"] * len(others)
    table = pd.DataFrame({"kind": kinds, "seed": 0, "wsr": rates + others, "applies": "yes",
                          "answers": 1000})  # fmt: skip
    return owner._judged(table.assign(right=1000 * table["wsr"]), "wsr")


def test_a_victim_is_accused_and_ten_independent_encoders_are_not() -> None:
    others = [0.48, 0.49, 0.492, 0.497, 0.5, 0.501, 0.503, 0.508, 0.51, 0.515]
    found = judge([0.93, 0.515], others)
    expected = (
        inference.against_controls(0.93, others),
        inference.against_controls(0.48, others[1:]),
    )
    assert found["p_controls"][[0, 2]].tolist() == pytest.approx([e.p_value for e in expected])
    assert found["accused"].tolist() == [1.0] + [0.0] * 11
    least = inference.least_excess(others)
    assert found["detectable"][:2].tolist() == pytest.approx([least] * 2)
    assert 0.93 - pd.Series(others).mean() > least > 0.515 - pd.Series(others).mean()
    assert found["controls"].tolist() == [10.0] * 2 + [9.0] * 10, (
        "an independent one has the others"
    )


@pytest.mark.parametrize("others", [[], [0.5], [0.5, 0.5, 0.5]])
def test_too_few_or_equal_controls_give_no_p_value(others: list[float]) -> None:
    found = judge([0.9], others)
    assert found[["accused", "detectable"]].isna().all(axis=None)
    assert found["p_controls"].isna().all()
    assert pd.isna(found["p_paper"].iloc[0]) == (not others)


def test_a_thief_may_query_with_what_carries_the_mark(lab: Lab) -> None:
    carried = MARK | {"data": "digits", "images": 64}
    thief = {"embedding": {"attack": "embedding"}}
    thief["embedding, digits"] = thief["embedding"] | {"query_data": "digits"}
    table = owner.watermark(lab, [carried], thief, [16], [0], HOW)
    assert set(table["head"]) == {"trained head, carried by digits"}
    rates = table[table["kind"] == "stolen"].set_index("suspect")["wsr"]
    assert list(rates.index) == ["embedding", "embedding, digits"]
    victim = lab.but(watermark=carried)
    stolen = victim.but(query_data="digits").steal("embedding", 16, 0)
    images = owner.trained_on(victim, 32)
    assert rates["embedding, digits"] == rate(victim.victim.mark, stolen.encoder, images)


def test_a_key_is_tried_on_all_suspects(lab: Lab) -> None:
    plan, thief = {"epochs": 1, "images": 128}, {"embedding": {"attack": "embedding"}}
    table = owner.guard(lab, plan, thief, [16], [0], HOW)
    assert set(table["kind"]) == {
        "victim", "unmarked", "obfuscated", "stolen", "stolen before", "independent",
    }  # fmt: skip
    read = table[table["applies"] == "yes"]
    assert read[["rate", "p_keys"]].apply(lambda c: c.between(0, 1)).all(axis=None)
    assert set(read["on"]) == {"32 training images of the victim, stamped"}
    assert "p_paper" not in table


# ----------------------------------------------------------------------- dataset inference


def test_inference_has_both_forms_and_is_kept(lab: Lab, inferred: pd.DataFrame) -> None:
    counts = {"victim": 2, "obfuscated": 8, "stolen": 4, "independent": 3, "profile": 2}
    assert inferred["kind"].value_counts().to_dict() == {k: 2 * n for k, n in counts.items()}
    wide = inferred.pivot_table(index=["suspect", "seed"], columns="form", values="p")
    gap = inferred.drop_duplicates(["suspect", "seed"]).set_index(["suspect", "seed"])["gap"]
    away = wide.loc[gap.index[gap < 0]]
    assert (away["published"] < 0.5).all(), "half of a two-sided p, in the wrong direction too"
    assert (away["signed"] > 0.5).all()
    for seed in (0, 1):
        for name in ("shuffle", "pad"):  # the length of a vector and its order say nothing
            assert gap[name, seed] == pytest.approx(gap["victim", seed], rel=1e-3)
    kept = (artifacts.runs_dir() / "artifacts").glob("inference-*")
    assert len(list(kept)) == sum(counts.values())
    assert set(inferred["detectable"]) == {inference.least_gap(48, 48)}
    assert (inferred["accused"] == (inferred["p"] <= 0.05)).all()
    own = inferred[inferred["kind"] == "profile"]["suspect"]
    assert set(own) == {f"{lab.recipe.method}, 320 images"}


def test_inference_is_what_the_verdict_function_says(lab: Lab, inferred: pd.DataFrame) -> None:
    """Of victims that memorise, one for each seed, and of the profile's own on several cuts."""
    recipe = lab.settings["victim"] | MEMORISES | {"steps": 0, "held_out": 0, "seed": 1}
    table = owner.dataset_inference(lab, {}, [32], [0, 1], {"count": 0}, **SMALL)
    assert set(table["kind"]) == {"victim", "obfuscated"}
    for rows, own in ((inferred, lab.but(train_images=96, victim=recipe)), (table, lab)):
        images, net = (owner.trained_on(own, 96), owner.public(own, 48, 1)), own.victim.encoder
        verdict = inference.dataset_inference(net, *images, components=2, covariance="diag", seed=1)
        row = rows[(rows["suspect"] == "victim") & (rows["form"] == "signed")].iloc[1]
        assert [row["p"], row["effect"]] == pytest.approx(
            [verdict.p_value, verdict.effect], rel=1e-3
        )


def test_thieves_are_examined_after_every_length_of_training(lab: Lab) -> None:
    thieves = {"embedding": {"attack": "embedding", "steps": [3, 2]}}
    table = owner.dataset_inference(lab, thieves, [32], [0], {"count": 0}, **SMALL)
    stolen = table[table["kind"] == "stolen"]
    assert list(stolen["steps"]) == [3, 3, 2, 2], "two forms of the test each"
    assert stolen["gap"].nunique() == 2
    assert table[table["kind"] != "stolen"]["steps"].isna().all()
    short, long = tables.trainings(table)
    assert len(short) == len(long) == len(table) - 2
    plain = {"embedding": {"attack": "embedding"}}
    given = owner.dataset_inference(lab, plain, [32], [0], {"count": 0}, **SMALL)
    assert given["steps"].max() == 4, "the profile's: two epochs of two batches"
