"""The site: the pages of `docs/`, the results of each profile, its notebooks, and the API reference.

`make html` builds it. Sphinx reads a folder within the build folder, into which `stage` writes every
page, so that nothing generated lands in the repository. The site works without a network.
"""

import inspect
import re
from collections.abc import Iterable
from itertools import compress
from pathlib import Path
from shutil import copytree, ignore_patterns
from typing import Any

import nbformat
import yaml
from docutils import nodes
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx
from tabulate import tabulate

from contsteal import augment, defenses, steal
from contsteal.lab import artifacts
from contsteal.paper import claims
from contsteal.paper.notebooks import number
from contsteal.paper.plots import FIGURES

ROOT = Path(__file__).resolve().parents[1]
WIDGET = "application/vnd.jupyter.widget-view+json"

project = html_title = "contsteal"
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
html_theme = "furo"
html_static_path = html_css_files = ["site.css"]
html_math_renderer = "mathml"  # which browsers draw without a script
html_show_search_summary = False  # it would fetch pages, which browsers refuse for file://
html_copy_source = html_show_copyright = False
nb_execution_mode = "off"
nb_merge_streams = True
nb_render_markdown_format = "myst"  # generated findings hold tables
nb_mime_priority_overrides = [("html", WIDGET, None)]  # a widget's static image is shown
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
napoleon_numpy_docstring = (
    False  # both parsers in turn would take a colon in a sentence for a type's
)
autodoc_member_order = "bysource"
autodoc_default_options = {"exclude-members": "record"}  # of defences: what they remember of a user
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True
default_role = "code"

ABOUT = {
    path.stem: yaml.safe_load(path.read_text())["about"]
    for path in sorted((ROOT / "notebooks" / "profiles").glob("*.yaml"))
}
HOME = artifacts.figures_dir()
RESULTS = [p for p in ABOUT if (HOME / p / "summary.md").is_file()]
SHOWN = RESULTS or ["demo"]  # without any results, the notebooks still have their pages
NONE = "No results are stored: `make paper` makes them."
LINKS = (  # from places in the repository to pages of the site; of other files only the name is shown
    (r"\]\(\.\./figures/(\w+)/summary\.md", r"](/results/\1/index.md"),
    (r"\]\(\.\./figures/", "](/results/"),
    (r"\]\(\.\./benchmarks/results/", "](/measured/"),
    (r"\]\(\.\./notebooks/(\w+\.ipynb)", rf"](/results/{SHOWN[0]}/\1"),
    (r"\]\(\.\./docs/", "](/"),
    (r"\]\(\.\./CONTRIBUTING\.md", "](/contributing.md"),
    (r"\]\(CHANGELOG\.md", "](/changelog.md"),  # of CONTRIBUTING.md
    (r"\]\(docs/", "](/"),  # of CONTRIBUTING.md
    (r"\[([^][]*)\]\(\.\./([^)]*)\)", r"\1 (`\2`)"),
)


def table(rows: Iterable[dict[str, Any]]) -> str:
    """Return a list of dictionaries as a Markdown table."""
    cells = [{k: str(v).replace("|", r"\|") for k, v in row.items()} for row in rows]
    return tabulate(cells, headers="keys", tablefmt="github", disable_numparse=True)


def summary(documented: object) -> str:
    return " ".join((inspect.getdoc(documented) or "").split("\n\n")[0].split())


def gallery(profile: str) -> str:
    """Return a profile's figures, small and in the order of the notebooks; each leads to its numbers."""
    shown = [
        f"```{{figure}} /results/{profile}/{stem}.png\n:alt: {row.shows}\n"
        f":target: results/{profile}/index.html#{nodes.make_id(row.shows)}\n\n{row.shows} `{stem}`\n```"
        for stem, row in FIGURES.items()
        if (HOME / profile / f"{stem}.png").is_file()
    ]
    text = "\n".join(shown) or "No figure is stored: `make figures` draws them from their tables."
    return f"## `{profile}`\n\n````{{container}} gallery\n{text}\n````"


