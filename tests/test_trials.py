"""What an owner keeps and proves: marks read back, strangers that share no image, tables, figures."""

from pathlib import Path

import pandas as pd
import pytest
import torch

from contsteal import encoders, pretrain
from contsteal.lab import artifacts, experiment, owner
from contsteal.lab.experiment import Lab
from contsteal.lab.owner import Strangers
from contsteal.ownership import inference
from contsteal.ownership.watermark import rate
from contsteal.paper import proofs

MARK = {"epochs": 1, "batch": 32}
HOW = {"count": 3, "epochs": 1, "images": 96}
TURNED = {"attack": "embedding", "views": "shared", "policy": "rotation"}
THIEVES = {"embedding": {"attack": "embedding"}, "embedding, turned": TURNED}
pytestmark = pytest.mark.filterwarnings("ignore:simclr collapsed")


@pytest.fixture(scope="module")
def owned(lab: Lab) -> pd.DataFrame:
    marks = [MARK, MARK | {"trained_head": False}]
    return owner.watermark(lab, marks, THIEVES, [16, 32], [0, 1], HOW, images=32)


@pytest.fixture(scope="module")
def inferred(lab: Lab) -> pd.DataFrame:
    options = {"components": 2, "covariance": "diag"}
    return owner.dataset_inference(lab, THIEVES, [32], [0], HOW, images=48, **options)


def weights(net: torch.nn.Module) -> str:
    return encoders.digest(net.state_dict().items())


def pixels(images: torch.Tensor) -> set[bytes]:
    return {i.numpy().tobytes() for i in images}


# ------------------------------------------------------------------------------- artifacts


def test_a_marked_lab_has_another_victim_which_carries_its_mark(lab: Lab) -> None:
    there = lab.but(watermark=MARK)
    assert there.victim.sha256 != lab.victim.sha256
    mark = there.victim.mark
    assert mark.dim == there.victim.encoder.dim
    assert mark.trained_head
    assert not hasattr(lab.victim, "mark")
    assert there.steal("embedding", 16).sha256 != lab.steal("embedding", 16).sha256
    assert not lab.but(watermark=MARK | {"trained_head": False}).victim.mark.trained_head


def test_a_mark_reads_back_the_same(lab: Lab) -> None:
    first, again = (Lab("smoke", watermark=MARK).victim for _ in range(2))
    assert first.sha256 == again.sha256
    assert weights(first.mark.head) == weights(again.mark.head)
    assert not any(p.requires_grad for p in again.mark.head.parameters())
    images = owner.trained_on(lab.but(watermark=MARK), 16)
    assert rate(first.mark, first.encoder, images) == rate(again.mark, again.encoder, images)
    kept = artifacts.runs_dir() / "artifacts"
    assert len([f for f in kept.glob("watermarked-*") if "trained_head\": true" in
                (f / artifacts.MANIFEST).read_text()]) == 1  # fmt: skip


def test_tuning_starts_at_the_victim_and_scratch_does_not(lab: Lab) -> None:
    slow = MARK | {"lr": 1e-9}
    tuned = lab.but(watermark=slow).victim.encoder
    fresh = lab.but(watermark=slow | {"start": "scratch"}).victim.encoder
    own = dict(lab.victim.encoder.named_parameters())
    gaps = [
        max((p - own[name]).abs().max().item() for name, p in net.named_parameters())
        for net in (tuned, fresh)
    ]
    assert gaps[0] < 1e-5 < gaps[1]


def test_other_images_can_carry_the_mark(lab: Lab) -> None:
    there = lab.but(watermark=MARK | {"data": "digits"})
    assert there.victim.sha256 != lab.but(watermark=MARK).victim.sha256
    asked = pixels(owner.trained_on(there, 32))
    assert not asked & pixels(lab.train_images().images)


