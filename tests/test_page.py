"""The server's page over HTTP, without a browser: what it shows, asks, refuses and escapes."""

from __future__ import annotations

import csv
import html
import io
import json
import re
import shlex
import socket
import subprocess
import tomllib
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

from page_fake import PART, FakeService, Parsed, fake_logits, page_client, served, text_of
from ptuning import PTuningModel, adapters
from ptuning.cli import main
from ptuning.data import Example
from ptuning.data.tokens import Tokenise
from ptuning.inference.evaluate import logits_of, prepared
from ptuning.serving.app import make_app
from ptuning.serving.keys import Keys
from ptuning.serving.page.curl import LONGEST, rows_curl, task_curl, tasks_curl
from ptuning.serving.page.router import MAX_QUERY
from ptuning.serving.page.tables import detected, read_rows
from ptuning.serving.page.tasks import PAGE, task_list
from ptuning.serving.page.views import Bar, answer_view, number
from ptuning.serving.rows import Refusal, Row, RowAnswer
from ptuning.serving.settings import Settings
from ptuning.task import Task
from serving_fake import serving, wait_for

SINGLE = "single_label_classification"
FOLDER = Path(__file__).parent.parent / "src" / "ptuning" / "serving" / "page"


@pytest.fixture
def service() -> FakeService:
    return FakeService()


@pytest.fixture
def client(service: FakeService) -> Iterator[TestClient]:
    with page_client(service) as made:
        yield made


Ask = Callable[..., Any]


@pytest.fixture
def ask(client: TestClient) -> Ask:
    """Send a form as htmx does, texts cut."""

    def send(view: str, *, files: Any = None, **fields: Any) -> Any:
        return client.post(f"/page/{view}", data={"truncate": "yes", **fields}, files=files, headers=PART)

    return send


# ---------------------------------------------------------------------------------------------- answers


def test_a_label_has_its_probability_and_all_others_theirs(ask: Ask, service: FakeService) -> None:
    found = ask("one", task="sentiment", text="so good")
    assert found.status_code == 200
    task = service.tasks.get("sentiment").task
    answer = task.kind.answer(fake_logits(task, "so good"), task)
    bars = dict(re.findall(r'class="label">([^<]+)</span>.*?class="percent">([^<]+)<', found.text, re.DOTALL))
    assert set(bars) == set(task.labels)
    for label, share in answer.probabilities:
        assert bars[str(label)] == Bar(label="", share=share, chosen=False).percent
    assert Parsed(found.text).text.startswith(f"Answer {answer.label} {bars[str(answer.label)]}")
    chosen = re.findall(r'<li class="chosen"><span class="label">([^<]+)', found.text)
    assert chosen == [answer.label]


def test_labels_above_a_half_are_the_answer_of_a_multi_label_task(ask: Ask, service: FakeService) -> None:
    found = ask("one", task="emotions", text="so good")
    task = service.tasks.get("emotions").task
    answer = task.kind.answer(fake_logits(task, "so good"), task)
    assert isinstance(answer.label, tuple)
    assert len(answer.label) == 2
    chosen = re.findall(r'<li class="chosen"><span class="label">([^<]+)', found.text)
    assert sorted(chosen) == sorted(answer.label)
    assert found.text.count("<line") == len(task.labels)  # the line at 0.5


def test_a_regression_is_a_number_among_the_training_targets(ask: Ask) -> None:
    found = ask("one", task="stars", text="so good")
    value = fake_logits(Task(problem_type="regression", mean=3.2, scale=1.1), "so good")[0]
    words = text_of(found)
    assert words.startswith(f"Answer {value:.2f} 1.00 3.20 5.40")
    assert "%" not in words.split("The same with curl")[0]
    (place,) = re.findall(r'<circle cx="([0-9.]+)%"', found.text)
    assert float(place) == pytest.approx(100 * (value - 1.0) / 4.4, abs=0.01)


def test_tokens_cuts_times_and_version_are_shown(ask: Ask, service: FakeService) -> None:
    words = text_of(ask("one", task="sentiment", text="one two three"))
    digest = service.tasks.get("sentiment").digest
    assert "tokens 5 of 120, not cut tokenise 0.4 ms queue 0.0 ms model 12 ms" in words
    assert f"version {digest}" in words
    assert "120 of 120, the rest was cut" in text_of(ask("one", task="sentiment", text="LONG"))


