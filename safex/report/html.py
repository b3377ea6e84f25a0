"""The page as one HTML file: text by a template, pictures by plotly.js, which lies in the file itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .content import FIRST_ROWS, Block, Map
from .panels import Figure
from .plotly_figures import DIVERGING, map_spec, panel_spec, scale
from .sections import Page

HERE = Path(__file__).parent


def render(page: Page) -> str:
    """The whole file. Names from result files are escaped in the text and in the data."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from plotly.offline import get_plotlyjs

    from safex import __version__

    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.lstrip_blocks = True
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":")}
    blocks = [block for section in page.sections for block in section.blocks]
    return environment.get_template("template.html.j2").render(
        page=page,
        data=page_data(blocks),
        css=(HERE / "report.css").read_text(encoding="utf-8"),
        js=(HERE / "report.js").read_text(encoding="utf-8"),
        plotly=get_plotlyjs(),
        version=__version__,
        first_rows=FIRST_ROWS,
    )


def page_data(blocks: list[Block]) -> dict[str, Any]:
    """What report.js draws: figures by name, each a list of panels, and the maps; how many rows tables show."""
    figures = {b.name: [panel_spec(panel) for panel in b.panels] for b in blocks if isinstance(b, Figure)}
    maps = [map_spec(of) for block in blocks if isinstance(block, Map) for of in block.maps]
    return {"figures": figures, "maps": maps, "diverging": scale(DIVERGING), "firstRows": FIRST_ROWS}
