"""Write the parts of the reference that follow from the code: `python docs/generate.py`, or `make docs`.

A page keeps its prose; what stands between `<!-- generated: NAME -->` and `<!-- end of NAME -->` is replaced by what
the part of that name returns. With `--check` nothing is written, and stale pages are an error.
"""

import ast
import importlib
import inspect
import re
import sys
import tomllib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from enum import Enum
from functools import cache
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any, TypeAlias, TypeVar, get_args

import click
import msgspec

from gen_worker.cli.failure import MEANINGS
from gen_worker.cli.program import commands
from gen_worker.doctor.chaos.faults import FAULTS
from gen_worker.http.metrics import FAMILIES
from gen_worker.models.errors import MEANINGS as MODEL_ERRORS
from gen_worker.models.errors import RETRYABLE
from gen_worker.settings import CONTAINER, LOCAL, MODELS, Settings, Variable
from gen_worker.wire import control, hangs, messages, status
from gen_worker.wire.status import Status
from gen_worker_supervisor.core import fates, ladder, phases, steps, verdicts
from gen_worker_supervisor.history import tally

DOCS = Path(__file__).resolve().parent
SOURCE = DOCS.parent / "src" / "gen_worker"
TESTS = DOCS.parent / "tests"
SCHEMA = DOCS / "reference" / "status.schema.json"

Function: TypeAlias = ast.FunctionDef | ast.AsyncFunctionDef
_PART = re.compile(r"(<!-- generated: ([a-z-]+) -->\n).*?(<!-- end of \2 -->)", re.DOTALL)


# --- the command line -------------------------------------------------------------------------------------------------


def cli() -> str:
    """Every command with its arguments, options and exit codes."""
    top = click.Context(commands, info_name="gen-worker")
    parts = []
    for name in commands.list_commands(top):
        command = commands.get_command(top, name)
        assert command is not None
        parts.append(_command(name, command))
        if isinstance(command, click.Group):
            parts += [_command(f"{name} {part}", each) for part, each in command.commands.items()]
    return "\n\n".join(parts)


def _command(name: str, command: click.Command) -> str:
    arguments = [_positional(each) for each in command.params if isinstance(each, click.Argument)]
    usage = " ".join(["gen-worker", name, "[OPTIONS]", *arguments])
    options = [each for each in command.params if isinstance(each, click.Option)]
    parts = [f"## gen-worker {name}", f"```text\n{usage}\n```", _help(inspect.cleandoc(command.help or ""))]
    if options:
        parts.append(_table(("option", "meaning"), map(_option, options)))
    codes: Sequence[int] = getattr(command, "codes", ())
    if codes:
        meanings: Mapping[int, str] = getattr(command, "meanings", MEANINGS)
        parts.append("Exit codes: " + "; ".join(f"**{code}** {meanings[code]}" for code in codes) + ".")
    return "\n\n".join(parts)


def _positional(argument: click.Argument) -> str:
    """An argument as the usage names it: in brackets where it may be left out."""
    named = str(argument.metavar or (argument.name or "").upper())
    return named if argument.required or named.startswith("[") else f"[{named}]"


def _help(text: str) -> str:
    """The help of a command, its literal lines as a block."""
    prose, mark, literal = text.partition("\b\n")
    block = f"\n\n```text\n{literal.strip()}\n```" if mark else ""
    return prose.strip() + block


def _option(option: click.Option) -> tuple[str, str]:
    value = f" {option.metavar}" if option.metavar else ""
    meaning = option.help or ""
    if option.show_default is True:
        meaning += f" Default: `{option.default}`."
    meaning = re.sub(r"  \[default: (.*?)\]", r" Default: `\1`.", meaning)
    return f"`{', '.join(option.opts)}{value}`", meaning


def exit_codes() -> str:
    """What the exit codes of the commands mean."""
    return _table(("code", "meaning"), [(str(code), meaning) for code, meaning in MEANINGS.items()])