def test_a_long_text_is_refused_if_the_user_wants_that(client: TestClient) -> None:
    found = client.post("/page/one", data={"task": "sentiment", "text": "LONG"}, headers=PART)
    assert found.status_code == 422
    assert "This cannot be answered The text has 200 tokens; at most 120 fit" in text_of(found)


def test_a_pair_task_gets_both_texts_and_others_only_the_first(ask: Ask, service: FakeService) -> None:
    ask("one", task="paraphrase", text="a\r\nb", text_pair="c")
    ask("one", task="sentiment", text="a", text_pair="c")
    assert [rows for rows, _ in service.asked] == [
        [Row(task="paraphrase", text="a\nb", text_pair="c")],
        [Row(task="sentiment", text="a")],
    ]


def test_half_a_pair_is_not_sent(ask: Ask, service: FakeService) -> None:
    assert "type both" in text_of(ask("one", task="paraphrase", text="a", text_pair=" "))
    assert not service.asked


def test_all_tasks_answer_one_text_in_one_request(ask: Ask, service: FakeService) -> None:
    found = ask("all", text="so good")
    ((rows, _),) = service.asked
    assert [row.task for row in rows] == ["emotions", "hostile", "intents", "sentiment", "stars"]
    words = text_of(found)
    assert "1 task compares two texts and was not asked" in words
    for row in rows:
        task = service.tasks.get(row.task).task
        headline = answer_view(answer(task, fake_logits(task, "so good"))).headline
        assert f"{row.task} {headline}" in words


def test_with_a_second_text_the_pair_tasks_answer_too(ask: Ask, service: FakeService) -> None:
    ask("all", text="a", text_pair="b")
    ((rows, _),) = service.asked
    assert len(rows) == 6
    assert [row.text_pair for row in rows if row.task == "paraphrase"] == ["b"]
    assert {row.text_pair for row in rows if row.task != "paraphrase"} == {None}


def test_ticked_tasks_are_asked_alone(ask: Ask, service: FakeService) -> None:
    ask("all", text="a", only=["stars", "sentiment", "gone"])
    assert [row.task for row in service.asked[0][0]] == ["sentiment", "stars"]
    found = ask("all", text="a", only=["paraphrase"])
    assert found.status_code == 422
    assert "type the second one" in text_of(found)


def test_the_most_certain_answers_come_first_if_asked(ask: Ask, service: FakeService) -> None:
    names = re.findall(r'scope="row"><a [^>]+>([^<]+)', ask("all", text="so good", order="sure").text)
    tasks = [service.tasks.get(name).task for name in names]
    scores = [answer_view(answer(task, fake_logits(task, "so good"))).score for task in tasks]
    assert scores[-1] is None  # the number
    known = [score for score in scores if score is not None]
    assert known == sorted(known, reverse=True)


def test_one_refused_task_does_not_hide_the_others(ask: Ask, service: FakeService) -> None:
    usual = service.tasks.get

    def get(name: str, visible: Any = None) -> Any:
        if name == "stars" and service.asked:
            raise Refusal(status=404, kind="unknown_task", message="it was just removed")
        return usual(name)

    service.tasks.get = get  # type: ignore[method-assign]
    words = text_of(ask("all", text="a"))
    assert "stars It was just removed" in words
    assert "refused 1" in words


def test_more_tasks_than_rows_in_a_request_are_asked_in_parts(ask: Ask, service: FakeService) -> None:
    service.settings = Settings(max_rows=2)
    words = text_of(ask("all", text="a"))
    assert [len(rows) for rows, _ in service.asked] == [2, 2, 1]
    assert "model 37 ms" in words  # three times 12.3


def test_a_blank_text_is_not_sent(ask: Ask, service: FakeService) -> None:
    assert ask("all", text=" \n").status_code == 422
    assert not service.asked


@pytest.mark.parametrize(
    ("share", "words"),
    [(0.0, "0.0 %"), (1.0, "100.0 %"), (0.972, "97.2 %"), (1e-9, "< 0.1 %"), (1 - 1e-9, "> 99.9 %")],
)
def test_probabilities_never_round_to_certainty(share: float, words: str) -> None:
    assert Bar(label="", share=share, chosen=False).percent == words