TABLES = {  # in place of the comment of that name in a page
    "profiles": table({"profile": f"`{p}`", "purpose": about} for p, about in ABOUT.items()),
    "attacks": table({"attack": f"`{name}`", "loss": a.description, "answer": a.answer,
                      "views": a.views,
                      "queries per image": a.answers * (2 if a.views == "pair" else 1),
                      "source": a.source}
                     for name, a in steal.ATTACKS.items()),
    "defenses": table({"defence": f"`{d.__name__}`", "name": f"`{name}`",
                       "what it does": summary(d)} for name, d in defenses.DEFENSES.items()),
    "policies": table({"policy": f"`{name}`", "the view": summary(getattr(p, "func", p))}
                      for name, p in augment.POLICIES.items()),
    "verdicts": "\n\n".join(f"## `{p}`\n\n{table(claims.frame(claims.judge(p)).to_dict('records'))}"
                            for p in RESULTS) or NONE,
    "gallery": "\n\n".join(map(gallery, RESULTS)) or NONE,
}  # fmt: skip


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    for pattern, place in LINKS:
        text = re.sub(pattern, place, text)
    text = re.sub(
        r"<!-- table: (\w+) -->(\n\*\(`make html`.*)?", lambda match: TABLES[match[1]], text
    )
    path.write_text(re.sub(r"!?\[([^][]*)\]\(/results/(\w+)/(\w+\.\w+)[^)]*\)", stored, text))


def stored(link: re.Match[str]) -> str:
    """Keep a link to results that are there; of others keep the text, and say what is missing."""
    text, profile, name = link.groups()
    there = (
        profile in SHOWN if name.endswith((".md", ".ipynb")) else (HOME / profile / name).is_file()
    )
    return link[0] if there else f"{text} (not run: `make paper PROFILE={profile}`)"


def stage(app: Sphinx) -> None:
    """Write all pages into Sphinx's source folder."""
    source = Path(app.srcdir)
    app.env.mystnb_config = app.env.mystnb_config.copy(output_folder=str(source / "outputs"))
    for path in Path(app.confdir).rglob("*.md"):
        write(source / path.relative_to(app.confdir), path.read_text())
    write(source / "contributing.md", (ROOT / "CONTRIBUTING.md").read_text())
    write(source / "changelog.md", (ROOT / "CHANGELOG.md").read_text())
    copytree(ROOT / "benchmarks" / "results", source / "measured", dirs_exist_ok=True)
    for profile in SHOWN:
        stage_results(profile, source / "results" / profile)
        for path in (ROOT / "notebooks").glob("[0-9]*.ipynb"):
            stage_notebook(profile, path, source / "results" / profile / path.name)


def stage_results(profile: str, folder: Path) -> None:
    """Write a profile's page: its notebooks, its summary, and below each figure the figure's files."""
    figures, text = HOME / profile, f"# Results of the `{profile}` profile\n{NONE}"
    if profile in RESULTS:
        copytree(figures, folder, ignore=ignore_patterns("*.md", "*.json"), dirs_exist_ok=True)
        text = (figures / "summary.md").read_text()

    def files(picture: re.Match[str]) -> str:
        kinds = [k for k in ("png", "pdf", "csv") if (figures / f"{picture[1]}.{k}").is_file()]
        missing = f"`make figures PROFILE={profile}` draws this figure from its table."
        links = " ".join(f"[{kind.upper()}]({picture[1]}.{kind})" for kind in kinds)
        return f"{picture[0] if 'png' in kinds else missing}\n\n{links}"

    title, _, text = text.partition("\n")
    text = re.sub(r"^!\[.*\]\((\w+)\.png\)$", files, text, flags=re.MULTILINE)
    tree = "```{toctree}\n:glob:\n:maxdepth: 1\n\n*\n```"
    parts = [title, f"Purpose: {ABOUT[profile]}.", "## Notebooks", tree, text]
    write(folder / "index.md", "\n\n".join(parts))