def test_a_momentum_copy_starts_where_the_trained_victim_ended(lab: Lab) -> None:
    byol = lab.but(method="byol")
    plain = byol.victim
    method = pretrain.build(pretrain.Config(method="byol", encoder="test_resnet", hidden=32,
                                            projection=32), 10)  # fmt: skip
    pretrain.adopt(method, pretrain.Fitted(plain.encoder, [], plain.projector))
    assert weights(method.encoder) == weights(plain.encoder)
    assert weights(method.target.module) == weights(method.online)
    with pytest.raises(ValueError, match="the trained network does not fit"):
        pretrain.adopt(method, pretrain.Fitted(encoders.build("resnet10t"), [], None))


def test_a_key_reads_back_the_same(lab: Lab) -> None:
    plan = {"kind": "sslguard", "epochs": 1, "images": 128}
    first, again = (Lab("smoke", watermark=plan).victim for _ in range(2))
    assert weights(first.mark) == weights(again.mark)
    assert first.sha256 == again.sha256 != lab.victim.sha256


def test_strangers_never_see_an_image_of_the_victim_or_of_each_other(lab: Lab) -> None:
    how = Strangers(count=3, epochs=1, images=96)
    sets = [pixels(owner.images_of(lab, how, k).images) for k in range(3)]
    known = pixels(lab.train_images().images) | pixels(lab.queries(128))
    known |= pixels(owner.public(lab, 96))
    assert not any(one & known for one in sets)
    assert len(set.union(*sets)) == 3 * 96
    nets = [owner.train_independent(lab, how, k) for k in range(2)]
    assert nets[0].sha256 != nets[1].sha256
    assert nets[0].sha256 == owner.train_independent(lab, how, 0).sha256