@pytest.mark.parametrize(
    ("value", "scale", "words"),
    [(3.14159, 1.1, "3.14"), (0.123456, 0.01, "0.1235"), (123456.7, 5e4, "123,457"), (1e20, 1.0, "1e+20")],
)
def test_a_number_has_the_digits_that_its_spread_deserves(value: float, scale: float, words: str) -> None:
    assert number(value, scale) == words


# ------------------------------------------------------------------------------------------------- rows


def downloaded(client: TestClient, page: str) -> str:
    """What the button below a table downloads."""
    (name,) = re.findall(r'name="name" value="([^"]+)"', page)
    (text,) = re.findall(r"<textarea name=\"csv\"[^>]*>\n(.*?)</textarea>", page, re.DOTALL)
    sent = html.unescape(text).replace("\n", "\r\n")  # as browsers do
    assert 'action="/page/download" enctype="multipart/form-data"' in page
    found = client.post("/page/download", files={"csv": (None, sent), "name": (None, name)})
    assert found.status_code == 200
    assert found.headers["content-type"] == "text/csv; charset=utf-8"
    assert found.headers["content-disposition"] == f'attachment; filename="{name}"'
    return str(found.content.decode())


def test_pasted_lines_are_a_table_with_a_download(ask: Ask, client: TestClient) -> None:
    found = ask("rows", task="sentiment", rows="so good\nLONG bad, bad\n", keep="yes")
    words = text_of(found)
    assert "2 rows" in words
    assert "read as one text per line" in words
    table = list(csv.reader(io.StringIO(downloaded(client, found.text))))
    assert table[0] == ["row", "label", "p(negative)", "p(neutral)", "p(positive)", "text"]
    assert [line[-1] for line in table[1:]] == ["so good", "LONG bad, bad"]


@pytest.mark.parametrize("keep", ["yes", "no"])
def test_the_download_is_what_predict_writes(
    keep: str,
    ask: Ask,
    client: TestClient,
    service: FakeService,
    tiny_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = PTuningModel.from_backbone(
        str(tiny_folder), task=Task(problem_type=SINGLE, labels=("=cmd()", "né", 'a "b", c'))
    ).eval()
    model.save_pretrained(tmp_path / "task")
    content = 'id;text\n=1+1;"Great ""food"", bad; film"\n2;"two\nlines"\n3;plain good\n'
    (tmp_path / "rows.csv").write_text(content, encoding="utf-8")
    argv = ["predict", str(tmp_path / "task"), str(tmp_path / "rows.csv"), "--format", "csv"]
    argv += ["--precision", "fp32", "--device", "cpu"] + (["--keep", "*"] if keep == "yes" else [])
    assert main(argv) == 0
    expected = capsys.readouterr().out

    def logits(text: str) -> tuple[float, ...]:
        tokens = Tokenise.for_model(model, "truncate")([Example(row=1, text=text)])
        (found,) = logits_of(model, tokens, prompt=prepared(model))
        return tuple(found.tolist())

    task = adapters.load(tmp_path / "task").task
    service.tasks.tasks.append(served("real", task))
    service.logits = lambda task, text: logits(text)
    files = {"file": ("rows.csv", content.encode(), "text/csv")}
    found = ask("rows", task="real", keep=keep, files=files)
    assert found.status_code == 200, text_of(found)
    assert downloaded(client, found.text) == expected
    assert ("'=1+1" in expected) is (keep == "yes")


@pytest.mark.parametrize(
    ("content", "pair", "form"),
    [
        ("good\nbad, but long\n", False, "text"),
        ("good, bad", False, "text"),
        ("text,id\ngood,1\n", False, "csv"),
        ("good\tbad\nso\tso\n", True, "tsv"),
        ("sentence1,sentence2\na,b\n", True, "csv"),
        ("a,b\nc,d\n", True, "csv"),
        ("\ufefftext;id", False, "text"),
        ('{"text": "a"}\n', False, "jsonl"),
        ('[{"text": "a"}]', False, "jsonl"),
        ("[sic] they said\n", False, "text"),
        ("", False, "text"),
    ],
)
def test_the_format_of_pasted_rows_is_detected(content: str, pair: bool, form: str) -> None:
    assert detected(content.encode(), pair=pair) == form


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", "text,text_b\nfirst,second\n"),
        ("a.TSV", "text\ttext_b\nfirst\tsecond\n"),
        ("a.jsonl", '{"text": "first", "text_b": "second"}\n'),
        ("a.json", '[{"text": "first", "text_b": "second"}]'),
    ],
)
def test_files_of_each_format_are_read(name: str, content: str, ask: Ask, service: FakeService) -> None:
    found = ask("rows", task="paraphrase", files={"file": (name, content.encode(), "")})
    assert found.status_code == 200, text_of(found)
    assert service.asked[0][0] == [Row(task="paraphrase", text="first", text_pair="second")]


