"""A folder of pages to read without Jupyter and without a network: figures, numbers, notebooks.

`python -m contsteal.site --profile demo` is what `make html` calls: it reads the stored results and
the executed notebooks, computes nothing, and writes `runs/site/`.
"""

import argparse
import re
import shutil
import sys
from collections.abc import Sequence
from html import escape as quoted
from pathlib import Path
from string import Template
from typing import Any

import nbformat
from nbconvert import HTMLExporter
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from rich.markup import escape
from traitlets.config import Config

from contsteal import files
from contsteal.lab import artifacts, profiles
from contsteal.paper import formulas, navigation, plan, redraw
from contsteal.paper.command import console, finish

PAGE = artifacts.PACKAGE / "page.html"
WIDGET = "application/vnd.jupyter.widget-view+json"
# nbconvert's own page, without the scripts that it would fetch from the network.
NOTEBOOK = """{%- extends 'lab/index.html.j2' -%}
{%- block html_head_js -%}<link rel="icon" href="data:,"/>{%- endblock -%}
{%- block jupyter_widgets -%}{%- endblock -%}
{%- block html_head_js_mathjax -%}{%- endblock -%}
{%- block html_head_js_mermaidjs -%}{%- endblock -%}
{%- block html_head_css -%}
<style>
main { max-width: 64rem; margin: 0 auto; }
p.banner { font: 14px/1.5 system-ui, sans-serif; padding: 0.5rem 1rem; background: #f4f4f4; }
p.banner a { color: #0057a0; text-decoration: underline; }
.jp-RenderedHTMLCommon img.formula { max-width: none; }
.highlight pre { white-space: pre-wrap; }
</style>
{%- endblock -%}
{%- block body_header -%}{{ super() }}<p class="banner">{{ resources.banner }}</p>{%- endblock -%}"""


class _Markdown(IPythonRenderer):
    """Markdown whose formulas are pictures, and whose links lead to pages instead of notebooks."""

    def block_math(self, body: str) -> str:
        return formulas.html(body, display=True)

    def inline_math(self, body: str) -> str:
        return formulas.html(body)

    def link(self, text: str, url: str, title: str | None = None) -> str:
        if url.startswith("../") and (plan.NOTEBOOKS / url).is_file():  # not among the pages
            return f"{text} (<code>{quoted(url.removeprefix('../'))}</code>)"
        return super().link(text, re.sub(r"^(\d\w*)\.ipynb", r"\1.html", url), title)


class _Figures(_Markdown):
    """The same, with a line under each figure that leads to its other files."""

    def image(self, text: str, url: str, title: str | None = None) -> str:
        stem = url.removesuffix(".png")
        links = ", ".join(f'<a href="{stem}.{k}">{k.upper()}</a>' for k in ("png", "pdf", "csv"))
        return f'{super().image(text, url, title)}<br/><span class="files">{links}</span>'


class _Exporter(HTMLExporter):
    def markdown2html(self, context: Any, source: str) -> str:
        return markdown(source)

    markdown2html.jinja_pass_arg = HTMLExporter.markdown2html.jinja_pass_arg


def site_dir() -> Path:
    """Return the folder of the pages: `site` in the folder of runs."""
    return artifacts.runs_dir() / "site"


def markdown(source: str, renderer: type[IPythonRenderer] = _Markdown) -> str:
    """Return Markdown as HTML, formulas as pictures within it."""
    return MarkdownWithMath(renderer=renderer(escape=False, exclude_anchor_links=True)).render(
        source
    )


def notebook(path: Path, banner: str) -> str:
    """Return a notebook as one page that needs no network.

    Of an output with a widget its static picture is shown; one that has none, such as a progress bar,
    is left out. `banner` is HTML, shown on top.
    """
    book = nbformat.read(path, as_version=4)
    book.metadata.pop("widgets", None)
    for number, cell in enumerate(c for c in book.cells if c.cell_type == "code"):
        cell.outputs = [shown for out in cell.get("outputs", []) if (shown := _still(out))]
        for out in cell.outputs:
            if "image/png" in out.get("data", {}) and "text/html" not in out["data"]:
                out["data"]["text/html"] = _picture(out["data"]["image/png"], number)
    found = re.search(r"^# (.+)$", book.cells[0].source, re.MULTILINE)
    book.metadata["title"] = found[1] if found else path.stem
    exporter = _Exporter(raw_template=NOTEBOOK, exclude_anchor_links=True, config=Config())
    return exporter.from_notebook_node(book, {"banner": banner})[0]


def _still(output: Any) -> Any:
    """Return an output without its widget, or None where nothing but a text would be left of it."""
    if WIDGET not in output.get("data", {}):
        return output
    output["data"].pop(WIDGET)
    return output if output["data"].keys() - {"text/plain"} else None


