"""The site: the pages of `docs/`, each profile's results and notebooks, and the API reference.

`make html` builds it, and it works without a network. The pages are staged in Sphinx's source folder
(`-c docs` names this one), so that nothing generated is written into the repository.
"""

import inspect
import re
import shutil
from pathlib import Path
from typing import Any

import nbformat
from docutils import nodes
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx
from tabulate import tabulate

from contsteal import defenses, steal
from contsteal.lab import artifacts, profiles
from contsteal.paper import claims

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))
WIDGET = "application/vnd.jupyter.widget-view+json"
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)#\s]*/[^)#\s]*)(?:#[^)]*)?\)")  # into another folder
API = [
    "losses", "augment", "encoders", "checkpoints", "methods", "loop", "pretrain", "victim",
    "attacks", "steal", "evaluate", "seeds", "files", "data", "defenses", "ownership",
]  # fmt: skip

project = html_title = "contsteal"
html_theme = "furo"
html_static_path = ["site.css"]
html_css_files = ["site.css"]
html_math_renderer = "mathml"  # browsers draw it without a script
html_show_search_summary = False  # would read other pages, which file:// addresses do not allow
html_copy_source = html_show_copyright = False
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
nb_execution_mode = "off"
nb_merge_streams = True
myst_enable_extensions = ["dollarmath", "substitution"]
myst_heading_anchors = 3
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True
default_role = "code"


def with_results() -> list[str]:
    """Return the profiles that have figures; `demo` without any, so that notebooks have a page."""
    known = [p for p in profiles.names() if any((artifacts.figures_dir() / p).glob("*.png"))]
    return known or ["demo"]


def table(rows: list[dict[str, Any]]) -> str:
    return tabulate(rows, headers="keys", tablefmt="github", disable_numparse=True)


def defense_row(name: str, defense: Any) -> dict[str, Any]:
    parameters = ", ".join(f"`{p}`" for p in inspect.signature(defense).parameters.values())
    summary = (inspect.getdoc(defense) or "").split("\n\n")[0].replace("\n", " ")
    return {"defence": f"`{name}`", "what it does": summary, "parameters": parameters}


myst_substitutions = {
    "profiles": table([
        {"profile": f"`{p}`", "purpose": profiles.profile(p).about} for p in profiles.names()
    ]),
    "attacks": table([
        {"attack": f"`{name}`", "loss": a.description, "answer": a.answer, "views": a.views,
         "queries per image": a.answers, "source": a.source} for name, a in steal.ATTACKS.items()
    ]),
    "defenses": table([defense_row(*item) for item in defenses.DEFENSES.items()]),
    "verdicts": "\n\n".join(
        f"## {p}\n\n{table(claims.frame(p).to_dict('records'))}" for p in with_results()
    ),
}  # fmt: skip


