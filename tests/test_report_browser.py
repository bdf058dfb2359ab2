"""The report in a real browser, from its file: no errors, no requests, no overflow, both schemes, print."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ptuning.report.comparison import comparison_page
from ptuning.report.data import Comparison
from ptuning.report.page import page_of, write_page
from reports import HOSTILE, NUMBER, SEVERAL, SINGLE, entry, report
from test_page_browser import CHROMIUM, contrast

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium on this machine")
sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        made = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield made
        made.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("reports")
    long = tuple("a-label-without-any-place-to-break-" * 3 + str(number) for number in range(3))
    made = {
        "two": page_of(report(SINGLE, 2, 100, temperature=1.5)),
        "html": page_of(report(SINGLE, 3, 60, labels=HOSTILE)),
        "long": page_of(report(SINGLE, 3, 60, labels=long)),
        "many": page_of(report(SINGLE, 150, 600)),
        "several": page_of(report(SEVERAL, 8, 100)),
        "number": page_of(report(NUMBER, rows=60)),
        "compared": comparison_page(
            Comparison(
                title="two",
                what="adapter",
                entries=(entry("one", SINGLE, rows=60), entry("other", SINGLE, rows=60, noise=2.0)),
                metric="accuracy",
            )
        ),
    }
    return {name: write_page(folder / f"{name}.html", text) for name, text in made.items()}


@pytest.mark.parametrize("width", [360, 1200])
def test_every_page_fits_and_is_readable_in_both_schemes(
    browser: Any, pages: dict[str, Path], width: int
) -> None:
    asked: list[str] = []
    problems: list[str] = []
    context = browser.new_context(viewport={"width": width, "height": 780})
    context.set_default_timeout(60_000)
    page = context.new_page()
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: problems.append(message.text))
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("dialog", lambda dialog: (problems.append(dialog.message), dialog.dismiss()))
    for name, file in pages.items():
        page.goto(file.as_uri())
        for scheme, dark in (("light", False), ("dark", True)):
            page.emulate_media(color_scheme=scheme)
            assert page.evaluate("document.documentElement.scrollWidth") <= width, name
            colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
            assert (int(colour.split("(")[1].split(",")[0]) < 128) == dark
            drawn = page.evaluate(
                "[...document.querySelectorAll('svg text')].map((node) => getComputedStyle(node).fill)"
            )
            inks = [sum(map(int, each[4:-1].split(","))) for each in set(drawn)]
            assert all((ink > 384) == dark for ink in inks), f"{name}, {scheme}: {drawn}"
        if width > 1000:
            for scheme in ("light", "dark"):
                page.emulate_media(color_scheme=scheme)
                assert contrast(page) == [], f"{name}, {scheme}"
    context.close()
    assert problems == []
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
    assert len([url for url in asked if url.startswith("file:")]) == len(pages)


def test_it_prints_on_light_paper_and_works_by_keyboard(
    browser: Any, pages: dict[str, Path], tmp_path: Path
) -> None:
    context = browser.new_context(java_script_enabled=True, color_scheme="dark")
    page = context.new_page()
    page.goto(pages["many"].as_uri())
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.innerText") == "Skip to the figures"
    assert page.evaluate("document.activeElement.getBoundingClientRect().left >= 0")
    details = page.locator("details").first
    details.locator("summary").focus()
    page.keyboard.press("Enter")
    assert details.locator("table").is_visible()
    page.emulate_media(media="print")
    ink = page.evaluate("getComputedStyle(document.body).color")
    assert sum(map(int, ink[4:-1].split(","))) < 384
    assert not page.locator("nav").is_visible()
    page.pdf(path=tmp_path / "report.pdf")
    assert (tmp_path / "report.pdf").read_bytes().startswith(b"%PDF")
    context.close()


def test_pictures_have_words_for_those_who_cannot_see_them(browser: Any, pages: dict[str, Path]) -> None:
    page = browser.new_page()
    page.goto(pages["two"].as_uri())
    for chart in page.get_by_role("img").all():
        words = chart.get_attribute("aria-label")
        assert len(words) > 30
        assert any(character.isdigit() for character in words)
    assert (
        page.get_by_role("navigation", name="Sections").get_by_role("link").count()
        == page.locator("h2").count()
    )
    page.close()
