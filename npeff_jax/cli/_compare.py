"""``npeff scan`` and ``npeff compare``: choose the number of components, and compare the components of two runs."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from npeff_jax._extras import needs
from npeff_jax.cli._options import Flag, Ints, MaybePath, Show, progress_of
from npeff_jax.cli._record import load_arrays, stage
from npeff_jax.report import output_file


@stage
def scan(
    pefs: Path,
    out: Path,
    n_components: Ints = (),
    heldout: MaybePath = None,
    n_seeds: int = 2,
    seed: int = 0,
    progress: Show = Show.BAR,
    overwrite: Flag = False,
) -> None:
    """Compare numbers of components by held-out loss, stability over seeds and time, and recommend one.

    Next: npeff decompose, or npeff explain, with that --n-components.

    Args:
        pefs: PEFs written by "npeff pefs" or "npeff explain", such as run/pefs.
        out: the plot to write, .svg, .png or .pdf.
        n_components: the numbers to try; by default four around the square root of the number of examples.
        heldout: PEFs of other examples; by default a random fifth of the examples is held out.
        n_seeds: runs per number, two or more.
        seed: seed of the first run.
        progress: a bar, JSON lines, or none.
        overwrite: replace existing results.
    """
    import npeff_jax

    output_file(out)
    if out.suffix.lower() not in (".svg", ".png", ".pdf"):
        raise ValueError(f"--out {out} ends in {out.suffix!r}; expected .svg, .png or .pdf, a plot")
    with needs("npeff scan"):
        import matplotlib  # noqa: F401  fail before the long work
    rows = npeff_jax.load_pefs(pefs)
    middle = max(2.0, rows.n_examples**0.5)
    points = n_components or sorted({max(1, round(middle * factor)) for factor in (0.5, 1.0, 2.0, 4.0)})
    found = npeff_jax.scan(
        rows,
        [r for r in points if n_components or r <= rows.n_examples // 2] or points[:1],
        heldout=None if heldout is None else npeff_jax.load_pefs(heldout),
        n_seeds=n_seeds,
        seed=seed,
        progress=progress_of(progress),
    )
    print(repr(found))
    found.figure().savefig(out)


def compare(first: tyro.conf.Positional[Path], second: tyro.conf.Positional[Path], out: MaybePath = None) -> None:
    """Compare two runs: components in both, split or merged components, vanished and new components.

    Args:
        first: a directory written by "npeff explain", or a decomposition.
        second: another one, over the same examples.
        out: also write the table as an .html page.
    """
    from npeff_jax.report import compare_reports, write_comparison

    if out is not None:
        output_file(out)
    runs = [_run(folder) for folder in (first, second)]
    if runs[0]["examples"] != runs[1]["examples"]:
        both = [run["decomposed"] for run in runs]
        if both[0] != both[1]:
            raise ValueError(
                f"{first} and {second} are of different examples; compare runs of the same --examples with the same "
                "--seed and --heldout"
            )
        for run in runs:
            run["coefficients"], run["headlines"] = run["own"], None
    found = compare_reports(
        *(run["coefficients"] for run in runs),
        headlines=tuple(run["headlines"] for run in runs),
        names=(str(first), str(second)),
    )
    print(found)
    if out is not None:
        print(f"look at {write_comparison(out, found).resolve()}")


def _run(folder: Path) -> dict[str, Any]:
    """Load a run directory: coefficients (fitted ones where they exist), examples and component headlines."""
    import npeff_jax

    components = folder / "components"
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is no directory; expected one that npeff explain or npeff decompose wrote")
    whole = components.is_dir()
    found = npeff_jax.load_decomposition(components if whole else folder)
    own = np.asarray(found.coefficients)
    run: dict[str, Any] = {"own": own, "decomposed": found.schema.examples, "coefficients": own, "headlines": None}
    run["examples"] = found.schema.examples
    if whole and (folder / "fit.npz").is_file() and (folder / "heldout").is_dir():
        run["coefficients"] = load_arrays(folder / "fit.npz", npeff_jax.CoefficientFit).coefficients
        run["examples"] = npeff_jax.load_pefs(folder / "heldout").schema.examples
        report = folder / "report.json"
        if report.is_file():
            document = json.loads(report.read_text(encoding="utf-8"))
            run["headlines"] = tuple(str(component["headline"]) for component in document["components"])
    return run
