"""The page as one HTML file."""

import base64
import hashlib
from pathlib import Path

import markupsafe

from scripts.demo.contents import Contents
from scripts.inspect.page import environment_of, without_controls

FOLDER = Path(__file__).parent
SCRIPTS = ("network.js", "normalize.js", "view.js", "main.js")

# How a page says what an activation does to a weighted sum z.
FORMULAS = {
    "tanh": "tanh(z)",
    "scaled_tanh": "1.7159 tanh(2z/3)",
    "relu": "max(0, z)",
    "silu": "z · sigmoid(z)",
    "sigmoid": "sigmoid(z)",
}


def render(contents: Contents) -> str:
    """The page. All that comes from the run is escaped; the browser runs the script and the style
    with these hashes alone.
    """
    environment = environment_of(FOLDER)
    environment.filters["shown"] = without_controls
    script = "\n".join((FOLDER / name).read_text(encoding="utf-8") for name in SCRIPTS)
    style = (FOLDER / "style.css").read_text(encoding="utf-8")
    return environment.get_template("page.html.jinja").render(
        **contents._asdict(),
        formula=FORMULAS[contents.config.activation],
        script=markupsafe.Markup(script),
        script_hash=digest(script),
        style=markupsafe.Markup(style),
        style_hash=digest(style),
    )


def digest(text: str) -> str:
    """As a Content-Security-Policy names a script or a style."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