@pytest.mark.parametrize(
    ("content", "pairs"),
    [
        ("a cat\ta dog\na film\tfilms\n", [("a cat", "a dog"), ("a film", "films")]),
        ("a,b\nc,d\n", [("a", "b"), ("c", "d")]),
        ("question1\tquestion2\na cat\ta dog\n", [("a cat", "a dog")]),
    ],
)
def test_two_columns_of_a_spreadsheet_are_pairs(content: str, pairs: list[tuple[str, str]]) -> None:
    found = read_rows(content.encode(), pair=True, limit=9)
    assert [(each.text, each.text_b) for each in found.examples] == pairs


def test_the_first_row_can_be_data_or_names(ask: Ask, service: FakeService) -> None:
    content = "left,right\na,b\n"
    for header in ("first", "none", "rubbish"):
        ask("rows", task="paraphrase", rows=content, header=header, format="csv", column="1", column_pair="2")
    assert [len(rows) for rows, _ in service.asked] == [2, 2]
    ask("rows", task="paraphrase", rows=content, header="first", column="left", column_pair="right")
    assert service.asked[-1][0] == [Row(task="paraphrase", text="a", text_pair="b")]


def test_columns_can_be_named(ask: Ask, service: FakeService) -> None:
    content = "left,right,third\nsome words here,more words here,and again words\n"
    found = ask("rows", task="paraphrase", rows=content, format="csv")
    assert found.status_code == 422
    words = text_of(found)
    assert "These rows cannot be read" in words
    assert "--data" not in words
    ask("rows", task="paraphrase", rows=content, format="csv", column="third", column_pair="left")
    assert service.asked[0][0] == [
        Row(task="paraphrase", text="and again words", text_pair="some words here")
    ]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("x.csv", b"\x1f\x8b\x08\x00 rest", "compressed"),
        ("x.xlsx", b"PK\x03\x04 rest", "a spreadsheet"),
        ("x.csv", b"text\n\xff\xfe\x00 bad", "x.csv"),
        ("x.jsonl", b'{"text": ', "x.jsonl"),
        ("x.csv", b"foo,bar\n1,2\n", "which column is"),
        ("x.csv", b"text\n", "no rows"),
        ("x.csv", b'text\n" "\n', "no row can be used"),
    ],
)
def test_bad_files_are_refused_in_words(name: str, content: bytes, words: str, ask: Ask) -> None:
    found = ask("rows", task="sentiment", files={"file": (name, content, "")})
    assert found.status_code == 422
    assert words in text_of(found)
    assert "Traceback" not in found.text


def test_bad_rows_are_left_out_and_named(ask: Ask) -> None:
    words = text_of(ask("rows", task="sentiment", rows='{"text": "a"}\n{"text": 7}\n{"text": "b"}\n'))
    assert "2 rows" in words
    assert "left out 1 of 3 rows" in words


def test_more_rows_than_the_limit_are_refused_before_they_are_asked(ask: Ask, service: FakeService) -> None:
    service.settings = Settings(max_rows=3)
    assert ask("rows", task="sentiment", rows="a\nb\nc").status_code == 200
    found = ask("rows", task="sentiment", rows="a\nb\nc\nd")
    assert found.status_code == 422
    assert "more than 3 rows" in text_of(found)
    assert len(service.asked) == 1