def model_errors() -> str:
    """Why a model cannot be had."""
    rows = [(f"`{kind}`", meaning, "yes" if kind in RETRYABLE else "no") for kind, meaning in MODEL_ERRORS.items()]
    return _table(("cause", "meaning", "retryable"), rows)


# --- life cycles and the ladder ---------------------------------------------------------------------------------------


def child_phases() -> str:
    """The life of a child."""
    return _diagram(phases.NEXT_PHASE, phases.Phase.FORKING)


def job_states() -> str:
    """The life of a job."""
    return _diagram(phases.NEXT_JOB, phases.JobState.QUEUED)


def model_states() -> str:
    """The way of a model to this host."""
    return _diagram(phases.NEXT_MODEL, phases.ModelState.COLD)


def device_health() -> str:
    """The health of a device."""
    return _diagram(phases.NEXT_HEALTH, phases.Health.OK)


def _diagram(table: Mapping[phases.State, set[phases.State]], first: phases.State) -> str:
    order = list(type(first))  # a set has none
    lines = ["stateDiagram-v2", f"    [*] --> {first}"]
    for state in order:
        lines += [f"    {state} --> {then}" for then in order if then in table[state]]
        if not table[state]:
            lines.append(f"    {state} --> [*]")
    return "```mermaid\n" + "\n".join(lines) + "\n```"


_RUNG_MEANINGS = {
    ladder.Rung.COOPERATE: "the job is asked to end: `ctx.cancelled` turns true, an async handler is cancelled",
    ladder.Rung.INTERRUPT: "an exception is raised in the job's thread, which Python code notices at its next step",
    ladder.Rung.DUMP: "the child's fault handler writes every thread's stack, whatever the child does",
    ladder.Rung.TERMINATE: "SIGTERM with its default action: no Python code of the child has to run",
    ladder.Rung.KILL: "SIGKILL to the child and its whole session",
}


def rungs() -> str:
    """Every rung, and when it is due after each reason to end a job."""
    endings = {str(reason): ladder.Ending(reason, 0.0) for reason in ladder.Reason}
    endings["kill --now"] = ladder.Ending(ladder.Reason.KILL, 0.0, at_once=True)
    due = {name: {rung: at for at, rung in ending.schedule()} for name, ending in endings.items()}
    rows = [
        (f"{rung.value} {rung.name.lower()}", _RUNG_MEANINGS[rung], *(_seconds(due[name].get(rung)) for name in due))
        for rung in ladder.Rung
    ]
    settled = f"the device's memory must come back within {fates.SETTLE_S:g} s of the death, else the device is dirty"
    retired = f"the process lives {fates.RETIRED_AFTER_S:g} s after SIGKILL: its device is retired, the others serve"
    late = [due[name][ladder.Rung.KILL] + fates.RETIRED_AFTER_S for name in due]
    rows += [("6 settle", settled, *["its death"] * len(due)), ("7 retire", retired, *map(_seconds, late))]
    return _table(("rung", "what is done", *due), rows)


def hang_kinds() -> str:
    """Every way to hang."""
    return _table(("it is", "that means"), [(f"`{name}`", meaning) for name, meaning in hangs.HANGS.items()])


def _seconds(at: float | None) -> str:
    return "-" if at is None else f"{at:g} s"


def limits() -> str:
    """The supervisor's own times and counts."""
    values = {
        "a child that is not ready is ended after": f"{fates.BOOT_LIMIT_S:g} s",
        "deaths before it was ready that give a device up": str(fates.BOOT_TRIES),
        "failed loads that make a function unavailable": str(verdicts.LOAD_TRIES),
        "an unavailable function is tried again after": f"{verdicts.UNAVAILABLE_S:g} s",
        "`shutdown()` may take": f"{steps.DRAIN_LIMIT_S:g} s",
        "the longest pause before a new child": f"{fates.BACKOFF_LIMIT_S:g} s",
        "a dead child's memory may take to come back": f"{fates.SETTLE_S:g} s",
        "a SIGKILL that was not reaped: the device is wedged after": f"{steps.WEDGED_AFTER_S:g} s",
        "the device is retired after": f"{fates.RETIRED_AFTER_S:g} s",
    }
    return _table(("what", "value"), values.items())


