"""The path of a written report, displayed as the page in notebooks."""

import html
import os
import pathlib

_INLINE_BYTES = 4_000_000
"""Largest page that is embedded in a notebook, so that it shows wherever the notebook is opened. Larger pages would
make the notebook slow to open and save."""

_Concrete: type[pathlib.Path] = type(pathlib.Path())


class Page(_Concrete):  # type: ignore[valid-type, misc]
    """A `pathlib.Path` of a report. As the last expression of a notebook cell it displays the page."""

    def _repr_html_(self) -> str:
        place = html.escape(str(self), quote=True)
        if not self.is_file():
            return f"<code>{place}</code> (is not there any more)"
        size = self.stat().st_size
        if size <= _INLINE_BYTES:
            source = f'srcdoc="{html.escape(self.read_text(encoding="utf-8"), quote=True)}"'
        else:
            source = f'src="{html.escape(os.path.relpath(self), quote=True)}"'
        return (
            f'<iframe {source} title="report" width="100%" height="720" style="border:1px solid #8884"></iframe>'
            f"<div><code>{place}</code> ({size / 1e6:.1f} MB)</div>"
        )