def test_the_page_shows_the_first_rows_and_the_download_has_all(ask: Ask, client: TestClient) -> None:
    found = ask("rows", task="sentiment", rows="\n".join(f"text {number}" for number in range(300)))
    assert "The first 200 of 300 rows" in text_of(found)
    assert len(downloaded(client, found.text).splitlines()) == 301


def test_a_table_of_rows_that_were_taken_can_be_downloaded(ask: Ask, client: TestClient) -> None:
    """Three bytes for each character; percent-encoded they would be nine, above the limit of a body."""
    found = ask("rows", task="sentiment", files={"file": ("a.txt", ("\u6f22" * 300 + "\n") * 1000, "")})
    assert found.status_code == 200
    assert len(downloaded(client, found.text).splitlines()) == 1001


def test_refused_rows_are_shown_and_not_downloaded(ask: Ask, client: TestClient) -> None:
    found = ask("rows", task="sentiment", rows="a\nLONG\n", truncate="no")
    words = text_of(found)
    assert "at most 120 fit" in words
    assert "Refused rows are not in the download" in words
    assert len(downloaded(client, found.text).splitlines()) == 2


def test_totals_of_many_rows(ask: Ask) -> None:
    words = text_of(ask("rows", task="stars", rows="a\nbb\n"))
    values = [
        fake_logits(Task(problem_type="regression", mean=3.2, scale=1.1), text)[0] for text in ("a", "bb")
    ]
    assert f"Mean {sum(values) / 2:.2f}" in words


def test_nothing_to_read(ask: Ask) -> None:
    assert "Paste rows, or choose a file first." in text_of(ask("rows", task="sentiment", rows=" "))


def test_the_name_of_a_download_cannot_add_headers(client: TestClient) -> None:
    found = client.post("/page/download", data={"csv": "a", "name": 'x"\r\nEvil: 1; /../ü.csv'})
    assert found.headers["content-disposition"] == 'attachment; filename="x__Evil_ 1_ _..__.csv"'
    assert "evil" not in found.headers
    assert found.headers["x-content-type-options"] == "nosniff"


# ------------------------------------------------------------------------------------------------- curl


def words_of(line: str) -> list[str]:
    """The arguments that bash gives to curl."""
    script = "curl() { printf '%s\\0' \"$@\"; }; " + line
    ran = subprocess.run(["bash", "-c", script], capture_output=True, check=True, env={"PTUNING_KEY": "k 1"})
    return ran.stdout.decode().split("\0")[:-1]


NASTY = 'it\'s "$HOME" `id` $(id) \\ !x\n@file é\u202e'


def test_the_curl_line_says_the_same_in_a_shell() -> None:
    line = task_curl("http://h:1", Row(task="a", text=NASTY), truncate=True, key=True)
    assert "\n" not in line
    url, _, kind, _, key, flag, body = words_of(line)[1:]
    assert url == "http://h:1/tasks/a"
    assert kind == "Content-Type: application/json"
    assert key == "Authorization: Bearer k 1"
    assert flag == "--data-binary"
    assert json.loads(body) == {"inputs": NASTY}


def test_the_curl_line_of_a_pair_and_of_rows() -> None:
    pair = Row(task="a.b", text="x", text_pair="y")
    body = words_of(task_curl("http://h", pair, truncate=True, key=False))[-1]
    assert json.loads(body) == {"inputs": {"text": "x", "text_pair": "y"}}
    words = words_of(rows_curl("http://h", [pair, Row(task="c", text="z")], truncate=False, key=False))
    assert words[1] == "http://h/v1/rows"
    assert json.loads(words[-1]) == {
        "rows": [{"task": "a.b", "text": "x", "text_pair": "y"}, {"task": "c", "text": "z"}],
        "truncate": False,
    }
    # a task's own address has no such option
    assert words_of(task_curl("http://h", pair, truncate=False, key=False))[1] == "http://h/v1/rows"


@settings(max_examples=100, deadline=None)
@given(st.text(), st.text())
def test_any_text_survives_the_quoting(task: str, text: str) -> None:
    words = shlex.split(task_curl("http://h", Row(task=task, text=text), truncate=True, key=False))
    assert json.loads(words[-1]) == {"inputs": text}
    assert not set(words[2]) & set("[]{} '\"$&")