# --- metrics ----------------------------------------------------------------------------------------------------------


def metrics() -> str:
    """Every metric."""
    rows = [
        (f"`{each.name}`", each.kind, ", ".join(f"`{label}`" for label in each.labels), _in_a_table(each.meaning))
        for each in FAMILIES
    ]
    return _table(("metric", "kind", "labels", "what it tells"), rows)


def buckets() -> str:
    """Where the buckets of histograms end."""
    return ", ".join(f"{bound:g}" for bound in tally.BOUNDS)


# --- promises ---------------------------------------------------------------------------------------------------------


def promise_groups() -> list[dict[str, Any]]:
    """Return what is promised, group by group, whether or not a test proves it."""
    groups: list[dict[str, Any]] = tomllib.loads((DOCS / "promises.toml").read_text())["group"]
    return groups


def proofs_by_promise() -> dict[int, list[tuple[Path, str]]]:
    """Return the tests that prove each promise, by file and name; a whole file goes by what it says of itself."""
    found: defaultdict[int, list[tuple[Path, str]]] = defaultdict(list)
    for file in sorted(TESTS.rglob("test_*.py")):
        module = _module(file)
        for node in module.body:
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "pytestmark":
                named = f"all: {_doc(module).partition('.')[0]}"
                marks: list[ast.expr] = node.value.elts if isinstance(node.value, ast.List) else [node.value]
            elif isinstance(node, Function | ast.ClassDef):
                named = _sentence(node.name)
                marks = node.decorator_list
            else:
                continue
            for number in _promised(marks):
                found[number].append((file, named))
    return dict(found)


def _promised(marks: Iterable[ast.expr]) -> list[int]:
    calls = [mark for mark in marks if isinstance(mark, ast.Call) and ast.unparse(mark.func) == "pytest.mark.promise"]
    return [int(ast.literal_eval(argument)) for call in calls for argument in call.args]


def _sentence(name: str) -> str:
    return name.removeprefix("test_").replace("_", " ")


def doctor_faults() -> str:
    """What `gen-worker doctor --chaos` does, and what must come of it."""
    return _table(("fault", "what is promised"), [(f"`{fault.name}`", fault.promise) for fault in FAULTS])


def promises() -> str:
    """Every promise that a test proves."""
    proved = proofs_by_promise()
    parts = []
    for group in promise_groups():
        rows = [
            (str(each["number"]), each["fault"], each["promise"], each.get("try", ""))
            for each in group["promise"]
            if each["number"] in proved
        ]
        parts.append(f"### {group['title']}\n\n{_table(('', 'fault', 'promise', 'how to try it'), rows)}")
    return "\n\n".join(parts)


def proofs() -> str:
    """The tests behind each promise."""
    proved = proofs_by_promise()
    kept = {each["number"]: each["fault"] for group in promise_groups() for each in group["promise"]}
    rows = [(str(number), kept[number], _linked(tests)) for number, tests in sorted(proved.items()) if number in kept]
    return _table(("", "fault", "tests"), rows)


def _linked(tests: Iterable[tuple[Path, str]]) -> str:
    return "; ".join(f"[{name}](../{file.relative_to(DOCS.parent)})" for file, name in tests)


# --- types, read from their source ------------------------------------------------------------------------------------


def control_client() -> str:
    """The frames that a client sends."""
    return _frames(get_args(control.ClientFrame))


def control_server() -> str:
    """The frames that the supervisor sends."""
    return _frames(get_args(control.ServerFrame))


