"""The documentation says what the program does: tables, examples, commands, options and links.

Two tables are written by this file; after a change of the program, renew them with::

    python tests/test_docs.py --write
"""

from __future__ import annotations

import ast
import inspect
import json
import re
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = [
    page
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.glob("*.md")))
    if page.exists()
]
END = "<!-- end of generated -->"
RENEW = "the page is older than the program; renew it with: python tests/test_docs.py --write"

pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())


# --------------------------------------------------------------------------- what is written here


def table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    cells = [header, ("---",) * len(header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in cells)


def options(_: str) -> str:
    """Every option of ``ptuning train``, a table a section."""
    from ptuning.cli.options import leaves
    from ptuning.training.config import TrainConfig

    sections: dict[str, list[tuple[str, ...]]] = {
        "run": [],
        "data": [],
        "prompt": [],
        "fit": [],
        "search": [],
        "engine": [],
    }
    for option in leaves(TrainConfig):
        section = option.key.partition(".")[0] if "." in option.key else "run"
        sections[section].append((f"`{option.key}`", option.default or "–", option.help))
    parts = [
        f"### {name}\n\n" + table(("option", "default", "meaning"), rows) for name, rows in sections.items()
    ]
    return "\n\n".join(parts)


def prompt_choices(_: str) -> str:
    """The options that each choice of a prompt takes, with that choice's own default."""
    from ptuning.cli.options import leaves
    from ptuning.model import config

    choices: tuple[tuple[str, str, type], ...] = (
        ("", "`depth: deep`", config.DeepPrompt),
        ("encoder.", "`depth: deep`, `encoder.kind: embedding`", config.EmbeddingEncoder),
        ("encoder.", "`depth: deep`, `encoder.kind: mlp`", config.DeepMLPEncoder),
        ("", "`depth: input`", config.InputPrompt),
        ("encoder.", "`depth: input`, `encoder.kind: embedding`", config.EmbeddingEncoder),
        ("encoder.", "`depth: input`, `encoder.kind: mlp`", config.MLPEncoder),
        ("encoder.", "`depth: input`, `encoder.kind: lstm`", config.LSTMEncoder),
        ("encoder.", "`depth: input`, `encoder.kind: residual`", config.ResidualEncoder),
        ("head.", "`head.kind: cloze`", config.ClozeHead),
        ("init.", "`depth: input`, `init.kind: random`", config.RandomInit),
        ("init.", "`depth: input`, `init.kind: vocabulary`", config.VocabularyInit),
        ("init.", "`depth: input`, `init.kind: text`", config.TextInit),
    )
    rows = []
    for prefix, choice, kind in choices:
        own = [
            option for option in leaves(kind) if option.key not in ("depth", "kind") and "." not in option.key
        ]
        rows += [(choice, f"`prompt.{prefix}{each.key}`", each.default or "–", each.help) for each in own]
        if not own:
            rows.append((choice, "", "", "has no options"))
    return table(("choice", "option", "default", "meaning"), rows)


def backbones(now: str) -> str:
    """A row an architecture. The last column is written by hand and kept."""
    from transformers import AutoConfig, AutoModelForSequenceClassification

    from ptuning.model import ARCHITECTURES

    notes = {row[1].strip("`"): row[-1] for row in cells(now)}
    how = {
        "interface": "attention interface",
        "context": "attention interface",
        "cache": "key/value cache",
        "replaced": "own attention",
    }
    rows = []
    for kind, facts in ARCHITECTURES.items():
        config = AutoConfig.for_model(kind)
        known: Any = AutoModelForSequenceClassification._model_mapping
        name = known[type(config)].__name__.removesuffix("ForSequenceClassification")
        limit = "`max_position_embeddings`" if hasattr(config, "max_position_embeddings") else "none"
        if facts.after_padding:
            limit += " − `pad_token_id` − 1"
        rows.append(
            (
                name,
                f"`{kind}`",
                "yes",
                how[facts.attention],
                "no" if facts.attention == "cache" else "yes",
                "yes" if facts.takes_positions else "no",
                "last" if facts.causal else "its own",
                limit,
                notes.get(kind, ""),
            )
        )
    header = (
        "architecture",
        "`model_type`",
        "input",
        "deep, via",
        "`first_layer` > 0",
        "`position_offset`",
    )
    return table((*header, "pooled token", "position limit", "notes"), rows)


def unsupported(now: str) -> str:
    """Every other class for sequence classification that the installed transformers has, by the reason that
    is written by hand; a new class has none, which a test refuses.
    """
    from transformers.models.auto import modeling_auto

    from ptuning.model import ARCHITECTURES

    known = modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES
    ours = {known[kind] for kind in ARCHITECTURES}
    reasons = {kind: row[0] for row in cells(now) for kind in spans(row[1])}
    found: dict[str, list[str]] = {row[0]: [] for row in cells(now)}
    for kind in sorted(kind for kind, name in known.items() if name not in ours):
        reason = reasons.get(kind, "")
        found.setdefault(reason, []).append(f"`{kind}`")
    return table(
        ("why not", "`model_type`"), [(reason, ", ".join(kinds)) for reason, kinds in found.items() if kinds]
    )


def test_every_unsupported_architecture_has_a_reason() -> None:
    """If this fails, transformers has a new class: give it a row of ``ARCHITECTURES``, or a reason."""
    _, inside, _ = split((DOCS / "backbones.md").read_text(encoding="utf-8"), "unsupported")
    assert [row for row in cells(unsupported(inside)) if not row[0]] == []


def quality(part: str, results: str = "RESULTS") -> Callable[[str], str]:
    """What the quality study has found so far: docs/recipes.md's ``tables`` and ``travelled``, or README's
    ``short`` one.
    """

    def make(_: str) -> str:
        sys.path.append(str(ROOT / "benchmarks"))
        records = import_module("quality.records")
        rendered: str = getattr(import_module("quality.tables"), part)(
            table, records.read(getattr(records, results))
        )
        return rendered

    return make


def trials(_: str) -> str:
    """What was tried for the default recipe, a table a data set."""
    sys.path.append(str(ROOT / "benchmarks"))
    results = import_module("recipe_data").TRIALS
    rendered: str = import_module("recipe_tables").tables(
        table, import_module("quality.records").read(results)
    )
    return rendered


def runs(_: str) -> str:
    """What the default recipe was tried with, by ptuning itself."""
    sys.path.append(str(ROOT / "benchmarks"))
    results = import_module("recipe_runs").RESULTS
    rendered: str = import_module("recipe_tables").runs(table, import_module("quality.records").read(results))
    return rendered


def performance(_: str) -> str:
    """What the benchmarks have measured so far, from the committed results."""
    sys.path.append(str(ROOT / "benchmarks"))
    tables: Callable[..., str] = import_module("report").tables
    return tables(table)


def cloze(_: str) -> str:
    """A cloze head next to others, with few rows."""
    sys.path.append(str(ROOT / "benchmarks"))
    results = import_module("cloze").RESULTS
    rendered: str = import_module("cloze").table(table, import_module("quality.records").read(results))
    return rendered


def guide(_: str) -> str:
    """The guide's recipe, with PEFT and with ptuning."""
    sys.path.append(str(ROOT / "benchmarks"))
    results = import_module("guide").RESULTS
    rendered: str = import_module("guide").table(table, import_module("quality.records").read(results))
    return rendered


def input_prompts(_: str) -> str:
    """Input prompts by encoder and placement, the quality study's among them."""
    sys.path.append(str(ROOT / "benchmarks"))
    module, read = import_module("input_prompts"), import_module("quality.records").read
    rendered: str = module.table(table, [*module.of_study(read()), *read(module.RESULTS)])
    return rendered


def words(_: str) -> str:
    """What can be read off a decoder, by the words behind the text."""
    sys.path.append(str(ROOT / "benchmarks"))
    results = import_module("words").RESULTS
    rendered: str = import_module("words").table(table, import_module("quality.records").read(results))
    return rendered


GENERATED: Mapping[tuple[str, str], Callable[[str], str]] = {
    ("configuration.md", "options"): options,
    ("configuration.md", "prompt choices"): prompt_choices,
    ("backbones.md", "backbones"): backbones,
    ("backbones.md", "unsupported"): unsupported,
    ("../README.md", "measured"): quality("short"),
    ("recipes.md", "quality"): quality("tables"),
    ("recipes.md", "travelled"): quality("travelled", "BACKBONES"),
    ("recipes.md", "words"): words,
    ("recipes.md", "guide"): guide,
    ("recipes.md", "input prompts"): input_prompts,
    ("trials.md", "runs"): runs,
    ("trials.md", "trials"): trials,
    ("performance.md", "performance"): performance,
    ("cloze.md", "few rows"): cloze,
}


def split(text: str, name: str) -> tuple[str, str, str]:
    """A page before, in and after a generated block."""
    begin = f"<!-- generated: {name} -->"
    before, _, rest = text.partition(begin)
    assert rest, f"the page has no {begin}"
    inside, _, after = rest.partition(END)
    return before + begin, inside.strip("\n"), END + after


def write() -> None:
    for (page, name), make in GENERATED.items():
        file = (DOCS / page).resolve()
        before, inside, after = split(file.read_text(encoding="utf-8"), name)
        file.write_text(f"{before}\n\n{make(inside)}\n\n{after}", encoding="utf-8")
        print(f"wrote {file.relative_to(ROOT)}: {name}")


@pytest.mark.parametrize(("page", "name"), GENERATED)
def test_generated_tables_are_what_the_program_says(page: str, name: str) -> None:
    _, inside, _ = split((DOCS / page).read_text(encoding="utf-8"), name)
    assert inside == GENERATED[page, name](inside), RENEW


# ------------------------------------------------------------------------------------ reading pages


def cells(text: str) -> list[list[str]]:
    """The rows of a table, without its header."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines[2:]]


def fenced(text: str, *languages: str) -> list[str]:
    found = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [body for language, body in found if language in languages]


def spans(text: str) -> list[str]:
    """Inline code, outside fenced blocks."""
    return re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL))


def section(text: str, heading: str) -> str:
    found = re.search(rf"^##+ {re.escape(heading)}\n(.*?)(?=^##? |\Z)", text, re.MULTILINE | re.DOTALL)
    assert found, heading
    return found[1]


# -------------------------------------------------------------------------------- links, commands


def slug(heading: str) -> str:
    plain = re.sub(r"[^\w\- ]", "", heading.replace("`", "").strip().lower())
    return plain.replace(" ", "-")


@pages
def test_relative_links_resolve(page: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    links = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'(?:src|href|srcset)="([^"]+)"', text)
    for link in links:
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{page.name}: {link}"
        if anchor and target.suffix == ".md":
            headings = re.findall(r"^#+ (.+)$", target.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in map(slug, headings), f"{page.name}: {link}"


@cache
def options_of(command: str) -> frozenset[str]:
    parser = import_module(f"ptuning.cli.{command.replace('-', '_')}").parser()
    return frozenset(name for action in parser._actions for name in action.option_strings)


def commands(text: str) -> Iterator[list[str]]:
    """Every ``ptuning …`` that a page shows, as words."""
    shown = [
        line
        for body in fenced(text, "bash", "console", "sh")
        for line in body.replace("\\\n", " ").splitlines()
    ]
    shown += [span for span in spans(text) if span.startswith("ptuning ")]
    for line in shown:
        # A quoted separator, such as '|', is no pipe.
        words = shlex.split(re.sub(r"(?<!['\"])\|(?!['\"])", " ; ", line), comments=True)
        while "ptuning" in words:
            rest = words[words.index("ptuning") + 1 :]
            end = next((i for i, word in enumerate(rest) if word in (";", "&&", ">", "<")), len(rest))
            yield rest[:end]
            words = rest[end:]


@pages
def test_commands_and_their_options_exist(page: Path) -> None:
    from ptuning.cli import COMMANDS

    for command, *words in commands(page.read_text(encoding="utf-8")):
        if command in ("COMMAND", "--help", "--version"):
            continue
        assert command in COMMANDS, f"ptuning {command}"
        for word in words:
            if word.startswith("--"):
                assert word.partition("=")[0] in options_of(command), f"ptuning {command} {word}"


@pages
def test_options_that_are_named_exist(page: Path) -> None:
    from ptuning.cli import COMMANDS

    known = frozenset[str]().union(*map(options_of, COMMANDS))
    parts = {"--" + ".".join(name[2:].split(".")[:n]) for name in known for n in range(1, 5)}
    for span in spans(page.read_text(encoding="utf-8")):
        if found := re.match(r"--[a-z][\w.-]*", span):
            assert found[0] in known | {"--write"}, f"{page.name}: {span}"
        if re.fullmatch(r"(data|fit|prompt)(\.[a-z_]+)+", span):
            assert f"--{span}" in parts, f"{page.name}: {span}"


def test_every_command_is_documented() -> None:
    from ptuning.cli import COMMANDS

    text = (DOCS / "configuration.md").read_text(encoding="utf-8")
    assert {words[0] for words in commands(text)} >= set(COMMANDS)


# ---------------------------------------------------------------------------------------- examples


@pages
@pytest.mark.filterwarnings("ignore:'pin_memory':UserWarning")
def test_python_examples_run(
    page: Path, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A page's blocks, in order, as one program; ``"demo"`` is the tiny backbone here."""
    blocks = fenced(page.read_text(encoding="utf-8"), "python")
    if not blocks:
        pytest.skip("no Python on this page")
    if page.name == "from-peft.md":
        pytest.skip("tests/test_guide.py runs it, with stand-ins for the Hub and GLUE")
    if page.name == "scale.md":
        pytest.skip("tests/test_ray_*.py do what it shows, on a cluster")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "__main__"}
    for number, block in enumerate(blocks, 1):
        source = block.replace('"demo"', repr(str(tiny_folder)))
        exec(compile(source, f"{page.name}, block {number}", "exec"), names)