def stage_notebook(profile: str, source: Path, path: Path) -> None:
    """Write a notebook as it was executed, or as it is with the stored figures behind their cells.

    Of its widgets, only those with a static image remain.
    """
    command = f"`make paper PROFILE={profile} NB={number(source.stem)}`"
    executed = artifacts.runs_dir() / profile / source.name
    if executed.is_file():
        book, note = nbformat.read(executed, as_version=4), f"Executed by {command}."
    else:
        book = nbformat.read(source, as_version=4)
        book.cells = [shown for cell in book.cells for shown in (cell, *figures_of(profile, cell))]
        note = f"Not executed here: {command} runs this notebook. The figures are the stored ones."
    book.metadata.pop("widgets", None)
    for cell in (c for c in book.cells if "outputs" in c):
        data = [output.get("data", {}) for output in cell.outputs]
        shown = ["image/png" in d or WIDGET not in d for d in data]
        cell.outputs = list(compress(cell.outputs, shown))
    if profile != SHOWN[0]:  # a search finds both
        book.cells[0].source = re.sub(
            "$", f" ({profile})", book.cells[0].source, count=1, flags=re.M
        )
    book.cells.insert(1, nbformat.v4.new_markdown_cell(f"```{{note}}\n{note}\n```"))
    write(path, nbformat.writes(book))


def figures_of(profile: str, cell: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    """Return a cell with the stored figures that a code cell publishes, those that there are."""
    stems = re.findall(r"figures\.publish\(\"(\w+)\"", cell.source)
    stems += ["contact_sheet"] * ("figures.sheet(" in cell.source)
    stems = [stem for stem in stems if (HOME / profile / f"{stem}.png").is_file()]
    text = "\n\n".join(f"![{stem}]({stem}.png)" for stem in stems)
    return [nbformat.v4.new_markdown_cell(text)] if stems and cell.cell_type == "code" else []


def formula(translator: Any, node: nodes.Element) -> None:
    """Write a formula as MathML, or its source where docutils cannot convert it."""
    try:
        html = tex2mathml(node.astext(), as_block=isinstance(node, nodes.math_block))
    except MathError:
        html = f"<code>{translator.encode(node.astext())}</code>"
    translator.body.append(html)
    raise nodes.SkipNode


def escape(match: re.Match[str]) -> str:
    return f"{match[1]}\\ " if match[1] else f"\\{match[2]}"


def plain(app: Sphinx, what: str, *others: Any) -> None:
    """Docstrings are plain text: keep reST from reading emphasis or references into formulas."""
    lines: list[str] = others[-1]
    if what in ("attribute", "property"):  # napoleon takes what precedes a colon for the type
        lines[0] = f": {lines[0]}"
    parts = re.split(r"(^ *>>>.*?(?:\n *\n|\Z))", "\n".join(lines), flags=re.MULTILINE | re.DOTALL)
    parts[::2] = [re.sub(r"(`+[^`]+`+)|([*|]|_(?=\W|$))", escape, text) for text in parts[::2]]
    lines[:] = "".join(parts).split("\n")  # examples stay as they are


def without_limits(*arguments: Any) -> tuple[str | None, str | None]:
    """Leave the limits of parameters out of a signature; each parameter's own line has them."""
    signature, returned = arguments[-2:]
    return signature and re.sub(r"Annotated\[(\w+)(?:, \([^)]*\))+\]", r"\1", signature), returned


def setup(app: Sphinx) -> None:
    app.add_html_math_renderer("mathml", (formula, None), (formula, None))
    app.connect("builder-inited", stage)
    app.connect("autodoc-process-docstring", plain, priority=400)
    app.connect("autodoc-process-signature", without_limits)