def _frames(kinds: Iterable[type]) -> str:
    file = SOURCE / "wire" / "control.py"
    nodes = {node.name: node for node in _classes(file)}
    return "\n\n".join(_frame(file, nodes[kind.__name__]) for kind in kinds)


def _frame(file: Path, node: ast.ClassDef) -> str:
    fields = _fields(node)
    layout = ", ".join([f'"{node.name.lower()}"', *(name for name, _, _ in fields)])
    rows = [
        (f"`{name}`", f"`{_spelled(kind)}`", f"`{default}`" if default else "", words)
        for (name, kind, default), words in zip(fields, _remarks(file, node), strict=True)
    ]
    table = f"\n\n{_table(('field', 'type', 'default', ''), rows)}" if rows else ""
    return f"### {node.name.lower()}\n\n`[{layout}]` - {_doc(node)}{table}"


def _spelled(kind: str) -> str:
    """Return a type with its choices, where its name does not say them; the kinds of errors have a page."""
    choices = get_args(getattr(messages, kind, None))
    return " | ".join(f'"{each}"' for each in choices) if choices and kind != "ErrorKind" else kind


def _remarks(file: Path, node: ast.ClassDef) -> list[str]:
    """Return what stands behind each field of a class."""
    lines = file.read_text().splitlines()
    fields = [each for each in node.body if isinstance(each, ast.AnnAssign)]
    return [lines[each.lineno - 1].partition("  # ")[2] for each in fields]


def status_fields() -> str:
    """Every struct of the status document, with the remarks behind its fields."""
    file = SOURCE / "wire" / "status.py"
    parts = []
    for node in reversed(_classes(file)):
        said = _remarks(file, node)
        rows = [(f"`{name}`", f"`{kind}`", words) for (name, kind, _), words in zip(_fields(node), said, strict=True)]
        parts.append(f"### {node.name}\n\n{_doc(node)}\n\n{_table(('field', 'type', ''), rows)}")
    return "\n\n".join(parts)


def status_schema() -> str:
    """The JSON schema of the status document; what was added within its number is not required."""
    schema = msgspec.json.schema(Status)
    schema["$defs"]["Status"]["properties"]["schema"] = {"const": status.SCHEMA}
    whole = {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}
    return msgspec.json.format(msgspec.json.encode(whole), indent=2).decode() + "\n"


def settings() -> str:
    """The settings of the commands on a person's machine, from the words below the fields."""
    return _settings(LOCAL)


def model_settings() -> str:
    """What models are fetched, kept and placed by, from the words below the fields."""
    return _settings(MODELS)


def container_settings() -> str:
    """The settings of a worker in a container, from the words below the fields."""
    return _settings(CONTAINER)


def _settings(variables: Mapping[str, Variable]) -> str:
    defaults = {field.name: field.default for field in msgspec.structs.fields(Settings)}
    meanings = _meanings()
    rows = [
        (
            ", ".join(f"`{name}`" for name in variable.names),
            f"`{field}`",
            meanings[field],
            _told(field, defaults[field]),
        )
        for field, variable in variables.items()
    ]
    return _table(("variable", "field", "meaning", "default"), rows)


def _meanings() -> dict[str, str]:
    """Return the words below each field of `Settings`."""
    (node,) = [each for each in _classes(SOURCE / "settings.py") if each.name == "Settings"]
    return _words_below(node)


def _words_below(node: ast.ClassDef) -> dict[str, str]:
    return {
        ast.unparse(field.target): _in_a_table(str(words.value.value))
        for field, words in zip(node.body, node.body[1:], strict=False)
        if isinstance(field, ast.AnnAssign) and isinstance(words, ast.Expr) and isinstance(words.value, ast.Constant)
    }


def log_fields() -> str:
    """The fields of a line of the log, from the words below them."""
    return _worded_fields(SOURCE / "log_files.py")


def job_fields() -> str:
    """The fields of the record of a job, from the words below them."""
    return _worded_fields(SOURCE / "job_records.py")


