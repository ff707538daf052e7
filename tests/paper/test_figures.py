"""Figures: drawn from their stored tables alone, equal bytes for equal numbers, stale ones named."""

import io
import json
import math
import shutil
from itertools import product
from pathlib import Path

import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from contsteal import files
from contsteal.lab import artifacts, sweeps
from contsteal.paper import claims, figures, plots

STORED = artifacts.ROOT / "figures" / "demo"
FEW = ("01_worth", "03_pulls", "03_victims")
# What a figure shows, where it is not the accuracy; maps show shares of neighbours.
SHOWN = {
    "00_samples": "pixels", "01_views": "pixels", "01_training": "loss", "03_pulls": "pull",
    "01_embedding_map": "label", "03_embedding_map": "label", "03_geometry": "gain",
    "05a_coverage": "coverage", "05a_matrix": "change", "05b_detectors": "statistic",
    "05b_roc": "tpr", "05b_accounts": "answers", "06_parties": "others",
    "05c_inference": "effect", "05c_sslguard": "cosine", "05c_watermark": "wsr", "03_rates": "loss",
}  # fmt: skip
LANDS = pd.DataFrame({  # victims and query sets, more than the demo has and enough for a correlation
    "method": ["simclr", "byol"] * 3, "query_data": ["glyphs", "shapes", "digits"] * 2,
    "norm_spread": [0.1, 0.2, 0.3, 0.4, 0.5, 0.7], "anisotropy": [0.5, 0.4, 0.6, 0.3, 0.8, 0.7],
    "effective_rank": [9.0, 8.0, 3.0, 4.0, 5.0, 6.0], "gain": [0.01, -0.02, 0.03, 0.05, 0.04, 0.0],
})  # fmt: skip


def table_of(stem: str) -> pd.DataFrame:
    """A stored table of the demo, or of study where the demo has none."""
    if stem == "03_geometry":
        return LANDS.copy()
    demo = (STORED / f"{stem}.csv").is_file()
    return figures.read(STORED if demo else STORED.with_name("study"), stem)[0]


def content(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir()}


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CONTSTEAL_FIGURES", str(tmp_path))
    return tmp_path


@pytest.fixture
def desk(home: Path) -> Path:
    """A folder of figures with three tables of the demo and their stamps, without pictures."""
    (home / "demo").mkdir()
    for stem in FEW:
        for kind in ("csv", "json"):
            shutil.copy(STORED / f"{stem}.{kind}", home / "demo")
    return home / "demo"


def picture(stem: str, table: pd.DataFrame) -> tuple[str, bytes]:
    """The title of a table's figure, and a small picture of it."""
    fig, data = figures.draw(stem, table), io.BytesIO()
    fig.savefig(data, format="raw", dpi=40)
    plt.close(fig)
    return fig.get_suptitle(), data.getvalue()


def still(low: float, high: float, size: int) -> np.ndarray:
    """What seaborn moves dots by."""
    assert low == high, "drawn at random"
    return np.zeros(size)