def test_calls_on_a_cluster_have_the_arguments_that_are_shown() -> None:
    """Of the page whose Python is not run here."""
    pytest.importorskip("ray")
    import ptuning.ray

    found = set()
    for block in fenced((DOCS / "scale.md").read_text(encoding="utf-8"), "python"):
        for call in ast.walk(ast.parse(block)):
            if isinstance(call, ast.Call):
                name = ast.unparse(call.func).removeprefix("ptuning.ray.")
                if name in ptuning.ray.__all__:
                    found.add(name)
                    given = {str(each.arg): each.value for each in call.keywords}
                    bound = inspect.signature(getattr(ptuning.ray, name)).bind(*call.args, **given)
                    assert "options" not in bound.arguments, ast.unparse(call)
    assert found == {"predict_dataset", "write_predictions", "train_several", "train_search"}


@pages
def test_yaml_examples_are_configurations(page: Path) -> None:
    import yaml

    from ptuning import TrainConfig

    for block in fenced(page.read_text(encoding="utf-8"), "yaml"):
        TrainConfig.checked(yaml.safe_load(block))


EXAMPLES = (
    ("csv", None, "single_label_classification", False),
    ("jsonl", None, "single_label_classification", True),
    ("csv", "|", "multi_label_classification", False),
    ("jsonl", None, "multi_label_classification", False),
    ("csv", None, "regression", True),
)


