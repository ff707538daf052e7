"""Figures: drawn from tables alone, saved with their numbers, equal bytes for equal numbers."""

from itertools import combinations
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from contsteal import files
from contsteal.paper import report, style, summary

STAMP = {
    "profile": "smoke",
    "data": "shapes",
    "seeds": "0, 1",
    "device": "CPU",
    "torch": "2",
    "date": "2026-01-01",
}


def rows(attack: str, shift: float, **more: object) -> list[dict[str, object]]:
    return [
        {"attack": attack, "seed": s, "task": "shapes", "images": 32, "unique_inputs": 32, "calls": 64,
         "usd": 0.064, "accuracy": 0.5 + shift + 0.01 * s, "agreement": 0.4 + shift, "knn": 0.4,
         "cka": 0.3, "cosine": 0.2, **more}
        for s in (0, 1)
    ]  # fmt: skip


def attack_table(**more: object) -> pd.DataFrame:
    frame = [{k: v for k, v in r.items() if k not in ("images", "unique_inputs", "calls", "usd", *more)}
             for r in rows("random", -0.2) + rows("victim", 0.3)[:1]]  # fmt: skip
    names = ("label", "posterior", "embedding", "info-nce", "cont-steal", "cont-steal-code")
    return pd.DataFrame([r for i, n in enumerate(names) for r in rows(n, 0.02 * i, **more)] + frame)


def grid() -> pd.DataFrame:
    tables = [attack_table(views=v) for v in ("clean", "augmented")]
    table = pd.concat(tables)
    return table[table["attack"].isin(["embedding", "cont-steal", "random", "victim"])]


def sheet() -> pd.DataFrame:
    return pd.DataFrame(
        [
            {"set": s, "label": label, "size": 2, "pixels": "AAAAAAAAAAAAAAAA"}
            for s, label in (("a", "x"), ("a", "y"), ("b", None))
        ]
    )


def points() -> pd.DataFrame:
    return pd.DataFrame(
        [
            {"encoder": e, "x": i, "y": -i, "label": f"c{i % 3}"}
            for e in ("victim", "embedding")
            for i in range(9)
        ]
    )


def knobs() -> pd.DataFrame:
    found = [("as given", None, 0.0), ("negatives", "self", 0.1), ("answers", "4", -0.1)]
    return pd.concat([pd.DataFrame(rows("cont-steal", d, knob=k, value=v)) for k, v, d in found])


def duels() -> pd.DataFrame:
    at = {"query_data": "shapes", "views": "clean", "method": "simclr", "steps": 4}
    found = [
        rows(a, d * (i + 1), **at | {"images": n, "epochs": e})
        for i, (n, e) in enumerate([(8, 1), (8, 2), (16, 1), (16, 2)])
        for a, d in (("embedding", 0.0), ("cont-steal", 0.02))
    ]
    return pd.DataFrame([row for part in found for row in part])


def lands() -> pd.DataFrame:
    return pd.DataFrame(
        [
            {"method": m, "query_data": d, "norm_spread": 0.1 * i, "anisotropy": 0.5, "gain": 0.1 * i,
             "effective_rank": 3.0 + i}
            for i, (m, d) in enumerate([("simclr", "a"), ("simclr", "b"), ("byol", "a"), ("byol", "b")])
        ]
    )  # fmt: skip


def pulls() -> pd.DataFrame:
    names = ["s1", "s2", "t1", "t2"]
    return pd.DataFrame(
        [
            {"loss": "x", "anchor": a, "other": o, "pull": 1.0 if o == "t" + a[1] else -0.5}
            for a in names[:2]
            for o in names
        ]
    )


def adapting() -> pd.DataFrame:
    parts = [attack_table(defence="D", adapts=how) for how in (None, "averages")]
    return pd.concat(parts)[lambda t: t["attack"].isin(["embedding", "random", "victim"])]


def covered() -> pd.DataFrame:
    return pd.DataFrame(
        [
            {"user": u, "queries": n, "coverage": n * share, "noise": 1e-4 * n * share}
            for u, share in (("customer", 0.01), ("thief", 0.02))
            for n in (8, 16)
        ]
    )


def staked() -> pd.DataFrame:
    return pd.DataFrame([
        {"defence": d, "party": p, "who": w, "change": c, "low": c - 0.02, "high": c + 0.02, "n": 2}
        for d, loss in (("TopK(2)", -0.1), ("Rounding(0)", -0.01))
        for p, w, c in (("attacker", "embedding", loss), ("customer", "shapes", 0.5 * loss))
    ])  # fmt: skip