def _worded_fields(file: Path) -> str:
    (node,) = _classes(file)
    words = _words_below(node)
    rows = [(f"`{name}`", f"`{kind}`", words[name]) for name, kind, _ in _fields(node)]
    return _table(("field", "type", "meaning"), rows)


def _in_a_table(sentence: str) -> str:
    return sentence[:1].lower() + sentence[1:].rstrip(".")


def _told(field: str, default: object) -> str:
    if default is msgspec.NODEFAULT:
        return "see below"
    if default in (None, "", ()):
        return "unset"
    if isinstance(default, float):
        return f"`{default:g}`"
    if isinstance(default, bool):
        return "`1`" if default else "`0`"
    if field == "hf_max_repo_bytes" or default == 0:
        return f"`{default}`"
    if field.endswith("_bytes") and isinstance(default, int):
        if default % (1 << 20):
            return f"`{default >> 10}K`"
        return f"`{default >> 20}M`" if default % (1 << 30) else f"`{default >> 30}G`"
    return f"`{default}`"


def reserved() -> str:
    """Which variables never reach the author's code."""
    names = {}
    for node in _module(SOURCE / "environment.py").body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            names[node.targets[0].id] = [str(each.value) for each in ast.walk(node) if isinstance(each, ast.Constant)]
    listed = {name: ", ".join(f"`{value}`" for value in values) for name, values in names.items()}
    rows = [
        ("names that begin with", listed["_RESERVED"]),
        ("the names", listed["_SECRETS"]),
        ("but these pass", listed["_ALLOWED"]),
    ]
    return _table(("what", "which"), rows)


# --- what authors import ----------------------------------------------------------------------------------------------


def exports() -> str:
    """What new endpoints import from `gen_worker`."""
    import gen_worker

    return "\n\n".join(_export(name) for name in [*gen_worker.__all__, *gen_worker._BESIDE])


def earlier() -> str:
    """What functions of the earlier API import from `gen_worker`."""
    import gen_worker

    rows = [row for name in gen_worker._EARLIER for row in _listed(gen_worker, name)]
    return _table(("name", "what it is"), rows)


def _export(name: str) -> str:
    if name == "io":
        module = _module(SOURCE / "io.py")
        functions = [node for node in module.body if isinstance(node, ast.FunctionDef) and node.name[0] != "_"]
        return f"### io\n\n{_doc(module)}\n\n" + _members(
            [f for f in functions if f.name != "resample"], "io.", method=False
        )
    node = _definition(name)
    if isinstance(node, ast.FunctionDef):
        typed = _overload(name) or node
        return f"### {name}\n\n```text\n{name}{_signature(typed, method=False)}\n```\n\n{_doc(node)}"
    parts = [f"### {name}", " ".join([_doc(node), *_based(node)])]
    family = [*_untold(node), node]
    if fields := _fields(node):
        rows = [(f"`{field}`", f"`{kind}`", f"`{default}`" if default else "") for field, kind, default in fields]
        parts.append(_table(("field", "type", "default"), rows))
    methods = [each for one in family for each in one.body if isinstance(each, Function) and each.name[0] != "_"]
    told = [each for each in methods if ast.get_docstring(each)]  # a setter is told with its property
    if members := [*(row for one in family for row in _slots(one)), *_member_rows(told, "", method=True)]:
        parts.append(_table(("member", "what it does"), members))
    return "\n\n".join(parts)


ELSEWHERE = (
    "gen_worker.api",
    "gen_worker.api.types",
    "gen_worker.api.payload_constraints",
    "gen_worker.api.errors",
    "gen_worker.api.tracing",
    "gen_worker.capability",
    "gen_worker.discovery",
    "gen_worker.runtimes.server",
    "gen_worker.runtimes.ar_tts",
    "gen_worker.models.memory",
    "gen_worker.utils.lora",
    "gen_worker.trainer",
    "gen_worker.injection",
    "gen_worker.testing",
)