def test_the_curl_line_of_all_tasks_is_short() -> None:
    rows = [Row(task=f"task-{number}", text="a") for number in range(1000)]
    line = tasks_curl("http://h", rows, every=True, truncate=True, key=False)
    assert json.loads(words_of(line)[-1]) == {"text": "a", "tasks": "*"}


def test_rows_that_do_not_fit_a_command_line_are_in_a_file(ask: Ask) -> None:
    line = rows_curl("http://h", [Row(task="a", text="x" * LONGEST)], truncate=True, key=False)
    assert line.endswith("--data-binary @rows.json")
    found = ask("rows", task="sentiment", rows="x" * LONGEST)
    assert "write {&#34;rows&#34;" in found.text or '{"rows": [' in html.unescape(found.text)


def test_the_page_shows_the_line_for_its_own_address(ask: Ask) -> None:
    words = text_of(ask("one", task="sentiment", text="it's"))
    assert "curl -sS http://testserver/tasks/sentiment -H 'Content-Type: application/json'" in words
    assert "$PTUNING_KEY" not in words


def test_the_curl_lines_get_the_same_answers(ask: Ask, client: TestClient, service: FakeService) -> None:
    def sent(page: str) -> Any:
        (line,) = re.findall(r'<pre id="curl"[^>]*><code>(.*?)</code>', page, re.DOTALL)
        words = words_of(html.unescape(line))
        assert words[1].startswith("http://testserver/")
        found = client.post(words[1], content=words[-1], headers=dict([words[3].split(": ")]))
        assert found.status_code == 200, found.text
        return found.json()

    one = ask("one", task="sentiment", text=NASTY)
    ((best, *_),) = sent(one.text)
    assert text_of(one).startswith(
        f"Answer {best['label']} {Bar(label='', share=best['score'], chosen=True).percent}"
    )
    ((number,),) = sent(ask("one", task="stars", text="a").text)
    assert number["score"] == pytest.approx(
        fake_logits(Task(problem_type="regression", mean=3.2, scale=1.1), "a")[0]
    )
    pages = [
        ask("all", text="a"),
        ask("all", text="a", only=["stars", "sentiment"], truncate="no"),
        ask("one", task="paraphrase", text="a", text_pair="b", truncate="no"),
        ask("all", text="a", text_pair="b"),
        ask("rows", task="sentiment", rows="a\nb\nc"),
    ]
    asked = [rows for rows, _ in service.asked[-len(pages) :]]
    for page in pages:
        service.asked.clear()
        answers = sent(page.text)["rows"]
        assert answers
        assert all("error" not in each for each in answers)
        assert service.asked[0][0] == asked.pop(0)


# ------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("refusal", "words"),
    [
        (
            Refusal(status=429, kind="overloaded", message="m", retry_after=2.2),
            "The server is busy M Try again in 3 seconds.",
        ),
        (Refusal(status=503, kind="draining", message="m"), "The server cannot answer now M"),
        (Refusal(status=504, kind="timeout", message="m"), "This took too long M"),
        (Refusal(status=413, kind="too_many_rows", message="m"), "This is too much at once M"),
        (Refusal(status=418, kind="?", message="m"), "This did not work M"),
    ],
)
def test_refusals_are_shown_in_place_in_plain_words(
    refusal: Refusal, words: str, ask: Ask, service: FakeService
) -> None:
    service.refuse = refusal
    for view, fields in (("one", {"text": "a"}), ("all", {"text": "a"}), ("rows", {"rows": "a"})):
        found = ask(view, task="sentiment", **fields)
        assert found.status_code == refusal.status
        assert words in text_of(found)
        assert 'role="alert"' in found.text
        assert found.headers.get("retry-after") == ("3" if refusal.retry_after else None)


def test_an_unknown_task(ask: Ask, client: TestClient) -> None:
    for found in (ask("one", task="sentimnt", text="a"), client.get("/?task=sentimnt")):
        assert found.status_code == 404
        assert "did you mean 'sentiment'?" in text_of(found)


