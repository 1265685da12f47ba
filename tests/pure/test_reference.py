"""The pages are fresh, complete, and lead somewhere; they speak of the product and of nothing else."""

import importlib.util
import re
import subprocess
import tomllib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import get_args

import click
import pytest

import gen_worker
from gen_worker.cli import calls
from gen_worker.cli.program import commands
from gen_worker.models.errors import MEANINGS, ModelErrorKind
from gen_worker.settings import VARIABLES
from gen_worker.top.keys import KEYS
from gen_worker.wire import control, messages
from gen_worker.wire.messages import ErrorDetail, ErrorKind
from gen_worker_child import jobs
from gen_worker_child.main import CREDITS, WATCH_S
from gen_worker_supervisor.clients import control as kept
from gen_worker_supervisor.core import blame, ladder, state, verdicts
from gen_worker_supervisor.core.outcomes import STATE_OF
from gen_worker_supervisor.core.phases import JobState
from gen_worker_supervisor.sockets.line_socket import Limits

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
DECISIONS = sorted((DOCS / "decisions").glob("*.md"))

_LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")
_FENCED = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def reference(name: str) -> str:
    return (DOCS / "reference" / f"{name}.md").read_text()


def slugs(page: Path) -> set[str]:
    """The anchors that headings of a page make."""
    headings = re.findall(r"^#+ (.+)$", _FENCED.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.fixture(scope="module")
def generate() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate", DOCS / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_what_follows_from_the_code_is_fresh(generate: ModuleType) -> None:
    assert [name_of(page) for page in generate.stale()] == [], "run `make docs`"


def promised(generate: ModuleType) -> Counter[int]:
    return Counter(each["number"] for group in generate.promise_groups() for each in group["promise"])


def test_every_promise_has_a_test_that_proves_it(generate: ModuleType) -> None:
    assert set(promised(generate)) - set(generate.proofs_by_promise()) == set()


def test_every_mark_names_a_promise_and_none_is_made_twice(generate: ModuleType) -> None:
    assert set(generate.proofs_by_promise()) - set(promised(generate)) == set()
    assert set(promised(generate).values()) == {1}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_link_leads_to_a_page_and_a_heading(page: Path) -> None:
    for link in _LINK.findall(_FENCED.sub("", page.read_text())):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert not anchor or anchor in slugs(target), link


def test_every_page_is_reached_from_the_index() -> None:
    linked = {(DOCS / link.partition("#")[0]).resolve() for link in _LINK.findall((DOCS / "index.md").read_text())}
    assert {page for page in PAGES if page.is_relative_to(DOCS)} - linked == {DOCS / "index.md"}


def test_every_command_is_documented() -> None:
    page = reference("cli")
    context = click.Context(commands)
    for name in commands.list_commands(context):
        assert f"## gen-worker {name}\n" in page
        command = commands.get_command(context, name)
        assert command is not None
        for option in [each for each in command.params if isinstance(each, click.Option)]:
            assert f"`{', '.join(option.opts)}" in page


def test_every_key_of_top_is_told() -> None:
    guide = (DOCS / "guides" / "run-a-multi-gpu-host.md").read_text()
    cells = " ".join(re.findall(r"^\| (.*?) \|", guide, re.MULTILINE)).lower().replace("`", "")
    words = {word for key in KEYS for word in key.shown.split() if word != "/"} - {"2"}  # `1` to `3`
    assert words - set(re.split(r"[ ,]+", cells)) == set()


def test_every_extra_is_told() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    told = re.findall(r"^\| ((?:`\w+`(?:, )?)+) \|", (DOCS / "local-dev.md").read_text(), re.MULTILINE)
    assert set(extras) - {"dev"} <= {name for row in told for name in re.findall(r"\w+", row)}


def every_option() -> Iterator[click.Option]:
    context = click.Context(commands)
    for name in commands.list_commands(context):
        command = commands.get_command(context, name)
        assert command is not None
        for each in [command, *getattr(command, "commands", {}).values()]:
            yield from (option for option in each.params if isinstance(option, click.Option))


def test_an_option_has_the_same_letter_in_every_command() -> None:
    letters: dict[str, set[frozenset[str]]] = {}
    for option in every_option():
        short = frozenset(name for name in option.opts if not name.startswith("--"))
        for name in set(option.opts) - short:
            letters.setdefault(name, set()).add(short)
    assert {name: sorted(map(sorted, found)) for name, found in letters.items() if len(found) > 1} == {}


def test_every_name_that_an_author_imports_is_documented() -> None:
    page = reference("python")
    for name in gen_worker.__all__:
        assert re.search(rf"^### {name}$", page, re.MULTILINE), name


def test_every_public_name_is_documented(generate: ModuleType) -> None:
    told = "\n".join(page.read_text() for page in PAGES)
    for module in (*generate.ELSEWHERE, "gen_worker.client", "gen_worker.io"):
        missing = [name for name in generate.public(module) if not re.search(rf"\b{name}\b", told)]
        assert missing == [], module


def test_every_frame_of_the_control_socket_is_documented() -> None:
    page = reference("control-socket")
    for frame in (*get_args(control.ClientFrame), *get_args(control.ServerFrame)):
        assert f"### {frame.__name__.lower()}\n" in page


def test_every_variable_is_documented() -> None:
    page = reference("environment")
    for variable in VARIABLES.values():
        for name in variable.names:
            assert f"`{name}`" in page


def test_every_kind_of_error_is_documented_as_it_behaves() -> None:
    rows = re.findall(r"^\| `(\w+)` \| .* \| (yes|no|depends) \| (\d+) \|$", reference("errors"), re.MULTILINE)
    assert {kind for kind, _, _ in rows} == set(get_args(ErrorKind))
    retryable = {kind for kind, state in STATE_OF.items() if state is JobState.RETRYABLE}
    for kind, again, code in rows:
        assert again == ("depends" if kind == "model_resolution" else "yes" if kind in retryable else "no"), kind
        assert int(code) == calls._CODES.get(kind, 1), kind


def test_every_reason_why_a_model_cannot_be_had_has_its_meaning() -> None:
    assert list(MEANINGS) == list(get_args(ModelErrorKind))


def test_every_detail_of_an_error_is_documented() -> None:
    for field in ErrorDetail.__struct_fields__:
        assert f"| `{field}` |" in reference("errors")


@pytest.mark.parametrize(
    ("page", "told"),
    [
        ("host-integration", f"{Limits().line_bytes >> 20} MiB"),
        ("host-integration", f"no line for {Limits().first_line_s:g} s"),
        ("host-integration", f"{Limits().partial_bytes >> 20} MiB over all connections"),
        ("host-integration", f"takes nothing for {Limits().stalled_s:g} s"),
        ("reference/control-socket", f"A frame has at most {messages.FRAME_LIMIT >> 10} KiB"),
        ("reference/control-socket", f"up to {messages.INLINE_LIMIT >> 10} KiB is a `bin` in its frame"),
        ("reference/control-socket", f"up to {messages.REGION_LIMIT >> 30} GiB, lies in a memfd"),
        ("reference/control-socket", f"for {kept.KEPT_S / 60:g} minutes, and at most {kept.KEPT_RESULTS:,}"),
        ("reference/control-socket", f"{kept.KEPT_BYTES >> 20} MiB of them"),
        ("reference/control-socket", f"{kept.UNSENT_LIMIT:,} frames, or"),
        ("reference/control-socket", f"{messages.WINDOW_ITEMS} items or {messages.WINDOW_BYTES >> 20} MiB"),
        ("guides/streaming-and-progress", f"{messages.WINDOW_ITEMS} items or {messages.WINDOW_BYTES >> 20} MiB"),
        ("guides/streaming-and-progress", f"{1 / jobs.PROGRESS_INTERVAL_S:g} progress reports a second"),
        ("guides/kill-a-hung-job", f"has {ladder.GRACE_S[ladder.Reason.KILL]:g} seconds"),
        ("guides/serve-and-invoke", f"have {ladder.GRACE_S[ladder.Reason.DRAIN]:g} seconds"),
        ("endpoint-authoring", f"up to {CREDITS['loop']} at once"),
        ("concepts/architecture", f"{CREDITS['loop']} at once"),
        ("concepts/architecture", f"under {state.FAST_RUN_S * 1000:g} ms, up to {state.LEASED_AHEAD} jobs"),
        ("concepts/faults", f"{blame.QUARANTINE_S / 60:g} minutes"),
        ("decisions/sampled-digest", f"up to {blame.HASHED_WHOLE >> 20} MiB"),
        ("decisions/unavailable-and-tried-again", f"{verdicts.UNAVAILABLE_S:g} seconds later"),
        ("decisions/who-reads-in-a-child", f"{WATCH_S * 1000:g} ms"),
    ],
)
def test_a_number_on_a_page_is_the_codes(page: str, told: str) -> None:
    prose = " ".join((DOCS / f"{page}.md").read_text().split())
    assert told in prose


@pytest.mark.parametrize("page", DECISIONS, ids=name_of)
def test_a_decision_says_its_context_its_choice_and_its_cost(page: Path) -> None:
    text = page.read_text()
    assert [text.count(f"\n**{part}.** ") for part in ("Context", "Choice", "Cost")] == [1, 1, 1]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_a_page_speaks_to_its_reader(page: Path) -> None:
    prose = _FENCED.sub("", page.read_text())
    assert not re.search(r"\b(?:we|our|us|simply|just|easily|unfortunately)\b", prose, re.IGNORECASE)


def test_the_repository_speaks_of_the_product_only() -> None:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False).stdout
    files = [ROOT / name for name in listed.split("\0") if name] or PAGES  # an unpacked sdist has no git
    told = re.compile(
        r"/wor[k]/|\.librar[y]/|\b(?:contrac[t]|desig[n]|promise[s]|style)\.m[d]\b|\bissue[s]? #?\d|\bupstrea[m]\b"
    )
    for file in files:
        written = file.suffix in (".py", ".md", ".toml", ".yml", ".yaml", "") or file.parent.name == "scenarios"
        if written and file.is_file():
            found = told.search(file.read_text(errors="replace"))
            assert found is None, f"{name_of(file)}: {found}"