def elsewhere() -> str:
    """What is public and is imported from other modules than `gen_worker`, module by module."""
    import gen_worker

    told = {*gen_worker.__all__, *gen_worker._BESIDE} | (set(gen_worker._EARLIER) - set(gen_worker.api.__all__))
    parts = []
    for module in ELSEWHERE:
        names = [name for name in public(module) if name not in told]
        told |= set(names)
        home = importlib.import_module(module)
        rows = [row for name in names for row in _listed(home, name)]
        parts.append(f"### {module}\n\n" + _table(("name", "what it is"), rows))
    return "\n\n".join(parts)


def public(module: str) -> list[str]:
    """Return what others may import from a module: its `__all__`, else the structs and exceptions it defines."""
    home = importlib.import_module(module)
    kinds = (msgspec.Struct, Exception)
    found = [name for name, value in vars(home).items() if isinstance(value, type) and issubclass(value, kinds)]
    return list(getattr(home, "__all__", ())) or [n for n in found if vars(home)[n].__module__ == module]


def _listed(home: ModuleType, name: str) -> list[tuple[str, str]]:
    """Return what a name of a module is, and below it the members of a class."""
    value = getattr(home, name)
    if not isinstance(value, type | FunctionType):
        return [(f"`{name}`", f"`{_aliased(value)}`")]
    is_error = isinstance(value, type) and issubclass(value, Exception) and "__init__" not in vars(value)
    if is_error or getattr(value, "_is_protocol", False) or (isinstance(value, type) and issubclass(value, Enum)):
        return [(f"`{name}`", _promise(value))]
    rows = [(f"`{name}{_call(value)}`", _promise(value))]
    return rows + (list(_members_of(value)) if isinstance(value, type) else [])


def _members_of(kind: type) -> Iterator[tuple[str, str]]:
    """Yield the methods and properties of a class, and of what it is based on that is not told by itself."""
    own = [each for each in kind.__mro__ if each is kind or each.__name__.startswith("_")]
    members = {name: member for each in reversed(own) for name, member in vars(each).items() if name[0] != "_"}
    for name, member in members.items():
        if isinstance(member, property):
            yield f"`{kind.__name__}.{name}`", _promise(member)
        elif isinstance(member, FunctionType | classmethod | staticmethod):
            call = _call(getattr(kind, name), bound=isinstance(member, FunctionType))
            yield f"`{kind.__name__}.{name}{call}`", _promise(member)


def _promise(value: object) -> str:
    return " ".join((inspect.getdoc(value) or "").partition("\n\n")[0].split())


def _call(value: Callable[..., object], *, bound: bool = False) -> str:
    """Return what something takes, sixteen arguments of it at most."""
    taken = [each.replace(annotation=each.empty) for each in inspect.signature(value).parameters.values()][bound:]
    call = str(inspect.Signature(taken[:16])).replace("'", '"').replace("<factory>", "…")
    return call if len(taken) <= 16 else f"{call[:-1]}, …)"


def _aliased(value: object) -> str:
    """A type alias as an author would write it."""
    if isinstance(value, TypeVar):
        return "any type"
    parts = [getattr(each, "__name__", repr(each)) for each in get_args(value)]
    return f"Annotated[{', '.join(parts)}]" if hasattr(value, "__metadata__") else " | ".join(parts)


CLIENT = {"blocking": ("Client", "Job"), "asynchronous": ("AsyncClient", "AsyncJob"), "conversation": ("JobError",)}


def client() -> str:
    """The Python client of a supervisor."""
    (common,) = _classes(SOURCE / "client" / "handle.py")
    parts = []
    for module, names in CLIENT.items():
        for node in _classes(SOURCE / "client" / f"{module}.py"):
            if node.name in names:
                made_by_caller = not node.name.endswith("Job")
                parts.append(_client_class(node, [] if made_by_caller else common.body, call=made_by_caller))
    return "\n\n".join(parts)