@pytest.mark.parametrize("stem", figures.FIGURES)
def test_a_figure_is_a_function_of_its_stored_table(
    stem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(np.random, "default_rng", lambda *_: pytest.fail("drawn at random"))
    monkeypatch.setattr(np.random, "uniform", still)
    table = table_of(stem)
    title, first = picture(stem, table)
    assert 0 < len(title.splitlines()) <= 2
    assert max(map(len, title.splitlines())) <= plots.WIDEST
    column = SHOWN.get(stem, "accuracy")
    values = table[column].to_numpy()
    table[column] = values[::-1] if column in ("pixels", "label") else values[::-1] * 0.9
    assert picture(stem, table)[1] != first


def test_a_published_figure_lies_beside_its_table_and_stamp(home: Path) -> None:
    stem = "01_training"
    table, stamp = figures.read(STORED, stem)
    figures.publish(stem, table, stamp)
    first = content(home / "demo")
    assert first.keys() == {f"{stem}.{kind}" for kind in ("pdf", "png", "csv", "json")}
    assert first[f"{stem}.csv"] == (STORED / f"{stem}.csv").read_bytes()
    assert figures.read(home / "demo", stem)[1] == stamp
    figures.publish(stem, *figures.read(home / "demo", stem))
    assert content(home / "demo") == first, "equal tables give equal bytes"
    figures.publish(stem, table, stamp | {"date": "later"})
    later = content(home / "demo")
    changed = {name.rpartition(".")[2] for name in first if later[name] != first[name]}
    assert changed == {"pdf", "png", "json"}, "a picture never stays behind its table or stamp"


def test_a_run_that_stands_twice_in_a_table_is_not_published(home: Path) -> None:
    """Two victims of the same seed, which an interactive reader may name, count as two."""
    table, stamp = figures.read(STORED, "03_pulls")
    table = table.head(2).assign(seed=[4, 5])
    with pytest.raises(ValueError, match="2 rows stand there twice, such as one of seed 4: name"):
        figures.publish("03_pulls", pd.concat([table, table.assign(seconds=1.0)]), stamp)
    assert content(home) == {}


def test_a_table_that_was_altered_is_not_shown(home: Path) -> None:
    """One digit of a number; stamps of before there were hashes have none to compare with."""
    table, stamp = figures.read(STORED, "03_pulls")
    figures.publish("03_pulls", table, stamp | {"code": "0.1.0 1a2b"})
    path = home / "demo" / "03_pulls.csv"
    written = path.read_text()
    figures.publish("03_pulls", *figures.read(home / "demo", "03_pulls"))
    assert path.read_text() == written
    place = max(k for k, letter in enumerate(written) if letter == "3")
    path.write_text(f"{written[:place]}4{written[place + 1 :]}")
    for read in (figures.read, claims.read):
        with pytest.raises(ValueError, match=r"03_pulls.csv was altered: .* run notebook 03"):
            read(home / "demo", "03_pulls")


@pytest.mark.parametrize("stem", figures.FIGURES)
def test_a_table_without_rows_or_columns_is_refused(stem: str) -> None:
    with pytest.raises(ValueError, match=f"{stem}: the table has no rows"):
        figures.draw(stem, table_of(stem).iloc[:0])
    with pytest.raises(ValueError, match=rf"{stem}: the table lacks .*; its columns are [A-Z]"):
        figures.draw(stem, table_of(stem).rename(columns=str.upper))


def test_unknown_figures_and_missing_results_say_what_to_do(home: Path) -> None:
    with pytest.raises(ValueError, match=r"unknown figure '07_x': choose one of 00_samples"):
        figures.draw("07_x", pd.DataFrame())
    with pytest.raises(ValueError, match=r"04_budget.csv is missing: run notebook 04"):
        figures.read(home / "smoke", "04_budget")
    (home / "smoke").mkdir()
    for kind in ("csv", "json"):
        shutil.copy(STORED / f"04_budget.{kind}", home / "smoke")
    with pytest.raises(ValueError, match=r"04_budget.csv holds results of the profile 'demo': run"):
        figures.read(home / "smoke", "04_budget")


def test_the_last_notebook_says_which_results_are_missing(desk: Path, capsys) -> None:
    book = nbformat.read(artifacts.ROOT / "notebooks" / "06_figures.ipynb", as_version=4)
    _, setup, parties, *_ = [cell.source for cell in book.cells if cell.cell_type == "code"]
    with pytest.raises(ValueError, match=r"no results in .*make paper PROFILE=paper.* of: demo$"):
        exec(setup, {"profile": "paper"})
    names: dict[str, object] = {"profile": "demo"}
    exec(setup, names)
    exec(parties, names)
    printed = capsys.readouterr().out
    assert printed.startswith("3 tables of the profile demo\n")
    assert "The profile demo has no results of notebook 05a: run that notebook first." in printed


def test_too_few_points_are_stored_and_not_drawn(home: Path, capsys) -> None:
    _, stamp = figures.read(STORED, "03_geometry")
    figures.publish("03_geometry", LANDS, stamp)
    assert (home / "demo" / "03_geometry.png").is_file()
    assert figures.publish("03_geometry", LANDS[:4], stamp) is None
    assert "03_geometry is not drawn" in capsys.readouterr().out
    assert content(home / "demo").keys() == {"03_geometry.csv", "03_geometry.json"}


def test_what_no_two_runs_share_is_noted_beside_the_tables(home: Path) -> None:
    table, stamp = figures.read(STORED, "03_attacks")
    figures.publish("03_attacks", table.assign(seconds=1.5, forwards=2), stamp)
    stored = (home / "demo" / "03_attacks.csv").read_bytes()
    assert stored == (STORED / "03_attacks.csv").read_bytes()
    twice = pd.concat([table, table.assign(task="colour")]).assign(seconds=1.5, forwards=2)
    costs = figures.costs("03_costs", twice, stamp)
    n, usd = (table.set_index("attack").loc["embedding", c].iloc[0] for c in ("images", "usd"))
    expected = [n, n, round(usd, 2), 2, 1.5]
    assert costs.loc["MSE"].tolist() == pytest.approx(expected), "per run, not per task"
    assert files.read_json(home / "demo" / "03_costs.json")["rows"]["label"]["seconds"] == 1.5


def test_figures_are_redrawn_as_they_are_stored_and_tables_are_not_touched(
    desk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Pictures are those of the repository but for the rounding of another processor's text edges."""
    before = content(desk)
    assert figures.main(["--profile", "demo"]) == 0
    assert "demo: 3 figures; all on one page" in capsys.readouterr().out
    first = content(desk)
    made = {f"{stem}.{kind}" for stem in FEW for kind in ("pdf", "png")}
    assert first.keys() == before.keys() | made | {"contact_sheet.png"}
    assert {n: first[n] for n in before} == before
    for stem in FEW:
        stored, drawn = (np.asarray(Image.open(at / f"{stem}.png").convert("RGB"), dtype=np.int16)
                         for at in (STORED, desk))  # fmt: skip
        assert stored.shape == drawn.shape
        assert (np.abs(stored - drawn).max(axis=2) > 8).mean() < 1e-5
    assert figures.main(["--profile", "auto"]) == 0, "auto is every profile with results"
    assert content(desk) == first


@pytest.mark.parametrize(
    ("stem", "seeds", "shown"),
    [
        ("03_pulls", {}, "1 seed"),  # no thief, so the run's
        ("03_victims", {"embedding": 3, "cont-steal": 3, "random": 9}, "3 seeds"),
        ("03_victims", {"embedding": 2, "cont-steal": 5}, "2 to 5 seeds"),
    ],
)
def test_a_figure_says_how_many_seeds_its_thieves_have(stem: str, seeds: dict, shown: str) -> None:
    rows = [(0, attack, seed) for attack, n in seeds.items() for seed in range(n)]
    table = pd.DataFrame(rows, columns=["victim_seed", "attack", "seed"])
    stamp = {"data": "glyphs, patches", "seeds": "0"}
    assert figures.origin(stem, table, stamp) == f"glyphs, photographs; {shown}"


def test_the_sheet_shows_every_picture_under_its_name(tmp_path: Path) -> None:
    colours = {"00_samples": "red", "03_attacks": "lime", "04_budget": "blue", "notes": "cyan"}
    for stem, colour in colours.items():
        Image.new("RGB", (300, 200), colour).save(tmp_path / f"{stem}.png")
    page = Image.open(figures.sheet(tmp_path)).convert("RGB")
    shown = {tuple(pixel) for pixel in np.asarray(page).reshape(-1, 3).tolist()}
    assert {(255, 0, 0), (0, 255, 0), (0, 0, 255)} <= shown
    assert (0, 255, 255) not in shown, "not a figure"
    for stem in colours:
        (tmp_path / f"{stem}.png").unlink()
    with pytest.raises(ValueError, match=r"no figure in .*make figures"):
        figures.sheet(tmp_path)


def test_profiles_without_results_say_which_command_makes_them(desk: Path, capsys) -> None:
    for name, message in (
        ("paper", "`make paper PROFILE=paper` makes them; there are some of: demo"),
        ("papr", "unknown profile 'papr': choose one of demo"),
    ):
        assert figures.main(["--profile", name]) == 1
        assert message in capsys.readouterr().err
    shutil.rmtree(desk)
    with pytest.raises(ValueError, match="`make paper` makes them; there are some of: no profile"):
        figures.profiles_with_results()


SHOW_ALONE = ["02_conventional", "03_attacks", "03_steps", "03_control", "03_views", "03_boundary",
              "04_budget", "05a_defenses"]  # fmt: skip


@pytest.mark.parametrize(("profile", "stem"), [
    *product(["demo", "study"], SHOW_ALONE), ("study", "02_losses"), ("study", "02_elsewhere"),
])  # fmt: skip
def test_what_needs_no_victim_stands_in_every_stored_table_of_attacks(
    profile: str, stem: str
) -> None:
    table = figures.FIGURES[stem].shown(figures.read(STORED.with_name(profile), stem)[0])
    alone = table[table["attack"].isin(sweeps.ALONE)]
    assert set(alone["attack"]) == {*sweeps.ALONE}
    assert alone.groupby("attack")["seed"].nunique().ge(5).all()
    attacks = table[~table["attack"].isin([*sweeps.ALONE, "random", "victim"])]
    assert alone["steps"].max() == attacks["steps"].max(), "as many steps as the attacks"


@pytest.mark.parametrize("stem", ["03_views", "04_budget", "05a_defenses"])
def test_the_best_without_a_victim_is_a_line_where_it_is_no_row(stem: str) -> None:
    table = figures.FIGURES[stem].shown(table_of(stem))
    means = table.groupby("attack")["accuracy"].mean()
    best = max(means[name] for name in sweeps.ALONE)
    fig = figures.draw(stem, table)
    lines = [line for line in fig.axes[0].lines if line.get_linestyle() == "-."]
    at = "get_xdata" if stem == "03_views" else "get_ydata"
    assert [getattr(line, at)()[0] for line in lines] == pytest.approx([best])
    assert any(text.get_text().startswith("no victim") for ax in fig.axes for text in ax.texts)
    without = figures.draw(stem, table[~table["attack"].isin(sweeps.ALONE)])
    assert not [line for line in without.axes[0].lines if line.get_linestyle() == "-."]


def test_readings_without_a_rival_are_not_drawn() -> None:
    table = table_of("02_readings")
    with pytest.raises(plots.NothingToShow):
        figures.draw("02_readings", table[table["attack"] == "embedding"])


def test_one_table_says_what_each_of_a_provider_s_means_does(home: Path) -> None:
    folder = home / "demo"
    folder.mkdir()
    stamp = {"profile": "demo", "data": "d", "seeds": "0", "device": "CPU", "date": "today"}
    stake = [("D()", "attacker", "embedding", -0.2), ("D()", "attacker", "adapting", -0.1),
             ("D()", "customer", "t", 0.0), ("E()", "attacker", "embedding", 0.0),
             ("E()", "customer", "t", 0.0)]  # fmt: skip
    stake = pd.DataFrame(stake, columns=["defence", "party", "who", "change"])
    users = [("W", "thief, a", 1.0), ("W", "thief, a", 1.0), ("W", "thief, b", 0.0),
             ("W", "thief, b", 1.0), ("W", "customer, c", 0.0),
             ("bill", "thief, a", math.nan)]  # fmt: skip
    suspects = [("stolen", "x", 8, 0.0), ("stolen", "x", 16, 1.0), ("stolen", "y", 16, 1.0),
                ("stolen before", "y", 16, 1.0), ("independent", "i", math.nan, 0.0),
                ("victim", "v", math.nan, 1.0), ("unmarked", "u", math.nan, 1.0)]  # fmt: skip
    marked = pd.DataFrame(suspects, columns=["kind", "suspect", "images", "accused"])
    stored = {
        "05a_matrix": stake.assign(low=stake["change"], high=stake["change"], n=3),
        "05b_detectors": pd.DataFrame(users, columns=["detector", "user", "flagged"]),
        "05c_watermark": marked.assign(head="h", accuracy=[*[math.nan] * 5, 0.7, 0.75]),
    }
    for stem, table in stored.items():
        table.to_csv(folder / f"{stem}.csv", index=False)
        (folder / f"{stem}.json").write_text(json.dumps(stamp))
    (folder / "05a_price.json").write_text(json.dumps({"rows": {"D()": {"bytes": 8}}}))
    table, found = figures.parties(folder)
    assert found == stamp
    rows = table.set_index("means")
    assert list(rows["kind"]) == ["perturbation", "perturbation", "detector", "proof"]
    assert rows["verdict"].tolist()[:2] == ["works", "does not work"]
    thieves = ["attacker, embedding", "attacker, adapting"]
    assert rows.loc["D", [*thieves, "bytes"]].tolist() == [-0.2, -0.1, 8]
    assert rows.loc["W", ["thieves", "others"]].tolist() == [0.5, 0.0], "of the kind found least"
    assert rows.loc["watermark, h", ["thieves", "others"]].tolist() == [1.0, 1.0], (
        "thieves with most queries; thieves of the victim before it was marked are accused most"
    )
    assert rows.loc["watermark, h", "customer, t"] == pytest.approx(-0.05)
    fig = figures.draw("06_parties", figures.as_read(table))
    texts = [text.get_text() for text in fig.axes[0].texts]
    assert {"50 %", "detectors flag users", "proofs accuse encoders"} <= {*texts}
    assert "thieves\nfound,\nhardest\nkind" in [x.get_text() for x in fig.axes[0].get_xticklabels()]
    for stem in ("05b_detectors", "05c_watermark"):
        (folder / f"{stem}.csv").unlink()
    title = figures.draw("06_parties", figures.parties(folder)[0]).get_suptitle()
    assert title == "1 of 2 perturbations work", "perturbations alone are drawn, too"
    with pytest.raises(ValueError, match=r"05a_matrix\.csv is missing: run notebook 05a"):
        figures.parties(home)
