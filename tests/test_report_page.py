"""The page: one file that asks nothing of a network, says the verdict first, and survives awkward runs."""

import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest
import toys
from click.testing import CliRunner

from planners.cli import main
from planners.report.page import Report, page
from planners.slo import parse_all
from simulator.fleet import Fleet, Pool
from simulator.replay import replay

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
SLOS = parse_all(["ttft:p99<=20ms"])
MANY = 200


class Facts(HTMLParser):
    """What a page holds: its headings, cells, and every address that it would load."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.headings: list[str] = []
        self.cells: list[str] = []
        self.addresses: list[str] = []
        self.inside = ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.inside = tag
        if tag in ("td", "h1", "h2"):
            (self.cells if tag == "td" else self.headings).append("")
        self.addresses += [value for name, value in attributes if name in ("src", "href") and value]

    def handle_endtag(self, tag):
        self.inside = ""

    def handle_data(self, text):
        if self.inside == "td":
            self.cells[-1] += text
        if self.inside in ("h1", "h2"):
            self.headings[-1] += text


def runs() -> dict:
    requests = toys.trace(np.arange(50) / 100, 4, 8)
    too_long = toys.trace([0, 1], 10_000, 8)
    many = Fleet(tuple(Pool(toys.engine(), 1, usd_per_hour=1.0) for _ in range(MANY)))
    return {
        "single pool": replay(requests, toys.fleet()),
        "zero finished": replay(too_long, toys.fleet()),
        "200 pools": replay(requests, many),
    }


@pytest.fixture(scope="module")
def pages():
    return {name: page(Report(run, SLOS, reproduce="plan report")) for name, run in runs().items()}


def test_the_verdict_comes_first(pages):
    verdicts = {name: Facts(text).headings[0] for name, text in pages.items()}
    assert verdicts["single pool"] == "1 x toy keeps ttft:p99<=20ms for 0.00 USD/h"
    assert verdicts["zero finished"] == "1 x toy serves no request of this trace"
    assert verdicts["200 pools"].startswith(f"A fleet of {MANY} pools keeps")


def test_nothing_is_loaded_from_anywhere(pages):
    for text in pages.values():
        assert Facts(text).addresses == []
        assert "default-src 'none'" in text


def test_an_empty_run_says_so_instead_of_drawing(pages):
    assert "No request was served to its end" in pages["zero finished"]
    assert "<canvas" not in pages["zero finished"]
    assert "never" in Facts(pages["zero finished"]).cells


def test_every_pool_has_a_row(pages):
    assert Facts(pages["200 pools"]).cells.count("toy") == MANY


def test_the_page_stays_small(pages):
    assert all(len(text.encode()) < 2_500_000 for text in pages.values())


def test_there_is_a_picture_for_readers_without_scripts(pages):
    assert "<noscript><svg" in pages["single pool"].replace("\n", "")


def test_names_are_escaped():
    from dataclasses import replace

    run = runs()["single pool"]
    named = replace(run, trace=replace(run.trace, name="<script>alert(1)</script>"))
    text = page(Report(named, ()))
    assert "<script>alert(1)" not in text
    assert "&lt;script&gt;alert(1)" in text


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
@pytest.mark.parametrize("name", ["single pool", "zero finished", "200 pools"])
def test_a_browser_draws_it_without_an_error(pages, name, tmp_path):
    import matplotlib.image

    (tmp_path / "page.html").write_text(pages[name], encoding="utf-8")
    command = [
        CHROMIUM,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--enable-logging=stderr",
        "--window-size=1000,1800",
    ]
    command += [f"--user-data-dir={tmp_path / 'profile'}", f"--screenshot={tmp_path / 'page.png'}"]
    done = subprocess.run([*command, f"file://{tmp_path / 'page.html'}"], capture_output=True, text=True, timeout=120)
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line and "[bokeh" not in line]
    assert not console
    pixels = matplotlib.image.imread(tmp_path / "page.png")[..., :3]
    inked = (np.abs(pixels - pixels[0, -1]).max(-1) > 0.2).mean()
    assert inked > 0.005


def test_the_command_writes_a_page(tmp_path):
    (tmp_path / "fleet.yaml").write_text("model: llama-3.1-8b\npools: [{device: h100-sxm}]\nslo: ['ttft:p99<=5s']\n")
    (tmp_path / "trace.csv").write_text("arrival_s,input_tokens,output_tokens\n0,100,10\n1.5,200,20\n")
    files = [str(tmp_path / "fleet.yaml"), "--trace", str(tmp_path / "trace.csv"), "-o", str(tmp_path / "out.html")]
    outcome = CliRunner().invoke(main, ["report", *files])
    assert outcome.exit_code == 0, outcome.output
    text = (tmp_path / "out.html").read_text(encoding="utf-8")
    assert "2 requests arrived, 2 finished" in text
    assert "H100 SXM5 80GB" in text
