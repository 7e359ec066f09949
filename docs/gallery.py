"""The gallery's pictures: what a person sees in the reports of the demos, taken by a Chromium without a window.

    python docs/gallery.py REPORTS            # REPORTS/digits/report.html and so on are there
    python docs/gallery.py REPORTS --make     # runs the commands of those that are not

Writes docs/gallery/NAME.png, which are not kept in the repository: the build makes them (`.ci/run`). Without Chromium,
or without a report, a picture is left out, and the page says by which command to see the same.
"""

import argparse
import pathlib
import shlex
import shutil
import subprocess
import sys

COMMANDS = {
    "digits": "npeff demo digits --out out/digits",
    "tracr": "npeff demo tracr --out out/tracr",
    "shortcut": "npeff demo shortcut --out out/shortcut",
    "files": "npeff demo files --out out/files",
}
"""What makes each report, as the page shows it."""

_NPEFF = "import sys; from npeff_jax.cli import main; sys.exit(main())"

SIZE = "1280,860"
PICTURES = pathlib.Path(__file__).parent / "gallery"


def shown(name: str) -> str:
    """The picture of a report in Markdown, with the command that makes it."""
    command = f"```console\n$ {COMMANDS[name]}\n```"
    if not (PICTURES / f"{name}.png").is_file():
        return f"{command}\n\n(This build was made without the picture: the command writes the report itself.)"
    return f"{command}\n\n![The report of npeff demo {name}](gallery/{name}.png)"


def take(report: pathlib.Path, picture: pathlib.Path, browser: str) -> None:
    """Save the first screen of a report."""
    picture.parent.mkdir(exist_ok=True)
    picture.unlink(missing_ok=True)
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--window-size={SIZE}"]
    subprocess.run(
        [browser, *options, f"--screenshot={picture}", report.resolve().as_uri()],
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        timeout=120,
    )
    if not picture.is_file():
        raise RuntimeError(f"{browser} wrote no picture of {report}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("reports", type=pathlib.Path)
    parser.add_argument("--make", action="store_true", help="the reports that are not there")
    arguments = parser.parse_args()
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        sys.exit("there is no Chromium to take pictures with; install the package chromium")
    for name, command in COMMANDS.items():
        report = arguments.reports / name / "report.html"
        if not report.is_file() and arguments.make:
            words = shlex.split(command)[1:-1]  # to another place than the page says
            subprocess.run([sys.executable, "-c", _NPEFF, *words, str(report.parent)], check=True)
        if report.is_file():
            take(report, PICTURES / f"{name}.png", browser)
            print(f"{name}: {PICTURES / f'{name}.png'}")
        else:
            print(f"{name}: left out, {report} is not there")


if __name__ == "__main__":
    main()