def test_stored_data_of_the_victim_are_no_strangers_data(lab: Lab) -> None:
    there = lab.but(data="digits")
    with pytest.raises(ValueError, match=r"digits, split 'train', is what the victim was trained"):
        owner.images_of(there, Strangers(), 0)
    found = owner.images_of(there, Strangers(data="digits", split="test", images=20), 0)
    assert len(found) == 20


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"epoch": 1}, "no parameter 'epoch'"),
        ({"weight": 2.0}, "epochs 1 or more"),
        ({"epochs": 1, "kind": "visible"}, "kind is rotation or sslguard"),
        ({"epochs": 1, "kind": "sslguard", "start": "scratch"}, "sslguard: victim"),
        ({"epochs": "3"}, "is str, the default 0 is int"),
    ],
)
def test_impossible_marks(lab: Lab, given: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        lab.but(watermark=given)


def test_ready_victims_are_neither_marked_nor_repeated(lab: Lab) -> None:
    ready = {"method": "ready", "encoder": "test_resnet", "weights": "timm"}
    there = Lab("smoke", victim=ready, watermark={"epochs": 1})
    with pytest.raises(ValueError, match="watermark of a victim of method 'ready'"):
        experiment.marked(there)
    with pytest.raises(ValueError, match="strangers of a victim of method 'ready'"):
        owner.train_independent(there, Strangers(), 0)


def test_impossible_strangers_and_counts(lab: Lab) -> None:
    with pytest.raises(ValueError, match="strangers: no parameter 'number'"):
        owner.plan({"number": 3})
    with pytest.raises(ValueError, match="-1 independent encoders"):
        owner.train_suspects(lab, {"count": -1})
    with pytest.raises(ValueError, match="999 images to test on"):
        owner.trained_on(lab, 999)


# ---------------------------------------------------------------------------------- tables


def test_every_suspect_has_a_row_per_head(owned: pd.DataFrame) -> None:
    first = owned[owned["head"] == owned["head"].iloc[0]]
    counts = first["kind"].value_counts()
    assert dict(counts) == {
        "stolen": 8,
        "obfuscated": 4,
        "independent": 3,
        "victim": 1,
        "unmarked": 1,
    }
    other = owned[owned["head"] != owned["head"].iloc[0]]
    assert set(other["images"].dropna()) == {32}, "the largest budget alone"
    assert owned["mark"].eq("tuned into the victim, 1 epoch of 320 images").all()
    told = "32 training images that the mark was trained on, each turned twice"
    assert set(owned["on"].dropna()) == {told}
    assert set(owned["answers"].dropna()) == {64}


def test_rates_are_those_of_the_verdict_functions(lab: Lab, owned: pd.DataFrame) -> None:
    there = lab.but(watermark=MARK)
    images, mark = owner.trained_on(there, 32), there.victim.mark
    first = owned[owned["head"] == owner.HEADS[True]].set_index(["kind", "seed"])["wsr"]
    assert first["victim", 0] == rate(mark, there.victim.encoder, images)
    how = owner.plan(HOW)
    controls = [rate(mark, owner.train_independent(lab, how, k).encoder, images) for k in range(3)]
    assert [first["independent", k] for k in range(3)] == controls
    victim = owned[owned["kind"] == "victim"].iloc[0]
    if len(set(controls)) > 1:
        expected = inference.against_controls(victim["wsr"], controls).p_value
        assert victim["p_controls"] == pytest.approx(expected)


def test_another_dimension_is_told_and_not_judged(owned: pd.DataFrame) -> None:
    padded = owned[owned["suspect"] == "pad"]
    assert padded["applies"].eq("does not apply: 112 features, the owner reads 96").all()
    assert padded[["wsr", "p_chance", "p_controls", "p_paper", "auc"]].isna().all(axis=None)
    assert owned[owned["suspect"] != "pad"]["applies"].eq("yes").all()


def test_the_price_is_told_of_victims_alone(owned: pd.DataFrame) -> None:
    paid = owned[owned["accuracy"].notna()]
    assert set(paid["kind"]) == {"victim", "unmarked"}
    assert len(set(paid[paid["kind"] == "unmarked"]["accuracy"])) == 1


def judge(rates: list[float], others: list[float]) -> pd.DataFrame:
    kinds = ["stolen"] * len(rates) + ["independent"] * len(others)
    table = pd.DataFrame({"kind": kinds, "seed": 0, "wsr": rates + others, "applies": "yes",
                          "answers": 100})  # fmt: skip
    return owner._judged(table.assign(right=100 * table["wsr"]), "wsr")


def test_an_independent_encoder_is_compared_with_the_others_alone() -> None:
    found = judge([0.9], [0.4, 0.5, 0.6])
    expected = inference.against_controls(0.9, [0.4, 0.5, 0.6]).p_value
    assert found["p_controls"].iloc[0] == pytest.approx(expected)
    alone = inference.against_controls(0.4, [0.5, 0.6]).p_value
    assert found["p_controls"].iloc[1] == pytest.approx(alone)


@pytest.mark.parametrize("others", [[], [0.5], [0.5, 0.5, 0.5]])
def test_too_few_or_equal_controls_give_no_p_value(others: list[float]) -> None:
    found = judge([0.9], others)
    assert found["p_controls"].isna().all()
    assert pd.isna(found["p_paper"].iloc[0]) == (not others)


def test_no_control_leaves_no_rate_of_false_positives(lab: Lab) -> None:
    table = owner.watermark(lab, [MARK], {}, [16], [0], {"count": 0}, images=32)
    assert "independent" not in set(table["kind"])
    assert table["p_controls"].isna().all()
    assert proofs.wrong(table)["rate"].eq("-").all()
    assert proofs.wrong(table)["of"].eq(0).all()


def test_inference_has_both_forms_and_is_kept(lab: Lab, inferred: pd.DataFrame) -> None:
    assert set(inferred["form"]) == {"signed", "published"}
    assert len(inferred) == 2 * (1 + 4 + 2 + 3)
    wide = inferred.pivot_table(index=["suspect", "seed"], columns="form", values="p")
    gap = inferred.drop_duplicates(["suspect", "seed"]).set_index(["suspect", "seed"])["gap"]
    lies = wide.loc[gap.index[gap < 0]]
    assert (lies["published"] < 0.5).all(), (
        "half of a two-sided p-value, in the wrong direction too"
    )
    assert (lies["signed"] > 0.5).all()
    victim = inferred[inferred["suspect"] == "victim"]["gap"].iloc[0]
    for name in ("shuffle", "pad"):  # the length of a vector and its order say nothing
        assert inferred[inferred["suspect"] == name]["gap"].iloc[0] == pytest.approx(
            victim, rel=1e-3
        )
    folders = list((artifacts.runs_dir() / "artifacts").glob("inference-*"))
    assert len(folders) == 10


def test_inference_is_what_the_verdict_function_says(lab: Lab, inferred: pd.DataFrame) -> None:
    images = owner.trained_on(lab, 96), owner.public(lab, 48)
    found = inference.dataset_inference(
        lab.victim.encoder, *images, components=2, covariance="diag"
    )
    row = inferred[(inferred["suspect"] == "victim") & (inferred["form"] == "signed")].iloc[0]
    assert row["p"] == pytest.approx(found.p_value, rel=1e-3)
    assert row["effect"] == pytest.approx(found.effect, rel=1e-3)


def test_fewer_samples_than_components(lab: Lab) -> None:
    with pytest.raises(ValueError, match=r"9 components and 8 features"):
        owner.dataset_inference(lab, {}, [16], [0], {"count": 0}, images=8, components=9)


def test_a_key_is_tried_on_all_suspects(lab: Lab) -> None:
    plan = {"epochs": 1, "images": 128}
    found = owner.guard(
        lab, plan, {"embedding": {"attack": "embedding"}}, [16], [0], HOW, images=32
    )
    assert set(found["kind"]) == {"victim", "unmarked", "obfuscated", "stolen", "independent"}
    read = found[found["applies"] == "yes"]
    assert read["rate"].between(0, 1).all()
    assert read["p_keys"].between(0, 1).all()
    assert set(read["on"]) == {"32 training images of the victim, stamped"}
    assert "p_paper" not in found


# --------------------------------------------------------------------- sentences and figures


def test_sentences_and_false_positives_are_of_the_tables(
    owned: pd.DataFrame, inferred: pd.DataFrame
) -> None:
    told, numbers = proofs.watermarked(owned)
    victim = owned[owned["kind"] == "victim"].iloc[0]["wsr"]
    assert f"the victim's own rate is {100 * victim:.1f} %" in told
    assert "does not apply" in numbers.reset_index()["asked"].str.cat()
    hits = (
        inferred[(inferred["form"] == "signed") & (inferred["kind"] == "independent")]["p"] <= 0.05
    )
    assert f"{hits.sum()} of 3 independent" in proofs.inferred(inferred)[0]
    found = proofs.wrong(owned, inferred)
    row = found.loc[("dataset inference", "signed")]
    assert (row["accused"], row["of"]) == (hits.sum(), 3)
    share = inference.proportion(int(hits.sum()), 3)
    assert row["95 % interval"] == f"{100 * share.low:.0f} to {100 * share.high:.0f} %"


def test_figures_are_drawn_from_their_tables_as_read(
    owned: pd.DataFrame, inferred: pd.DataFrame, tmp_path: Path
) -> None:
    for table, draw in ((owned, proofs.rate_curves), (inferred, proofs.verdict_dots)):
        table.to_csv(tmp_path / "t.csv", index=False)
        fig = draw(pd.read_csv(tmp_path / "t.csv"))
        assert fig.get_suptitle() == draw(table).get_suptitle() != ""
    raised = owned.assign(wsr=owned["wsr"].mask(owned["kind"] == "stolen", 0.987))
    assert "thieves up to 99 %" in proofs.rate_curves(raised).get_suptitle()
    alone = owned[owned["kind"] != "independent"]
    assert proofs.rate_curves(alone).get_suptitle().endswith("no independent")