def test_a_form_that_cannot_be_parsed(client: TestClient) -> None:
    headers = {**PART, "content-type": "multipart/form-data; charset=x"}
    found = client.post("/page/one", content=b"rubbish", headers=headers)
    assert found.status_code == 400
    assert "This form cannot be read" in text_of(found)


def test_a_body_that_is_too_large_is_refused_in_words(ask: Ask, service: FakeService) -> None:
    found = ask("rows", task="sentiment", rows="x" * service.settings.max_body_bytes)
    assert found.status_code == 413
    assert "This is too much at once" in text_of(found)
    assert not service.asked


def test_a_browser_that_leaves_takes_its_rows_along(service: FakeService) -> None:
    service.seconds = 60.0
    with serving(service) as running, socket.create_connection(("127.0.0.1", running.port)) as browser:
        body = b"task=sentiment&text=a"
        head = "POST /page/one HTTP/1.1\r\nHost: h\r\nContent-Type: application/x-www-form-urlencoded\r\n"
        browser.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        wait_for(lambda: bool(service.asked))
        browser.close()
        wait_for(lambda: service.cancelled == 1)


def test_the_log_says_what_the_page_was_asked(ask: Ask, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="ptuning.access"):
        found = ask("one", task="sentiment", text="so good")
    (line,) = (json.loads(record.message) for record in caplog.records)
    assert (line["route"], line["task"], line["rows"], line["tokens"]) == ("/page/one", "sentiment", 1, 4)
    assert "good" not in caplog.text
    assert found.headers["server-timing"].startswith("tokenise;dur=0.4")


# --------------------------------------------------------------------------------- the list, the task


def test_the_front_page_lists_all_tasks(client: TestClient) -> None:
    words = text_of(client.get("/"))
    assert "All tasks 6" in words
    for line in ("emotions any of 5 labels", "stars a number", "paraphrase 2 labels · pairs"):
        assert line in words


def many_tasks() -> list[Any]:
    return [
        served(f"topic-{number:04}", Task(problem_type=SINGLE, labels=("no", f"refund {number}")))
        for number in range(1000)
    ]


def test_a_thousand_tasks_are_shown_in_parts(client: TestClient, service: FakeService) -> None:
    service.tasks.tasks = many_tasks()
    seen: list[str] = []
    found = client.get("/")
    while True:
        names = re.findall(r'class="name">([^<]+)', found.text)
        assert len(names) == PAGE
        seen += names
        more = re.findall(r'class="more"[^>]*hx-get="([^"]+)"', found.text)
        if not more:
            break
        found = client.get(html.unescape(more[0]), headers=PART)
    assert seen == [task.name for task in service.tasks.tasks]


def test_the_search_finds_names_first_then_labels() -> None:
    tasks = [*many_tasks(), served("refunds", Task(problem_type=SINGLE, labels=("no", "yes")))]
    found = task_list(tasks, "REFUND")
    assert found.found == 1001
    assert [item.name for item in found.items[:2]] == ["refunds", "topic-0000"]
    assert [item.name for item in task_list(tasks, "topic refund 17").items][:1] == ["topic-0017"]
    assert task_list(tasks, "nowhere").items == []


def test_what_was_chosen_stays_in_the_list() -> None:
    found = task_list(many_tasks(), "0003", current="topic-0900", ticked=["topic-0700", "topic-0003"])
    assert [(item.name, item.ticked) for item in found.items] == [
        ("topic-0700", True),
        ("topic-0900", False),
        ("topic-0003", True),
    ]
    assert found.found == 1


def test_an_odd_search(client: TestClient) -> None:
    assert client.get("/page/tasks", params={"q": "x" * 9999, "start": "-1"}).status_code == 200
    assert client.get("/page/tasks", params={"start": "²"}).status_code == 200
    assert "x" * (MAX_QUERY + 1) not in client.get("/", params={"q": "x" * 9999}).text


def test_figures_are_next_to_the_baseline(client: TestClient) -> None:
    words = text_of(client.get("/?task=sentiment&view=about"))
    assert "Metric test validation baseline" in words
    assert "loss lower is better 0.2310 0.2440 0.6930" in words
    assert "accuracy 0.9120 0.9030 0.5100" in words
    assert "The baseline is a constant answer: always positive." in words
    assert "Source team/sentiment" in words
    assert "Labels 3 negative neutral positive" in words