def detected() -> pd.DataFrame:
    return pd.DataFrame([
        {"detector": d, "user": u, "seed": s, "queries": 200, "statistic": v + 0.1 * s,
         "flagged": v > 0.4}
        for d, most in (("similar", 0.5), ("prada", 0.3))
        for u, v in (("customer", 0.1), ("thief", most))
        for s in (0, 1)
    ])  # fmt: skip


def examined(**columns: list[float]) -> pd.DataFrame:
    """Rows of suspects of every kind, two of each but the victims, with a column per measure."""
    names = [("victim", "victim"), ("unmarked", "before marking"), *[("stolen", "embedding")] * 2,
             *[("independent", "independent")] * 2]  # fmt: skip
    about = pd.DataFrame(names, columns=["kind", "suspect"])
    return about.assign(seed=[0, 0, 0, 1, 0, 1], images=[None, None, 16, 32, None, None], **columns)


def owned() -> pd.DataFrame:
    rates = {"wsr": [0.8, 0.52, 0.53, 0.6, 0.49, 0.51], "accuracy": [0.7, 0.72, *[None] * 4]}
    p_values = dict.fromkeys(("p_chance", "p_rank", "p_controls", "p_paper", "auc"), [0.02] * 6)
    table = examined(**rates, **p_values).assign(applies="yes", on="all", mark="tuned")
    return pd.concat([table.assign(head=h) for h in ("trained", "untrained")])


def inferred() -> pd.DataFrame:
    table = examined(effect=[0.3, 0.3, 0.1, 0.0, -0.1, 0.02], p=[0.01, 0.01, 0.2, 0.5, 0.9, 0.4])
    return pd.concat([table.assign(form=f, gap=1.0, on="all") for f in ("signed", "published")])


TABLES = {
    "05_inference": inferred,
    "05_watermark": owned,
    "00_samples": sheet,
    "01_views": sheet,
    "01_training": lambda: pd.DataFrame(
        {
            "epoch": [1, 2, 1, 2],
            "loss": [2.0, 1.0, 3.0, 2.0],
            "lr": [0.1, 0.0] * 2,
            "spread": [0.9, 0.8, 0.7, 0.05],
            "knn": [None, 0.6, None, 0.5],
            "method": ["simclr"] * 2 + ["byol"] * 2,
        }
    ),
    "01_worth": lambda: pd.DataFrame(
        [
            {"encoder": e, "task": t, "accuracy": 0.5, "knn": 0.4}
            for e in ("random", "simclr", "supervised")
            for t in ("shapes", "digits")
        ]
    ),
    "02_conventional": attack_table,
    "02_losses": lambda: attack_table().assign(victim="shapes"),
    "02_elsewhere": lambda: attack_table(query_data="patches").assign(victim="shapes"),
    "03_pulls": pulls,
    "03_ablations": knobs,
    "03_boundary": duels,
    "03_geometry": lands,
    "05_adaptive": adapting,
    "05_coverage": covered,
    "03_attacks": attack_table,
    "03_control": attack_table,
    "03_two_by_two": grid,
    "01_embedding_map": points,
    "03_embedding_map": points,
    "04_budget": attack_table,
    "05_matrix": staked,
    "05_detectors": detected,
    "05_defenses": lambda: pd.concat(
        [attack_table(defence=d, legitimate=v) for d, v in (("none", 0.8), ("TopK(2)", 0.7))]
    ).drop_duplicates(),  # floor and victim stand once
}


def test_every_figure_has_a_test_table() -> None:
    assert TABLES.keys() == report.FIGURES.keys() == summary.SECTIONS.keys()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CONTSTEAL_FIGURES", str(tmp_path))
    return tmp_path / "smoke"


@pytest.mark.parametrize("stem", report.FIGURES)
def test_a_figure_is_its_table_and_redrawing_gives_the_same_bytes(stem: str, folder: Path) -> None:
    report.publish(stem, TABLES[stem](), STAMP)
    first = {p.name: p.read_bytes() for p in folder.glob(f"{stem}.*")}
    assert {Path(n).suffix for n in first} == {".pdf", ".png", ".csv", ".json"}
    table, stamp = style.read(folder, stem)
    assert stamp == STAMP
    report.publish(stem, table, stamp)
    assert {p.name: p.read_bytes() for p in folder.glob(f"{stem}.*")} == first


