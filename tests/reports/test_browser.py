"""The page in a real browser: plots are drawn, nothing is complained about, light and dark, wide and on a phone."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from PIL import Image

from rec_ray.reports.page.facts import ReportFacts
from rec_ray.reports.page.page import render_report

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.usefixtures("processes"),
    pytest.mark.skipif(BROWSER is None, reason="no chromium is installed; `make test` as root installs it"),
]
PHONE, DESKTOP = 390, 1280
EVIL = "<script>alert(1)</script>"


def open_in_browser(folder: Path, page: str, *options: str) -> subprocess.CompletedProcess[str]:
    """Open a page and return what the browser printed; a script error is a line with CONSOLE on standard error."""
    file = folder / "page.html"
    file.write_text(page, encoding="utf-8")
    command = [
        str(BROWSER),
        *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"),
        *("--hide-scrollbars", "--enable-logging=stderr", f"--user-data-dir={folder / 'profile'}"),
        *options,
        file.as_uri(),
    ]
    environment = {**os.environ, "HOME": str(folder)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return done


def complaints(done: subprocess.CompletedProcess[str]) -> list[str]:
    return [line for line in done.stderr.splitlines() if "CONSOLE" in line]


@pytest.fixture(scope="module")
def page(facts):
    return render_report(ReportFacts.from_json(facts.to_json()))


def test_an_error_would_be_seen(tmp_path):
    done = open_in_browser(tmp_path, "<body><script>missing.call()</script></body>", "--dump-dom")
    assert any("missing is not defined" in line for line in complaints(done))


def test_the_plots_are_drawn_and_no_error_is_logged(page, tmp_path):
    done = open_in_browser(tmp_path, page, "--dump-dom", f"--window-size={DESKTOP},900")
    assert complaints(done) == []
    assert len(re.findall(r"<svg [^>]*class=\"plot\"", done.stdout)) == 10
    assert "<script" not in done.stdout
    assert done.stdout.count("&lt;script&gt;alert(1)&lt;/script&gt;") > 4


def test_on_a_phone_the_page_is_as_wide_as_the_phone_and_plots_have_a_size(page, tmp_path):
    """The page runs no script, so a copy that may is measured."""
    measure = """<script>
      const plots = [...document.querySelectorAll("svg.plot")].map(plot => plot.getBoundingClientRect());
      const marks = [...document.querySelectorAll("#plot-map use")].length;
      document.title = JSON.stringify([document.documentElement.scrollWidth, innerWidth, marks,
        Math.min(...plots.map(p => p.width)), Math.min(...plots.map(p => p.height))]);
    </script></body>"""
    open_page = re.sub(r"<meta http-equiv=[^>]*>", "", page).replace("</body>", measure)
    framed = f'<iframe style="border:0;width:{PHONE}px;height:900px" srcdoc="{{}}"></iframe>'
    quoted = open_page.replace("&", "&amp;").replace('"', "&quot;")
    listen = """<script>
      onload = () => { document.title = document.querySelector("iframe").contentDocument.title }
    </script>"""
    done = open_in_browser(tmp_path, f"<body>{framed.format(quoted)}{listen}</body>", "--dump-dom")
    found = re.search(r"<title>\[([^\]]*)\]</title>", done.stdout)
    assert found, done.stdout[:300] + done.stderr[-2000:]
    wide, inner, marks, narrowest, lowest = (float(value) for value in found[1].split(","))
    assert wide <= inner == PHONE, "nothing sticks out to the side"
    assert marks == 300
    assert narrowest > 250 and lowest > 60


@pytest.mark.parametrize("width", [PHONE, DESKTOP])
def test_light_and_dark_follow_the_reader(page, tmp_path, width):
    brightness = {}
    for name, scheme in (("dark", 0), ("light", 1)):
        picture = tmp_path / f"{name}-{width}.png"
        options = (f"--blink-settings=preferredColorScheme={scheme}", f"--window-size={width},1600")
        done = open_in_browser(tmp_path, page, *options, f"--screenshot={picture}")
        assert complaints(done) == []
        with Image.open(picture) as image:
            assert image.size == (width, 1600)
            grey = image.convert("L")
            brightness[name] = sum(grey.getdata()) / (width * 1600)
            # Text and plots stand out from the paper.
            darkest, brightest = grey.getextrema()
            assert brightest - darkest > 150
    assert brightness["dark"] < 70 < 200 < brightness["light"]