def _client_class(node: ast.ClassDef, inherited: Sequence[ast.stmt], *, call: bool) -> str:
    functions = [each for each in [*inherited, *node.body] if isinstance(each, Function)]
    parts = [f"### {node.name}", _doc(node)]
    if call:
        made = next(each for each in functions if each.name == "__init__")
        parts.insert(1, f"```text\n{node.name}{_signature(made, method=True)}\n```")
    if public := [each for each in functions if each.name[0] != "_" and not _is_overload(each)]:
        parts.append(_members(public, "", method=True))
    return "\n\n".join(parts)


def _is_overload(node: Function) -> bool:
    return any(isinstance(each, ast.Name) and each.id == "overload" for each in node.decorator_list)


def _slots(node: ast.ClassDef) -> Iterator[tuple[str, str]]:
    """Yield the attributes of a class of which its `__slots__` say what they are."""
    for each in node.body:
        if isinstance(each, ast.Assign) and isinstance(each.value, ast.Dict):
            told = ast.literal_eval(each.value) if ast.unparse(each.targets[0]) == "__slots__" else {}
            yield from ((f"`{name}`", meaning) for name, meaning in told.items() if meaning)


def _members(functions: Iterable[Function], prefix: str, *, method: bool) -> str:
    return _table(("member", "what it does"), _member_rows(functions, prefix, method=method))


def _member_rows(functions: Iterable[Function], prefix: str, *, method: bool) -> list[tuple[str, str]]:
    rows = []
    for node in functions:
        is_property = any(isinstance(each, ast.Name) and each.id == "property" for each in node.decorator_list)
        call = f": {_type(node.returns)}" if is_property and node.returns else _signature(node, method=method)
        iterates = node.returns is not None and _type(node.returns).startswith("AsyncGenerator")
        awaited = "await " if isinstance(node, ast.AsyncFunctionDef) and not iterates else ""
        rows.append((f"`{awaited}{prefix}{node.name}{call}`", _doc(node)))
    return rows


def _signature(node: Function, *, method: bool) -> str:
    given = node.args
    positional = [*given.posonlyargs, *given.args]
    defaults = [None] * (len(positional) - len(given.defaults)) + given.defaults
    parts = [_argument(each, default) for each, default in zip(positional, defaults, strict=True)][1 if method else 0 :]
    if given.vararg or given.kwonlyargs:
        parts.append(f"*{_argument(given.vararg, None)}" if given.vararg else "*")
    parts += [_argument(each, default) for each, default in zip(given.kwonlyargs, given.kw_defaults, strict=True)]
    if given.kwarg:
        parts.append(f"**{_argument(given.kwarg, None)}")
    returns = f" -> {_type(node.returns)}" if node.returns and node.name != "__init__" else ""
    return f"({', '.join(parts)}){returns}"


def _argument(argument: ast.arg, default: ast.expr | None) -> str:
    told = f"{argument.arg}: {_type(argument.annotation)}" if argument.annotation else argument.arg
    return told if default is None else f"{told} = {_value(default)}"


def _type(annotation: ast.expr) -> str:
    return str(annotation.value) if isinstance(annotation, ast.Constant) else ast.unparse(annotation)


def _value(default: ast.expr) -> str:
    return ast.unparse(default).replace("'", '"')


def _overload(name: str) -> ast.FunctionDef | None:
    """The overload of a function that says the most of its types."""
    found = [node for node in _top_level(name) if isinstance(node, ast.FunctionDef) and node.decorator_list]
    return max(found, key=lambda node: len(node.args.kwonlyargs), default=None)


def _based(node: ast.ClassDef) -> list[str]:
    """Say what a class is based on, where an author knows that."""
    top = next(iter(_untold(node)), node)
    base = ast.unparse(top.bases[0]) if top.bases else ""
    return [] if base in ("", "Exception") or "." in base else [f"Based on `{base}`."]


