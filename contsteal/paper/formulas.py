"""LaTeX formulas as pictures within a page, for readers without a network."""

import base64
import io
from html import escape

from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.mathtext import MathTextParser

SIZE = 10  # points; the page scales by its own font, see `em`


def picture(latex: str, display: bool = False) -> str:
    r"""Return an HTML image of a formula, on the line's baseline, with its source as the spoken text.

    `display` sets fractions at full size. Errors: ValueError for what matplotlib's mathtext cannot set
    (environments such as `aligned`, unknown commands).
    """
    source = " ".join(latex.split())
    shown = f"${source.replace(chr(92) + 'frac', chr(92) + 'dfrac') if display else source}$"
    with rc_context(
        {"mathtext.fontset": "stix", "svg.hashsalt": "contsteal", "svg.fonttype": "path"}
    ):
        font = FontProperties(size=SIZE)
        width, height, depth, *_ = MathTextParser("path").parse(shown, dpi=72, prop=font)
        figure, svg = Figure(figsize=(width / 72, height / 72)), io.BytesIO()
        figure.text(0, depth / height, shown, fontproperties=font)
        figure.savefig(
            svg, format="svg", transparent=True, metadata={"Date": None, "Creator": None}
        )
    data = base64.b64encode(svg.getvalue()).decode()
    em = f"height:{1.1 * height / SIZE:.3f}em;vertical-align:{-1.1 * depth / SIZE:.3f}em"
    src = f"data:image/svg+xml;base64,{data}"
    return f'<img class="formula" alt="{escape(source)}" style="{em}" src="{src}"/>'


def html(latex: str, display: bool = False) -> str:
    """Return `picture` of a formula, or its source in plain letters where it cannot be set."""
    try:
        found = picture(latex, display)
    except ValueError:
        found = f'<code class="formula">{escape(latex.strip())}</code>'
    return f'<p class="formula">{found}</p>' if display else found
