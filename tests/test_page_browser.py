"""The server's page in a real browser: Debian's chromium, driven by Playwright, on made-up tasks."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from page_fake import HOSTILE, FakeService, fake_logits, served
from ptuning.serving.keys import Keys, make_key
from ptuning.serving.page.views import answer_view
from ptuning.serving.rows import Refusal, RowAnswer
from ptuning.task import Task
from serving_fake import serving

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium on this machine")
sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

TEXT = "The delivery was late, but support was quick."
SHIFTS = """
window.shifted = 0;
new PerformanceObserver((list) => {
  for (const entry of list.getEntries()) if (!entry.hadRecentInput) window.shifted += entry.value;
}).observe({ type: "layout-shift", buffered: true });
"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        made = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield made
        made.close()


@pytest.fixture
def service() -> FakeService:
    return FakeService()


@pytest.fixture
def url(service: FakeService) -> Iterator[str]:
    with serving(service) as running:
        yield running.url


Open = Callable[..., Any]


@pytest.fixture
def opened(browser: Any) -> Iterator[Open]:
    """Open a page; afterwards it must have asked only this host and reported no errors."""
    contexts: list[Any] = []
    asked: set[str] = set()
    problems: list[str] = []
    expected: list[str] = []

    def open_page(address: str, *, expect: tuple[str, ...] = (), **options: Any) -> Any:
        context = browser.new_context(
            viewport=options.pop("viewport", {"width": 1200, "height": 900}), **options
        )
        contexts.append(context)
        context.set_default_timeout(30_000)
        context.route(
            "**/*", lambda route: (asked.add(urlsplit(route.request.url).hostname), route.continue_())
        )
        page = context.new_page()
        page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("dialog", lambda dialog: (problems.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        expected.extend(expect)
        page.add_init_script(SHIFTS)
        page.goto(address)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert asked == {"127.0.0.1"}
    assert [text for text in problems if not any(words in text for words in expected)] == []


def ask(page: Any) -> None:
    page.get_by_role("button", name="Ask").click()


def headline(service: FakeService, name: str, text: str) -> str:
    task = service.tasks.get(name).task
    logits = fake_logits(task, text)
    row = RowAnswer(name=name, digest="", task=task, logits=logits, tokens=1, truncated=False)
    return answer_view(row).headline


def test_choose_a_task_type_and_see_bars(url: str, opened: Open, service: FakeService) -> None:
    page = opened(url)
    search = page.get_by_role("searchbox", name="Search tasks")
    search.fill("senti")
    page.locator("#tasks .found", has_text="1 task").wait_for()
    page.get_by_role("navigation", name="Tasks").get_by_role("link", name="sentiment").click()
    page.get_by_role("heading", name="sentiment", level=1).wait_for()
    assert page.title() == "sentiment · ptuning"
    assert "task=sentiment" in page.url
    assert page.locator("#tasks [aria-current]").inner_text().startswith("sentiment")
    page.get_by_label("Text", exact=True).fill(TEXT)
    ask(page)
    page.locator(".headline").wait_for()
    assert headline(service, "sentiment", TEXT) in page.locator(".headline").inner_text()
    widths = [bar.bounding_box()["width"] for bar in page.locator(".bars .fill").all()]
    track = page.locator(".bars .track").first.bounding_box()["width"]
    shares = [float(each.inner_text().split()[0]) for each in page.locator(".bars .percent").all()]
    assert len(widths) == 3
    assert [100 * width / track for width in widths] == pytest.approx(shares, abs=0.3)
    said = page.get_by_role("status")
    assert said.text_content().startswith(f"sentiment: {headline(service, 'sentiment', TEXT)} ")
    search.fill("star")  # what was chosen stays in the list
    page.locator("#tasks .found", has_text="1 task").wait_for()
    page.get_by_role("link", name="stars").wait_for()
    assert page.locator("#tasks .name").all_inner_texts() == ["sentiment", "stars"]
    assert page.locator("#tasks [aria-current]").inner_text().startswith("sentiment")
    page.go_back()
    page.get_by_role("heading", name="What do all tasks say?").wait_for()


def test_another_task_is_asked_the_same_text(url: str, opened: Open, service: FakeService) -> None:
    page = opened(url)
    page.get_by_label("Text", exact=True).fill(TEXT)
    page.get_by_label("Second text").fill("b")
    ask(page)
    page.locator("#all-answers").get_by_role("link", name="stars").click()
    page.locator(".mark circle").wait_for()
    assert page.locator(".headline").inner_text() == headline(service, "stars", TEXT)
    assert page.evaluate("document.activeElement.id") == "work"  # the link is gone
    page.get_by_role("link", name="emotions").click()
    page.locator(".bars li").nth(4).wait_for()
    assert not page.get_by_label("Second text").is_visible()
    assert page.get_by_label("Text", exact=True).input_value() == TEXT
    page.get_by_role("link", name="paraphrase").click()
    page.get_by_role("heading", name="paraphrase").wait_for()
    page.locator(".bars li").nth(1).wait_for()
    assert [(row.task, row.text_pair) for rows, _ in service.asked[1:] for row in rows] == [
        ("stars", None),
        ("emotions", None),
        ("paraphrase", "b"),
    ]


def test_all_tasks_and_ticked_ones(url: str, opened: Open, service: FakeService) -> None:
    service.tasks.tasks += [served(f"topic-{i:03}", Task(problem_type="regression")) for i in range(200)]
    page = opened(url)
    page.get_by_label("Text", exact=True).fill(TEXT)
    ask(page)
    page.get_by_role("heading", name="205 tasks").wait_for()
    assert page.locator("#all-answers tbody tr").count() == 205
    page.get_by_label("Filter the answers").fill("topic-19")
    assert page.locator("#all-answers tbody tr:visible").count() == 10
    search = page.get_by_role("searchbox", name="Search tasks")
    for name in ("topic-150", "stars"):
        search.fill(name)
        page.get_by_role("checkbox", name=f"Ask {name}").check()
    ask(page)
    page.get_by_role("heading", name="2 tasks").wait_for()
    assert page.locator("#all-answers tbody th").all_inner_texts() == ["stars", "topic-150"]
    search.fill("")
    page.locator("#tasks li").nth(40).wait_for()
    assert page.locator("#tasks input:checked").count() == 2
    page.get_by_role("link", name="Show more").click()
    page.locator("#tasks li").nth(95).wait_for()


def test_paste_rows_and_download(url: str, opened: Open, tmp_path: Path) -> None:
    page = opened(f"{url}/?task=paraphrase&view=rows")
    page.get_by_label("Rows").fill("a cat\ta dog\na film\tthe film, again\n")
    ask(page)
    page.get_by_role("heading", name="2 rows").wait_for()
    assert "the film, again" in page.locator(".table").inner_text()
    sent: list[str] = []
    page.on("request", lambda request: sent.append(request.url))
    with page.expect_download() as download:
        page.get_by_role("button", name="Download CSV").click()
    assert download.value.suggested_filename == "paraphrase.csv"
    assert [each for each in sent if not each.startswith("blob:")] == []  # the page has it already
    download.value.save_as(tmp_path / "got.csv")
    with open(tmp_path / "got.csv", newline="", encoding="utf-8") as stream:
        text = stream.read()
    assert "\r" not in text
    table = list(csv.DictReader(text.splitlines()))
    assert [line["row"] for line in table] == ["1", "2"]
    assert set(table[0]) >= {"label", "p(different)", "p(the same)"}
    assert page.get_by_role("heading", name="2 rows").is_visible()  # the page is still there


def test_drop_a_file(url: str, opened: Open, service: FakeService) -> None:
    page = opened(f"{url}/?task=sentiment&view=rows")
    dropped = page.evaluate_handle(
        """() => {
          const data = new DataTransfer();
          data.items.add(new File(["id,text\\n7,so good\\n8,<b>bad</b>\\n"], "new.csv"));
          return data;
        }"""
    )
    page.dispatch_event("form.drop", "dragover", {"dataTransfer": dropped})
    assert "over" in page.locator("form.drop").get_attribute("class")
    page.dispatch_event("form.drop", "drop", {"dataTransfer": dropped})
    page.get_by_role("heading", name="2 rows").wait_for()
    assert [row.text for row in service.asked[0][0]] == ["so good", "<b>bad</b>"]
    assert "<b>bad</b>" in page.locator(".table").inner_text()
    assert page.locator("#answers-title").inner_text() == "2 rows of new.csv"
    page.locator("#rows").fill("other")  # replaces the file
    ask(page)
    page.get_by_role("heading", name="1 row", exact=True).wait_for()


def test_the_curl_line_is_copied(url: str, opened: Open) -> None:
    page = opened(f"{url}/?task=sentiment", permissions=["clipboard-read", "clipboard-write"])
    page.get_by_label("Text", exact=True).fill("it's")
    page.keyboard.press("Control+Enter")
    page.get_by_role("button", name="Copy").click()
    page.get_by_role("button", name="Copied").wait_for()
    copied = page.evaluate("navigator.clipboard.readText()")
    assert copied == page.locator("#curl").inner_text()
    assert copied.startswith(f"curl -sS {url}/tasks/sentiment ")


def test_colours_follow_the_system_and_the_button(url: str, opened: Open) -> None:
    page = opened(url, color_scheme="light")

    def is_dark() -> bool:
        found = page.evaluate("getComputedStyle(document.body).backgroundColor")
        return bool(int(found.split("(")[1].split(",")[0]) < 128)

    assert not is_dark()
    page.emulate_media(color_scheme="dark")
    assert is_dark()
    button = page.locator("#theme")
    button.click()
    assert (is_dark(), button.get_attribute("aria-label")) == (False, "Colours: light")
    button.click()
    assert (is_dark(), button.get_attribute("aria-label")) == (True, "Colours: dark")
    page.reload()
    page.emulate_media(color_scheme="light")
    assert is_dark()
    button.click()
    assert not is_dark()


def contrast(page: Any) -> list[str]:
    """The texts whose contrast with what is behind them is below 4.5 (WCAG AA)."""
    found: list[str] = page.evaluate(
        """() => {
          const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
          const rgb = (colour) => {
            canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
            return [...canvas.getImageData(0, 0, 1, 1).data];
          };
          const light = ([r, g, b]) => [r, g, b].map((v) => v / 255)
            .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
            .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
          const behind = (node) => {
            for (; node; node = node.parentElement) {
              const colour = rgb(getComputedStyle(node).backgroundColor);
              if (colour[3] === 255) return colour;
            }
          };
          const low = [];
          const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
          while (walker.nextNode()) {
            const node = walker.currentNode.parentElement;
            if (!walker.currentNode.data.trim() || !node.checkVisibility()) continue;
            const [a, b] = [rgb(getComputedStyle(node).color), behind(node)].map(light).sort((x, y) => y - x);
            if ((a + 0.05) / (b + 0.05) < 4.5) low.push(walker.currentNode.data.trim());
          }
          return low;
        }"""
    )
    return found


@pytest.mark.parametrize("width", [360, 1200])
def test_every_view_fits_is_readable_and_does_not_jump(
    width: int, url: str, opened: Open, service: FakeService
) -> None:
    long = "a-name-without-any-place-to-break-" * 3
    labels = (*(f"{long}{number}" for number in range(12)), "x")
    service.tasks.tasks.append(served(long, Task(problem_type="single_label_classification", labels=labels)))
    page = opened(url, viewport={"width": width, "height": 780})

    def look(name: str) -> None:
        wide = page.evaluate("document.documentElement.scrollWidth")
        assert wide <= width, f"{name}: {wide} pixels wide"
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme)
            assert contrast(page) == [], f"{name}, {scheme}"

    look("home")
    page.get_by_label("Text", exact=True).fill(TEXT)
    ask(page)
    page.locator("#all-answers").wait_for()
    look("all")
    page.locator("#all-answers").get_by_role("link", name=long).click()
    page.locator(".bars li").first.wait_for()
    page.get_by_text("5 more labels").click()
    look("one")
    page.get_by_role("link", name="stars").click()
    page.locator(".mark").wait_for()
    look("number")
    page.get_by_role("link", name="Many rows").click()
    page.get_by_label("Rows").fill("\n".join([TEXT, "LONG " + long, "w" * 300]))
    ask(page)
    page.get_by_role("heading", name="3 rows").wait_for()
    look("rows")
    page.get_by_role("link", name="sentiment").click()
    page.get_by_role("heading", name="sentiment").wait_for()
    page.get_by_role("link", name="About").click()
    page.get_by_role("heading", name="Figures").wait_for()
    look("about")
    assert page.evaluate("window.shifted") < 0.05


def test_everything_by_keyboard(url: str, opened: Open) -> None:
    page = opened(url)
    press = page.keyboard.press

    def focused() -> str:
        found = page.evaluate(
            "(document.activeElement.getAttribute('aria-label') || document.activeElement.innerText"
            " || document.activeElement.id).trim()"
        )
        return str(found)

    press("Tab")
    assert focused() == "Skip to the form"
    assert page.evaluate("document.activeElement.getBoundingClientRect().left >= 0")
    press("Enter")
    press("Tab")
    assert page.evaluate("document.activeElement.id") == "text"
    page.get_by_label("Text", exact=True).blur()
    press("/")
    assert page.evaluate("document.activeElement.id") == "q"
    page.keyboard.type("stars")
    page.locator("#tasks .found", has_text="1 task").wait_for()
    press("ArrowDown")
    assert focused().startswith("stars")
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"
    press("ArrowUp")
    assert page.evaluate("document.activeElement.id") == "q"
    press("ArrowDown")
    press("Enter")
    page.get_by_role("heading", name="stars").wait_for()
    seen = []
    for _ in range(30):
        press("Tab")
        seen.append(focused())
        if page.evaluate("document.activeElement.id") == "text":
            break
    assert seen[-4:] == ["One text", "Many rows", "About", "text"]
    page.keyboard.type("so good")
    press("Control+Enter")
    page.locator(".headline").wait_for()
    press("Tab")
    assert focused() == "Ask"
    press("Tab")
    press("Space")
    assert not page.get_by_label("Cut texts").is_checked()


def test_hostile_labels_and_cards_do_not_run(url: str, opened: Open) -> None:
    page = opened(f"{url}/?task=hostile&view=about")
    page.get_by_role("heading", name="Card").wait_for()
    assert page.locator(".card").inner_text().startswith(HOSTILE)
    page.get_by_role("link", name="One text").click()
    page.get_by_label("Text", exact=True).fill(f"</textarea>{HOSTILE}<img src=x onerror=alert(1)>")
    ask(page)
    page.locator(".bars li").nth(2).wait_for()
    assert HOSTILE in page.locator(".bars").inner_text()
    assert "onerror=alert(1)" in page.locator("#curl").inner_text()
    page.get_by_role("link", name="All tasks").click()
    page.get_by_role("heading", name="What do all tasks say?").wait_for()
    ask(page)
    page.locator("#all-answers", has_text="hostile").wait_for()
    assert page.locator("main img, main script").count() == 0


def test_an_inline_script_would_be_stopped(url: str, opened: Open) -> None:
    page = opened(url, expect=("Content Security Policy",))
    page.evaluate(
        """() => {
          const script = document.createElement("script");
          script.textContent = "window.ran = true";
          document.body.append(script);
        }"""
    )
    assert page.evaluate("window.ran") is None


def test_errors_in_place(url: str, opened: Open, service: FakeService) -> None:
    page = opened(
        f"{url}/?task=sentiment", expect=("Failed to load resource", "htmx:sendError", "htmx:afterRequest")
    )
    page.get_by_label("Text", exact=True).fill("a")
    service.refuse = Refusal(status=429, kind="overloaded", message="The queue is full.", retry_after=2)
    ask(page)
    alert = page.get_by_role("alert")
    alert.wait_for()
    assert alert.inner_text().split("\n\n") == [
        "The server is busy",
        "The queue is full.",
        "Try again in 2 seconds.",
    ]
    service.refuse = None
    ask(page)
    page.locator(".headline").wait_for()
    page.route(
        "**/page/one", lambda route: route.fulfill(status=413, content_type="application/json", body="{}")
    )
    ask(page)
    page.get_by_role("heading", name="This is too much at once").wait_for()
    page.route("**/page/one", lambda route: route.abort())
    ask(page)
    page.get_by_role("heading", name="The server cannot be reached").wait_for()
    assert page.get_by_label("Text", exact=True).input_value() == "a"


def test_a_slow_answer_says_that_it_works(url: str, opened: Open, service: FakeService) -> None:
    service.seconds = 0.5
    page = opened(f"{url}/?task=sentiment")
    page.get_by_label("Text", exact=True).fill("a")
    ask(page)
    page.get_by_text("working…").wait_for()
    assert page.get_by_role("button", name="Ask").is_disabled()
    page.locator(".headline").wait_for()
    assert page.get_by_role("button", name="Ask").is_enabled()
    assert not page.get_by_text("working…").is_visible()


def test_without_scripts(url: str, opened: Open, service: FakeService) -> None:
    page = opened(url, java_script_enabled=False)
    assert not page.locator("#theme").is_visible()
    page.get_by_role("searchbox", name="Search tasks").fill("stars")
    page.keyboard.press("Enter")
    page.get_by_role("link", name="stars").click()
    page.get_by_label("Text", exact=True).fill(TEXT)
    ask(page)
    assert page.locator(".headline").inner_text() == headline(service, "stars", TEXT)
    assert page.get_by_label("Text", exact=True).input_value() == TEXT


def test_a_key_opens_its_tasks(opened: Open, service: FakeService, tmp_path: Path) -> None:
    secret = make_key(tmp_path / "keys.toml", "team", tasks=("stars",))
    with serving(service, Keys(file=tmp_path / "keys.toml")) as running:
        page = opened(running.url, expect=("401",))
        page.get_by_label("Key").fill("wrong")
        page.keyboard.press("Enter")
        page.get_by_role("alert").wait_for()
        page.get_by_label("Key").fill(secret)
        page.keyboard.press("Enter")
        page.get_by_role("link", name="stars").wait_for()
        assert page.locator("#tasks li").count() == 1
        kept = page.evaluate("[document.cookie, {...localStorage}, {...sessionStorage}]")
        # htmx notes the path when it has shown the page: a moment later it is that of the page itself.
        assert kept[:2] == ["", {}]
        assert kept[2] in [{"htmx-current-path-for-history": path} for path in ("/", "/page/key")]
        (cookie,) = page.context.cookies()
        assert (cookie["httpOnly"], cookie["sameSite"], cookie["expires"]) == (True, "Strict", -1)
        assert secret not in cookie["value"]
        page.get_by_label("Text", exact=True).fill("a")
        ask(page)
        page.locator("#all-answers").wait_for()
        page.get_by_role("button", name="Forget it").click()
        page.get_by_label("Key").wait_for()