def _picture(data: str, number: int) -> str:
    return f'<img alt="Figure drawn by code cell {number + 1}" src="data:image/png;base64,{data}"/>'


# ------------------------------------------------------------------------------------- pages


def _page(title: str, body: str) -> str:
    return Template(PAGE.read_text()).substitute(title=quoted(title), body=body)


def executed(profile: str) -> dict[str, Path | None]:
    """Return each notebook's executed copy, or None where it was not run to its end."""
    paths = {s: artifacts.runs_dir() / profile / f"{s}.ipynb" for s in plan.notebooks()}
    return {stem: path if path.is_file() else None for stem, path in paths.items()}


def command(profile: str, stem: str) -> str:
    """Return the command that runs one notebook of a profile."""
    return f"make paper PROFILE={profile} NB={stem[:2]}"


def _row(profile: str, stem: str, path: Path | None) -> str:
    record = files.read_json(artifacts.runs_dir() / profile / f"{stem}.json") or {}
    told = f"not run here: `{command(profile, stem)}` makes it"
    if path:
        told = "run" + "".join(
            f" {word} {record[k]}{unit}"
            for k, word, unit in (("date", "on", ""), ("device", "on", ""), ("seconds", "in", " s"))
            if k in record
        )
    return f"| [{stem}]({stem}.html) | {navigation.title(stem)} | {told} |"


def _about(profile: str) -> str:
    told = profiles.profile(profile)["about"]
    return told[0].upper() + told[1:]


def overview(profile: str) -> str:
    """Return the page of a profile: its notebooks, its summary, and every figure with its files."""
    folder = artifacts.figures_dir() / profile
    rows = [_row(profile, stem, path) for stem, path in executed(profile).items()]
    summary = folder / plan.SUMMARY
    told = f"No {plan.SUMMARY} yet: `{command(profile, plan.notebooks()[-1])}` writes it.\n\n"
    told += "\n\n".join(f"![{s}]({s}.png)" for s in redraw.stored(folder))
    text = summary.read_text().partition("\n")[2] if summary.is_file() else told
    return "\n".join([
        f"# Results of the `{profile}` profile", "",
        f"{_about(profile)}. [All profiles](../index.html). "
        f"[All figures on one page]({redraw.SHEET}.png).", "",
        "| notebook | about | state |", "|---|---|---|", *rows, "", text,
    ])  # fmt: skip


def index(built: Sequence[str]) -> str:
    """Return the first page: a picture of each profile's figures, and what was not run."""
    parts = ["# contsteal", "Steal image encoders, count the queries, defend them."]
    for name in built:
        parts += [f"## [{name}]({name}/index.html)", f"{_about(name)}."]
        parts += [f"[![all figures of {name}]({name}/{redraw.SHEET}.png)]({name}/index.html)"]
    rest = [
        f"`make paper PROFILE={p}`, then `make html`" for p in profiles.names() if p not in built
    ]
    return "\n\n".join([*parts, "## Not here", *(f"- {told}" for told in rest)])


def build(profile: str) -> Path:
    """Write the pages of a profile and copy its figures beside them; return the folder."""
    home, folder = site_dir() / profile, artifacts.figures_dir() / profile
    shutil.rmtree(home, ignore_errors=True)
    files.write_text(
        home / "index.html", _page(f"{profile} profile", markdown(overview(profile), _Figures))
    )
    if not (folder / f"{redraw.SHEET}.png").is_file():
        redraw.sheet(folder)
    for path in sorted(folder.glob("*.[cp]*")):
        shutil.copy(path, home)
    back = f'<a href="index.html">{profile} profile: results and notebooks</a>'
    for stem, path in executed(profile).items():
        run = quoted(command(profile, stem))
        banner = back if path else f"{back}. Not run here, so without outputs: <code>{run}</code>"
        source = path or plan.NOTEBOOKS / f"{stem}.ipynb"
        files.write_text(home / f"{stem}.html", notebook(source, banner))
    return home


def _write(asked: str) -> int:
    """Write the pages of one profile or of all with results, and the first page."""
    for profile in redraw.profiles_with_results(asked):
        build(profile)
        lacking = [stem for stem, path in executed(profile).items() if path is None]
        told = f", without outputs of {', '.join(lacking)}: not run here" if lacking else ""
        console.print(escape(f"{profile}: pages written{told}"))
    built = [p for p in profiles.names() if (site_dir() / p / "index.html").is_file()]
    files.write_text(site_dir() / "index.html", _page("contsteal", markdown(index(built))))
    console.print(f"open {site_dir() / 'index.html'}")
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line, write the pages, and return the exit code."""
    parser = argparse.ArgumentParser(prog="contsteal.site", description=__doc__)
    parser.add_argument("--profile", default="auto", help="a profile; auto: all with results")
    given = parser.parse_args(arguments)
    return finish(lambda: _write(given.profile))


if __name__ == "__main__":
    sys.exit(main())
