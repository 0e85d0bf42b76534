"""Types what a newcomer types and makes docs/images from it: the terminal as SVG, the report page as PNG.

    make images          # or: python tests/make_images.py [--folder FOLDER]

Own data are a CSV file with the columns customer_id, sku and bought_at. Every command must succeed; the seconds from
the first command to the first recommendations are printed and stand in the picture.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import io
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.text import Text

ROOT = Path(__file__).resolve().parents[1]
IMAGES = ROOT / "docs" / "images"
COLUMNS = 100
COMMANDS = (
    "rec-ray init shop --from mydata --user-column customer_id --item-column sku",
    "rec-ray run -C shop",
    "rec-ray recommend -C shop c1",
    "rec-ray similar -C shop sku-3",
    "rec-ray versions -C shop",
)
LINES = {"run": 44, "init": 12}
"""Command -> lines of its output in the picture, the last ones; others are shown completely."""
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def write_events(folder: Path) -> None:
    """Write a CSV file of 600 customers in six groups, each of which buys its own 40 of 240 products."""
    generator = np.random.default_rng(3)
    folder.mkdir(parents=True)
    with (folder / "interactions.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["customer_id", "sku", "bought_at"])
        for user in range(600):
            when = datetime.datetime(2026, 11, 1) + datetime.timedelta(seconds=int(generator.integers(5 * 86_400)))
            for _ in range(generator.integers(5, 25)):
                when += datetime.timedelta(seconds=int(generator.integers(3_600, 86_400)))
                own = generator.random() < 0.8
                item = user % 6 * 40 + int(generator.zipf(1.4)) % 40 if own else int(generator.integers(240))
                writer.writerow([f"c{user}", f"sku-{item}", when.isoformat(" ")])


def run_command(command: str, folder: Path) -> str:
    """Run a command as on a terminal with colours and return its output."""
    words = [sys.executable, "-m", "rec_ray.cli", *shlex.split(command)[1:]]
    environment = {**os.environ, "FORCE_COLOR": "1", "COLUMNS": str(COLUMNS)}
    output = folder / "output.txt"
    with output.open("w", encoding="utf-8") as file:
        done = subprocess.run(words, cwd=folder, env=environment, stdout=file, stderr=subprocess.STDOUT, check=False)
    text = output.read_text(encoding="utf-8").replace(f"{folder}/", "")
    if done.returncode:
        raise SystemExit(f"{command} ended with {done.returncode}:\n{text[-3000:]}")
    return text


def first_run(folder: Path) -> tuple[Console, float]:
    """Run the commands; return the recorded terminal and the seconds until the first recommendations."""
    write_events(folder / "mydata")
    console = Console(record=True, width=COLUMNS, file=io.StringIO())
    started, first = time.perf_counter(), 0.0
    for command in COMMANDS:
        lines = run_command(command, folder).rstrip().splitlines()
        shown = lines[-LINES.get(command.split()[1], len(lines)) :]
        console.print(Text(f"$ {command}", style="bold green"))
        for line in (["..."] if len(shown) < len(lines) else []) + shown:
            console.print(Text.from_ansi(line))
        if command.split()[1] == "recommend":
            first = time.perf_counter() - started
            console.print(Text(f"# {first:.0f} seconds from the first command to these", style="dim"))
    return console, first


def take_screenshot(page: Path, picture: Path) -> None:
    """Take a picture of the top of a page."""
    browser = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if browser is None:
        raise SystemExit(f"a picture of the report needs one of {', '.join(BROWSERS)}")
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--window-size=1280,1100"]
    command = [browser, *options, f"--screenshot={picture}", page.as_uri()]
    subprocess.run(command, check=True, capture_output=True, timeout=120)


def main() -> None:
    """Write docs/images and print one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, help="empty folder to work in; a temporary one if not given")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = (arguments.folder or Path(temporary)).resolve()
        console, seconds = first_run(folder)
        IMAGES.mkdir(exist_ok=True)
        console.save_svg(str(IMAGES / "first-run.svg"), title="from a CSV file to recommendations")
        (page,) = (folder / "shop" / "store" / "two-tower").glob("*/report.html")
        take_screenshot(page, IMAGES / "report.png")
    print(json.dumps({"first_run": {"seconds_to_first_recommendations": round(seconds, 1), "failed_commands": 0}}))


if __name__ == "__main__":
    main()