def _untold(node: ast.ClassDef) -> list[ast.ClassDef]:
    """Return the classes above one that nobody imports, the uppermost first: what they have is told of this one."""
    base = ast.unparse(node.bases[0]) if node.bases else ""
    above = [
        each for each in _top_level(base) if isinstance(each, ast.ClassDef) and base not in public("gen_worker.api")
    ]
    return [*_untold(above[0]), *above] if above and base != "RequestContext" else []


def _definition(name: str) -> ast.ClassDef | ast.FunctionDef:
    for node in _top_level(name):
        if ast.get_docstring(node):
            return node
    raise LookupError(f"no definition of `{name}` in `{SOURCE / 'api'}`")


def _top_level(name: str) -> list[ast.ClassDef | ast.FunctionDef]:
    """Every definition of a name in the modules of `gen_worker.api`."""
    files = sorted((SOURCE / "api").glob("*.py"))
    nodes = [node for file in files for node in _module(file).body]
    return [node for node in nodes if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == name]


# --- common -----------------------------------------------------------------------------------------------------------


@cache
def _module(file: Path) -> ast.Module:
    return ast.parse(file.read_text())


def _classes(file: Path) -> list[ast.ClassDef]:
    return [node for node in _module(file).body if isinstance(node, ast.ClassDef) and node.name[0] != "_"]


def _fields(node: ast.ClassDef) -> list[tuple[str, str, str]]:
    """Return name, type and default of every field."""
    return [
        (each.target.id, ast.unparse(each.annotation), _default(each))
        for each in node.body
        if isinstance(each, ast.AnnAssign)
        and isinstance(each.target, ast.Name)
        and "ClassVar" not in ast.unparse(each.annotation)
    ]


def _default(field: ast.AnnAssign) -> str:
    return "" if field.value is None else _value(field.value)


def _doc(node: ast.Module | ast.ClassDef | Function) -> str:
    text = ast.get_docstring(node) or ""
    return " ".join(text.split())


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


PARTS: dict[str, Callable[[], str]] = {
    "cli": cli,
    "exit-codes": exit_codes,
    "model-errors": model_errors,
    "model-states": model_states,
    "child-phases": child_phases,
    "job-states": job_states,
    "device-health": device_health,
    "rungs": rungs,
    "hangs": hang_kinds,
    "limits": limits,
    "metrics": metrics,
    "buckets": buckets,
    "promises": promises,
    "doctor-faults": doctor_faults,
    "proofs": proofs,
    "control-client": control_client,
    "control-server": control_server,
    "status-fields": status_fields,
    "log-fields": log_fields,
    "job-fields": job_fields,
    "settings": settings,
    "container-settings": container_settings,
    "model-settings": model_settings,
    "reserved": reserved,
    "exports": exports,
    "earlier": earlier,
    "elsewhere": elsewhere,
    "client": client,
}


def fresh() -> dict[Path, str]:
    """Return every page that has generated parts, as it should be."""
    pages = {SCHEMA: status_schema()}
    for page in sorted(DOCS.rglob("*.md")):
        text = page.read_text()
        renewed = _PART.sub(lambda found: f"{found[1]}\n{PARTS[found[2]]()}\n\n{found[3]}", text)
        if _PART.search(text):
            pages[page] = renewed
    return pages


def stale() -> list[Path]:
    """Return the pages that are not as they should be."""
    return [page for page, text in fresh().items() if not page.exists() or page.read_text() != text]


def main(arguments: Sequence[str]) -> int:
    """Write the stale pages, or only name them."""
    pages = fresh()
    for page in stale():
        if "--check" in arguments:
            print(f"error: `{page}` is stale\nhint: `make docs`", file=sys.stderr)
            return 1
        page.write_text(pages[page])
        print(f"wrote {page.relative_to(DOCS.parent)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
