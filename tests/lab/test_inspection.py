"""What a notebook shows of encoders: sheets, curves, rates, worth, maps, pulls; and what it costs."""

import pandas as pd
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from contsteal import encoders, losses, methods
from contsteal.lab import inspection, profiles
from contsteal.lab.artifacts import Trained
from contsteal.lab.experiment import Lab


@pytest.fixture(scope="module")
def trained(lab: Lab) -> dict[str, Trained]:
    return {name: lab.train(method=name) for name in ("simclr", "byol")}


def test_views_stand_under_their_image(lab: Lab) -> None:
    sheet = inspection.view_sheet(lab, 4)
    assert list(sheet["set"]) == ["image"] * 4 + ["one view"] * 4 + ["another"] * 4
    assert sheet["pixels"].nunique() == 12
    assert (sheet["label"].iloc[4:] == "").all()
    assert inspection.view_sheet(lab, 4).equals(sheet)


def test_curves_and_rates_have_every_method_that_was_trained_here(lab: Lab, trained) -> None:
    none = pd.DataFrame(columns=["epoch", "loss", "lr", "seconds"])
    ready = Trained(trained["byol"].encoder, none, "", 0.0, {})
    curves = inspection.histories({"ready": ready} | trained)
    epochs = profiles.config(lab.settings).epochs
    assert list(curves["method"]) == ["simclr"] * epochs + ["byol"] * epochs
    assert "seconds" not in curves
    assert curves["spread"].notna().all()
    assert list(inspection.histories({"ready": ready}).columns) == ["method"]
    rates = inspection.rates(lab, {"ready": ready} | trained)
    seconds = trained["byol"].history["seconds"]
    views = 2 * 256  # of 320 images 32 are held out, and the last 32 fill no batch of 64
    assert list(rates.index) == ["simclr", "byol"]
    assert rates.loc["byol", "views per second"] == round(views / seconds.median())
    assert rates.loc["byol", "seconds"] == round(seconds.sum(), 1)


def test_worth_has_every_encoder_on_every_task(lab: Lab, trained) -> None:
    nets = {"random": lab.random(), "simclr": trained["simclr"].encoder}
    worth = inspection.worth(lab, nets, ["shapes", "shapes:texture"], [0])
    assert len(worth) == 4
    scores = lab.score(nets["simclr"], "shapes:texture")
    row = worth.query("encoder == 'simclr' and task == 'shapes:texture'").iloc[0]
    assert (row["accuracy"], row["knn"]) == (scores["accuracy"], scores["knn"])


def test_a_map_has_a_point_per_encoder_and_image(lab: Lab) -> None:
    nets = {"random": lab.random(), "v": lab.victim.encoder}
    points = inspection.embedding_map(lab, nets, "shapes", 40)
    lab.messages.clear()
    assert inspection.embedding_map(lab, nets, "shapes", 40).equals(points)
    assert not lab.messages, "it is read back"
    assert points.groupby("encoder")["label"].size().to_dict() == {"random": 40, "v": 40}
    assert set(points["label"]) <= set(lab.images("shapes", "test").classes)
    assert points[["x", "y"]].notna().all(axis=None)
    random, victim = (points[points["encoder"] == name]["x"].to_numpy() for name in nets)
    assert (random != victim).any(), "each encoder has a map of its own"


@pytest.mark.parametrize("loss", [losses.cont_steal, losses.mse])
def test_a_pull_is_the_loss_s_derivative_by_one_cosine(loss) -> None:
    """Positives are pulled, and negatives pushed by the contrastive loss alone."""
    z, rows = torch.eye(6, dtype=torch.float64), inspection.pulls({"x": loss}, n=3)
    assert len(rows) == 3 * 6
    found = rows.set_index(["anchor", "other"])["pull"]
    for j, other in enumerate(("s1", "s2", "s3", "t1", "t2", "t3")):
        values = []
        for step in (1e-5, -1e-5) if j else ():
            s = z[:3].clone()
            s[0] += step * z[j]
            values.append(loss(s, z[3:]).item())
        slope = (values[0] - values[1]) / 2e-5 if j else 0
        assert found["s1", other] == pytest.approx(-slope, abs=1e-6)
    others = found["s2"].drop(["s2", "t2"])
    assert found["s2", "t2"] > 0 == found["s2", "s2"]
    assert (others == 0).all() if loss is losses.mse else (others < 0).all()


# ------------------------------------------------------------------- what a notebook would cost