def test_data_examples_are_read_as_the_page_says(tmp_path: Path) -> None:
    from ptuning.data import infer_task, load_examples

    text = section((DOCS / "configuration.md").read_text(encoding="utf-8"), "Data")
    blocks = re.findall(r"^```(csv|jsonl)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert len(blocks) == len(EXAMPLES)
    for (language, body), (kind, separator, problem_type, pair) in zip(blocks, EXAMPLES, strict=True):
        assert language == kind
        file = tmp_path / f"rows.{kind}"
        file.write_text(body, encoding="utf-8")
        task = infer_task(load_examples(file, label_separator=separator).examples)
        assert (task.problem_type, task.pair) == (problem_type, pair), body


def test_placements_are_where_the_page_shows_them() -> None:
    import torch

    from ptuning.model.placement import layout
    from ptuning.model.template import insertions

    text = section((DOCS / "concepts.md").read_text(encoding="utf-8"), "Placement")
    shown = {row[0].strip("`"): row[1].strip("`").split() for row in cells(text)}
    assert {"start", "front", "between", "middle", "end"} < set(shown)
    row, segments = ["[CLS]", "a", "a", "[SEP]", "b", "b", "[SEP]"], [-1, 0, 0, -1, 1, 1, -1]
    for placement, expected in shown.items():
        pieces = insertions(placement, None if "{" in placement else 2)
        names = [piece.anchor or "V" for piece in pieces for _ in range(piece.tokens or 1)]
        found = layout(
            torch.ones(1, len(row), dtype=torch.long),
            pieces,
            [piece.tokens or 1 for piece in pieces],
            torch.tensor([segments]),
            pad_left=False,
        )
        assert [(row + names)[i] for i in found.index[0]] == expected, placement


def test_the_record_that_is_shown_has_the_keys_of_a_real_one(tiny_folder: Path, tmp_path: Path) -> None:
    from ptuning import PTuningModel

    (block,) = fenced((DOCS / "formats.md").read_text(encoding="utf-8"), "json")
    shown = json.loads(block)
    PTuningModel.from_backbone(str(tiny_folder), num_labels=2).save_pretrained(tmp_path / "adapter")
    real = json.loads((tmp_path / "adapter" / "ptuning.json").read_text())
    assert list(shown) == list(real)
    for part in ("task", "prompt", "backbone", "versions", "files"):
        assert list(shown[part]) == list(real[part]), part


def test_every_test_file_that_is_named_exists() -> None:
    for page in PAGES:
        for name in re.findall(r"tests/[\w/]+\.py", page.read_text(encoding="utf-8")):
            assert (ROOT / name).is_file(), f"{page.name}: {name}"


def test_the_picture_needs_nothing_from_outside() -> None:
    from xml.etree import ElementTree

    text = (DOCS / "concepts.svg").read_text(encoding="utf-8")
    ElementTree.fromstring(text)
    assert "prefers-color-scheme: dark" in text
    assert re.findall(r"(?:href|url\(|@import|<image|<script)", text) == []


if __name__ == "__main__":
    if sys.argv[1:] != ["--write"]:
        sys.exit("usage: python tests/test_docs.py --write")
    write()
