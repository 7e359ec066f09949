"""Report data to one HTML file that needs nothing else: no server, no network, no fonts."""

import base64
import hashlib
import importlib.resources

from npeff_jax.report._data import ReportData, dumps


def render(report: ReportData) -> str:
    """The page. Whatever is in the data stays text: autoescaped here, made into text nodes by the page's script.

    A content security policy names the one script and the one style by their digests, so that nothing else could run
    and nothing can be fetched.
    """
    import jinja2

    assets = importlib.resources.files("npeff_jax.report") / "assets"
    scripts = sorted((file for file in assets.iterdir() if file.name.endswith(".js")), key=lambda file: file.name)
    code = '"use strict";\n' + "\n".join(file.read_text(encoding="utf-8") for file in scripts)
    script, style = f"(() => {{\n{code}\n}})();", (assets / "report.css").read_text(encoding="utf-8")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    template = environment.from_string((assets / "report.html.j2").read_text(encoding="utf-8"))
    return template.render(
        title=report.title,
        version=report.version,
        style=_markup(style),
        style_hash=_markup(_digest(style)),
        script=_markup(script),
        script_hash=_markup(_digest(script)),
        data=_markup(_inert(dumps(report.to_json()))),
    )


def _inert(text: str) -> str:
    """JSON that cannot end the element it stands in, nor a line of a script."""
    harmless = {ord(letter): f"\\u{ord(letter):04x}" for letter in "<>&\u2028\u2029"}
    return text.translate(harmless)


def _digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _markup(text: str) -> str:
    """Our own markup and what `_inert` made harmless: not escaped again."""
    import markupsafe

    return markupsafe.Markup(text)