@pytest.mark.parametrize("stem", [s for s in report.FIGURES if "map" not in s])
def test_another_number_gives_another_picture(stem: str, folder: Path) -> None:
    table = TABLES[stem]()
    report.publish(stem, table, STAMP)
    first = (folder / f"{stem}.png").read_bytes()
    own = {"00_samples": "pixels", "01_views": "pixels", "01_training": "loss", "03_pulls": "pull",
           "03_geometry": "gain", "05_coverage": "coverage", "05_matrix": "change",
           "05_detectors": "statistic", "05_inference": "p", "05_watermark": "wsr"}  # fmt: skip
    column = own.get(stem, "accuracy")
    table[column] = "/" * 16 if column == "pixels" else table[column].to_numpy()[::-1] * 0.9
    report.publish(stem, table, STAMP)
    assert (folder / f"{stem}.png").read_bytes() != first


@pytest.mark.parametrize("stem", report.FIGURES)
def test_a_table_without_rows_or_columns_is_refused(stem: str) -> None:
    with pytest.raises((ValueError, KeyError, IndexError)):
        report.draw(stem, TABLES[stem]().iloc[:0])
    with pytest.raises((ValueError, KeyError)):
        report.draw(stem, TABLES[stem]().rename(columns=str.upper))


def test_unknown_figure_and_missing_results_say_what_to_do(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"unknown figure '07_x': choose one of 00_samples"):
        report.draw("07_x", pd.DataFrame())
    with pytest.raises(ValueError, match=r"04_budget.csv is missing: run notebook 04"):
        style.read(folder, "04_budget")


def test_summary_has_numbers_intervals_n_and_stamps(folder: Path) -> None:
    for stem, make in TABLES.items():
        report.publish(stem, make(), STAMP)
    times = {"00_start_here": 1.5, "06_figures": 2.5}
    files.write_json(
        folder / "timings.json", {k: {"seconds": v, "computed": 0} for k, v in times.items()}
    )
    text = report.write("smoke").read_text()
    assert "| in all        |       4   |" in text
    assert "54.5 [48.1, 60.9]" in text  # embedding: 54 % and 55 %, t-interval over two seeds
    assert "seeds 0, 1; device CPU" in text
    assert all("![" in text and f"({stem}.png)" in text for stem in TABLES)


def test_summary_of_a_profile_that_was_not_run_names_the_notebook(folder: Path) -> None:
    with pytest.raises(ValueError, match="run notebook 00"):
        report.write("smoke")


@pytest.mark.parametrize(
    ("name", "most", "told"),
    [
        ("TopK(8)", 34, "TopK(8)"),
        ("PredictionPoisoning(eps=8.0, scale=1.0)", 34, "PredictionPoisoning(eps=8.0, ...)"),
        ("PredictionPoisoning(eps=8.0, scale=1.0)", 24, "PredictionPoisoning(...)"),
        ("a name without brackets that is long", 10, "a name without brackets that is long"),
    ],
)
def test_a_long_name_keeps_its_first_parameter_where_it_fits(
    name: str, most: int, told: str
) -> None:
    assert style.short(name, most) == told


@given(
    st.lists(st.tuples(st.floats(0.55, 0.85), st.floats(0.4, 0.7)), min_size=1, max_size=8),
)
def test_numbers_of_points_that_crowd_stand_apart(points: list[tuple[float, float]]) -> None:
    fig, ax = style.canvas()
    ax.set(xlim=(0.5, 0.9), ylim=(0.2, 0.9))
    style.number(ax, points)
    assert {t.get_text() for t in ax.texts} == {str(k + 1) for k in range(len(points))}
    spots = [(t.xy, t.get_position()) for t in ax.texts]
    assert {at for at, _ in spots} == set(points)
    for (a, (_, high)), (b, (_, other)) in combinations(spots, 2):
        assert abs(a[0] - b[0]) >= 0.05 or abs(high - other) >= 0.7 / 18 - 1e-9
    assert all(y >= at[1] - 1e-9 for at, (_, y) in spots), "moved up only: later ones know of it"
    plt.close(fig)


@pytest.mark.parametrize(("shared", "labels"), [(True, [0, 2]), (False, [2, 2])])
def test_floor_and_ceiling_are_labelled_once_per_scale(shared: bool, labels: list[int]) -> None:
    table = pd.DataFrame({"attack": ["random", "victim"], "accuracy": [0.4, 0.8]})
    fig, axes = style.canvas(1, 2, sharey=shared)
    for ax in axes:
        style.frame(ax, table, "accuracy", vertical=False)
    assert [len(ax.texts) for ax in axes] == labels
    assert [t.get_text() for t in axes[1].texts] == ["random\n40.0 %", "victim\n80.0 %"]
    assert [[line.get_ydata()[0] for line in ax.lines] for ax in axes] == [[0.4, 0.8]] * 2
    plt.close(fig)