def test_a_training_takes_its_arithmetic_or_the_start_of_its_kernels() -> None:
    """A ResNet-18 of 0.5554 GMAC at 32 px: three passes of 2 FLOP a MAC over 3,500 batches of 256."""
    one = inspection.Training(("resnet18", 32, 1.0), 3500, 256, 3, 0)
    flop = 3500 * 256 * 3 * 2 * 0.5554e9
    assert one.seconds(inspection.H200) == pytest.approx(flop / 197.5e12, rel=1e-3)
    tiny = inspection.Training(("conv4", 32, 1.0), 1000, 8, 3, 0)
    assert tiny.seconds(inspection.H200) == pytest.approx(4.0), "bound by 4 ms a step"
    viewed = inspection.Training(("conv4", 32, 1.0), 1000, 8, 3, 2)
    more = viewed.seconds(inspection.CORE) - tiny.seconds(inspection.CORE)
    assert more == pytest.approx(1000 * 8 * 2 * inspection.CORE.view)


@pytest.mark.parametrize("method", methods.METHODS)
def test_the_passes_of_a_method_are_those_that_its_step_makes(method: str) -> None:
    config = methods.Config(method, "conv4", batch=16, queue=32, hidden=8, projection=8, held_out=0)
    net = encoders.build("conv4")
    model = methods.METHODS[method](net, config, 4)
    images = torch.zeros(16, 3, 32, 32, dtype=torch.uint8)
    with FlopCounterMode(display=False) as counter:
        views = model.views(images, torch.zeros(16), torch.Generator().manual_seed(0))
        model(*views).backward()
    forward = 2e9 * encoders.describe(net)["gmac"] * len(images)
    # The images themselves get no gradient, which saves a tenth.
    assert counter.get_total_flops() / forward == pytest.approx(inspection.PASSES[method], rel=0.12)


CELLS = [
    "import pandas as pd\nfrom contsteal.lab import experiment, sweeps\nlab = experiment.Lab(profile)",
    "other = broken(lab)\nlengths = [n for n in steps]",
    "rows = sweeps.sweep(lab, attacks, [queries], seeds, ['shapes'], steps=lengths)\n"
    "fig = figures.publish('a', rows, lab.stamp(seeds))",
    "if more:\n    far = sweeps.sweep(lab, attacks, [queries], seeds, ['shapes'], steps=lengths)",
    "for split in splits:\n    own = lab.but(query_split=split)\n"
    "    alone = sweeps.without_victim(own, [queries], seeds, ['shapes'], lengths)",
]


@pytest.mark.parametrize(
    ("changes", "trainings", "sent"),
    [
        ({}, 1 + 2 * 2 * 2, 2 * 32 + 2 * 32),  # clean, and a view
        ({"more": True}, 1 + 2 * 2 * 2, 2 * 32 + 2 * 32),  # the same again
        ({"attacks": ["embedding", "embedding, clean"]}, 1 + 2 * 2, 2 * 32),  # one by two names
        ({"attacks": ["info-nce-2"], "seeds": [0], "steps": [4]}, 2, 2 * 32),  # two views
        # Without the victim: one learns from each set of queries, one from labels that are the same.
        ({"attacks": ["embedding"], "seeds": [0], "steps": [4], "splits": ["train", "test"]}, 5, 32),
    ],
)  # fmt: skip
def test_a_rehearsal_counts_each_training_and_each_input_once(
    changes: dict, trainings: int, sent: int
) -> None:
    """`broken` is never called, and the images of the task are counted beside the queries."""
    values = {"profile": "smoke", "attacks": ["embedding", "cont-steal"], "queries": 32, "more": False,
              "seeds": [0, 1], "steps": [2, 4], "splits": []} | changes  # fmt: skip
    work = inspection.rehearse(CELLS, values)
    assert len(work.trainings) == trainings
    seeds = len(values["seeds"])
    assert work.forwards == sent + seeds * 40 + 160
    assert work.without([work]).forwards == 0
    assert inspection.Lab is Lab, "the lab is itself again"


def test_a_timing_gives_the_rate_of_ten_steps(lab: Lab) -> None:
    machine = inspection.timed(lab)
    assert 1e7 < machine.training < 1e13
    assert machine.forward > machine.training
    assert "10 steps timed here" in machine.said


def test_a_plan_holds_the_largest_number_of_images_of_a_set() -> None:
    lab = object.__new__(inspection.Rehearsal)  # which has no profile: only what is asked here
    lab.work, lab.settings = inspection.Work(), {"image_size": 32}
    for count in (100, 5000, 64):
        lab._load("glyphs", "train", count)
    assert lab.work.memory() == 5000 * 3 * 32 * 32