class Stage:
    """Sphinx's source folder; a page that did not change keeps its date and is not built again."""

    def __init__(self, home: Path) -> None:
        self.home, self.written = home, set[Path]()

    def write(self, name: str, text: str) -> None:
        path = self.home / name
        self.written.add(path)
        if not path.is_file() or path.read_text() != text:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    def copy(self, source: Path, name: str) -> None:
        (self.home / name).parent.mkdir(parents=True, exist_ok=True)
        self.written.add(Path(shutil.copy2(source, self.home / name)))

    def linked(self, text: str, folder: Path) -> str:
        """Lead links into the repository to pages of the site; of another file give the name."""

        def replace(match: re.Match[str]) -> str:
            picture, label, link = match.groups()
            path = (folder / link).resolve()
            if not path.is_file() or ROOT not in path.parents:
                return match[0]
            name = path.relative_to(ROOT).as_posix()
            if picture:
                self.copy(path, f"images/{name.replace('/', '-')}")
                return f"![{label}](/images/{name.replace('/', '-')})"
            if path in NOTEBOOKS:
                return f"[{label}](/results/{with_results()[0]}/{path.name})"
            if path.name == "summary.md":
                return f"[{label}](/results/{path.parent.name}/index.md)"
            return f"[{label}](/{path.name})" if path.suffix == ".md" else f"{label} (`{name}`)"

        return LINK.sub(replace, text)

    def notebook(self, profile: str, source: Path) -> None:
        """Write the executed notebook, or the one without outputs and the command that runs it."""
        command = f"make paper PROFILE={profile} NB={source.stem[:2]}"
        executed = artifacts.runs_dir() / profile / source.name
        note = f"Executed by `{command}`." if executed.is_file() else (
            f"Not run here, so without outputs. `{command}` runs it; then `make html` shows them."
        )  # fmt: skip
        book = nbformat.read(executed if executed.is_file() else source, as_version=4)
        book.metadata.pop("widgets", None)
        for cell in book.cells:
            if cell.cell_type == "markdown":
                cell.source = self.linked(cell.source, source.parent)
            for output in cell.get("outputs", []):
                output.get("data", {}).pop(WIDGET, None)
        cell = nbformat.v4.new_markdown_cell(f"```{{note}}\n{note}\n```", id="about-this-page")
        book.cells.insert(1, cell)
        self.write(f"results/{profile}/{source.name}", nbformat.writes(book))

    def results(self, profile: str) -> None:
        """Write the page of a profile: its notebooks, then its figures, each with its files."""
        folder, page = artifacts.figures_dir() / profile, f"results/{profile}"
        for path in sorted(folder.glob("*.[cp]*")):
            self.copy(path, f"{page}/{path.name}")
        summary = folder / "summary.md"
        images = [f"![{path.stem}]({path.name})" for path in sorted(folder.glob("*.png"))]
        text = summary.read_text() if summary.is_file() else "\n\n".join([f"# {profile}", *images])
        title, _, body = text.partition("\n")

        def with_files(match: re.Match[str]) -> str:
            files = [folder / f"{match[1]}.{kind}" for kind in ("png", "pdf", "csv")]
            links = [f"[{p.suffix[1:].upper()}]({p.name})" for p in files if p.is_file()]
            return f"{match[0]}\n\n{' '.join(links)}"

        body = re.sub(r"^!\[[^\]]*\]\(([^/\s)]+)\.png\)$", with_files, body, flags=re.MULTILINE)
        about = f"{profiles.profile(profile).about}."
        tree = "\n".join(["```{toctree}", ":maxdepth: 1", "", *(n.name for n in NOTEBOOKS), "```"])
        parts = [title, about[0].upper() + about[1:], "## Notebooks", tree, body]
        self.write(f"{page}/index.md", "\n\n".join(parts))
        for source in NOTEBOOKS:
            self.notebook(profile, source)

    def api(self, module: str) -> None:
        directive = f".. automodule:: contsteal.{module}\n   :members:\n   :show-inheritance:\n"
        self.write(f"api/{module}.md", f"# {module}\n\n```{{eval-rst}}\n{directive}```\n")


def stage(app: Sphinx) -> None:
    """Write every page, and remove what an earlier build wrote and this one did not."""
    to = Stage(Path(app.srcdir))
    for path in [*sorted(Path(app.confdir).rglob("*.md")), ROOT / "CONTRIBUTING.md"]:
        name = path.relative_to(app.confdir if path.is_relative_to(app.confdir) else ROOT).as_posix()
        to.write(name, to.linked(path.read_text(), path.parent))
    for profile in with_results():
        to.results(profile)
    for module in app.config.api_modules:
        to.api(module)
    for path in to.home.rglob("*"):
        if path.is_file() and path not in to.written:
            path.unlink()


def formula(translator: Any, node: nodes.Node) -> None:
    """Write a formula as MathML, or as its source where docutils cannot convert it."""
    try:
        translator.body.append(tex2mathml(node.astext(), as_block=isinstance(node, nodes.math_block)))
    except MathError:
        translator.body.append(f"<code>{translator.encode(node.astext())}</code>")
    raise nodes.SkipNode


def setup(app: Sphinx) -> None:
    app.add_config_value("api_modules", API, "env")
    app.add_html_math_renderer("mathml", (formula, None), (formula, None))
    app.connect("builder-inited", stage)