def test_folders_of_the_server_are_not_shown(client: TestClient) -> None:
    assert "/adapters" not in client.get("/?task=stars&view=about").text


def test_refused_adapters_are_named(client: TestClient, service: FakeService) -> None:
    service.tasks.failures = {"broken": "the digest does not match"}
    words = text_of(client.get("/"))
    assert "1 refused adapter" in words
    assert "the digest does not match" in words


# -------------------------------------------------------------------------------------- without scripts


def test_forms_work_without_scripts(client: TestClient) -> None:
    found = client.post("/page/one", data={"task": "sentiment", "text": "\r\nso good", "truncate": "yes"})
    assert found.text.startswith("<!doctype html>")
    assert '<textarea id="text" name="text" rows="4" required hx-preserve' in found.text
    assert ">\n\nso good</textarea>" in found.text  # the first line break of a textarea is not part of it
    assert "The same with curl" in found.text
    found = client.post("/page/all", data={"text": "a", "only": "stars"})
    assert re.search(r'value="stars"[^>]*checked', found.text)
    assert not re.search(r'name="truncate"[^>]*checked', found.text)


def test_an_address_of_a_form_leads_back(client: TestClient) -> None:
    found = client.get("/page/one")
    assert (found.status_code, found.headers["location"]) == (303, "/")


def test_parts_and_pages(client: TestClient) -> None:
    assert client.get("/?task=stars", headers=PART).text.lstrip().startswith("<title>stars · ptuning</title>")
    restored = {**PART, "HX-History-Restore-Request": "true"}
    assert client.get("/?task=stars", headers=restored).text.startswith("<!doctype html>")


def test_all_addresses_are_below_the_path_of_a_proxy(service: FakeService) -> None:
    with TestClient(make_app(service, Keys()), root_path="/tuning") as client:
        found = client.get("/tuning/?task=sentiment")
        addresses = [
            value
            for _, attrs in Parsed(found.text).tags
            for name, value in attrs.items()
            if name in ("src", "href", "action", "hx-get", "hx-post") and value and not value.startswith("#")
        ]
        assert len(addresses) > 10
        assert [value for value in addresses if not value.startswith("/tuning/")] == []


# ------------------------------------------------------------------------------------------ static files


def test_static_files_are_kept_by_browsers(client: TestClient) -> None:
    for name, kind in (
        ("htmx.min.js", "text/javascript"),
        ("page.css", "text/css"),
        ("icon.svg", "image/svg"),
    ):
        found = client.get(f"/page/static/{name}")
        assert found.headers["content-type"].startswith(kind)
        assert "immutable" in found.headers["cache-control"]
        assert f"/page/static/{name}?v={sha256(found.content).hexdigest()[:12]}" in client.get("/").text
    assert client.get("/page/static/README.md").status_code == 404
    assert client.get("/page/static/..%2Frouter.py").status_code in (303, 404)


def test_htmx_is_the_recorded_file() -> None:
    digest = sha256((FOLDER / "static" / "htmx.min.js").read_bytes()).hexdigest()
    notes = (FOLDER / "static" / "README.md").read_text()
    assert digest in notes
    (version,) = re.findall(r"htmx\]\([^)]*\) (\d+\.\d+\.\d+)", notes)
    assert f'version:"{version}"' in (FOLDER / "static" / "htmx.min.js").read_text()
    assert (FOLDER / "static" / "htmx.LICENSE").read_text().startswith("Zero-Clause BSD")


def test_the_wheel_has_every_file_of_the_page() -> None:
    project = tomllib.loads((FOLDER.parents[3] / "pyproject.toml").read_text())
    source = FOLDER.parents[1]
    patterns = project["tool"]["setuptools"]["package-data"]["ptuning"]
    shipped = {file for pattern in patterns for file in source.glob(pattern)}
    needed = {file for name in ("static", "templates") for file in (FOLDER / name).iterdir()}
    assert needed - shipped == set()


# ------------------------------------------------------------------------------------------------ helpers


def answer(task: Task, logits: tuple[float, ...]) -> RowAnswer:
    return RowAnswer(name="a", digest="d", task=task, logits=logits, tokens=1, truncated=False)
