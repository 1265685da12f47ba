"""Finding what an author marked, and saying what is wrong with it."""

import asyncio
import sys
import textwrap
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gen_worker import HF, FatalError, Resources
from gen_worker.discovery import DiscoveryError, FunctionSpec, author_stack, collect, import_main
from gen_worker.discovery.stacks import briefly
from gen_worker.discovery.walk import import_modules

PREAMBLE = """
from collections.abc import AsyncIterator, Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, Optional
import msgspec
from gen_worker import HF, RequestContext, Resources, endpoint

class Input(msgspec.Struct):
    text: str

class Output(msgspec.Struct):
    text: str

class Item(msgspec.Struct, tag=True):
    text: str

class Other(msgspec.Struct, tag=True):
    number: int
"""

Collect = Callable[[str], dict[str, FunctionSpec]]


@pytest.fixture(autouse=True)
def _imports_are_forgotten() -> Iterator[None]:
    modules, path = set(sys.modules), list(sys.path)
    yield
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        if name.partition(".")[0] in ("mine", "alone"):
            del sys.modules[name]


@pytest.fixture
def project(tmp_path: Path) -> Callable[..., list[str]]:
    """Write the modules of a package `mine` and return where it is."""

    def write(**modules: str) -> list[str]:
        for name, text in {"__init__": "", **modules}.items():
            file = tmp_path / "mine" / f"{name.replace('__in__', '/')}.py"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(textwrap.dedent(text))
        return [str(tmp_path)]

    return write


def in_memory(text: str, name: str = "mine") -> dict[str, FunctionSpec]:
    """Return the functions of a module that has no file."""
    module = types.ModuleType(name)
    sys.modules[name] = module
    exec(compile(PREAMBLE + textwrap.dedent(text), "main.py", "exec"), vars(module))
    return {spec.name: spec for spec in collect(module)}


def refused(text: str) -> DiscoveryError:
    with pytest.raises(DiscoveryError) as caught:
        in_memory(text)
    return caught.value


# --- what is found ----------------------------------------------------------------------------------------------------


def test_a_function_is_routed_by_its_name_or_the_one_it_was_given() -> None:
    specs = in_memory("""
        @endpoint
        def say_it(ctx, payload: Input) -> Output: ...

        @endpoint(name="Say It Loud", resources=Resources(vram_gb=4))
        def loud(ctx, payload: Input) -> Output: ...
    """)
    assert list(specs) == ["say-it", "say-it-loud"]
    plain, loud = specs.values()
    assert (plain.python_name, plain.class_name, plain.instance, plain.owner) == ("say_it", "", "", None)
    assert (plain.module, plain.declared_module, plain.kind) == ("mine", "mine", "inference")
    assert (plain.payload_type.__name__, plain.output_type.__name__) == ("Input", "Output")
    assert loud.resources == Resources(gpu=True, vram_gb=4.0)


def test_every_public_method_is_a_function_and_they_share_an_instance() -> None:
    specs = in_memory("""
        @endpoint(model=HF("a/b"))
        class Painter:
            def setup(self, pipe): ...
            def paint(self, ctx, payload: Input) -> Output: ...
            async def plan(self, ctx, payload: Input) -> Output: ...
    """)
    assert {spec.instance for spec in specs.values()} == {"mine:Painter"}
    assert specs["paint"].owner is specs["plan"].owner
    assert specs["paint"].setup_slots == ("pipe",)
    assert specs["paint"].injected == ()
    assert specs["paint"].bindings == {"pipe": HF("a/b")}
    made = specs["paint"].owner
    assert made is not None
    assert specs["paint"].function is vars(made)["paint"]


@pytest.mark.parametrize(
    ("signature", "shape", "lane"),
    [
        ("def f(ctx, payload: Input) -> Output: ...", "sync", "device"),
        ("async def f(ctx, payload: Input) -> Output: ...", "async", "loop"),
        ("def f(ctx, payload: Input) -> Iterator[Item]:\n    yield Item('')", "generator", "device"),
        ("def f(ctx, payload: Input) -> Iterable[Item]:\n    return []", "generator", "device"),
        ("async def f(ctx, payload: Input) -> AsyncIterator[Item]:\n    yield Item('')", "async_generator", "loop"),
        ("def f(ctx: 'Unknown', payload: 'Input') -> 'Output': ...", "sync", "device"),
    ],
)
def test_the_shape_of_a_handler_decides_its_lane(signature: str, shape: str, lane: str) -> None:
    spec = in_memory(f"@endpoint\n{signature}")["f"]
    assert (spec.shape, spec.lane) == (shape, lane)


def test_an_async_handler_that_needs_a_gpu_runs_on_the_device_lane() -> None:
    spec = in_memory("@endpoint(resources=Resources(gpu=True))\nasync def f(ctx, payload: Input) -> Output: ...")["f"]
    assert (spec.shape, spec.lane) == ("async", "device")


def test_the_shape_is_seen_through_a_wrapper() -> None:
    spec = in_memory("""
        import functools

        def logged(function):
            @functools.wraps(function)
            def wrapper(*args):
                return function(*args)
            return wrapper

        @endpoint
        @logged
        async def f(ctx, payload: Input) -> Output: ...
    """)["f"]
    assert spec.shape == "async"


def test_a_stream_may_have_several_types_of_items() -> None:
    spec = in_memory("@endpoint\ndef f(ctx, payload: Input) -> Iterator[Item | Other]:\n    yield Item('')")["f"]
    assert {member.__name__ for member in spec.output_type.__args__} == {"Item", "Other"}


def test_models_go_to_handler_parameters_where_there_is_no_setup() -> None:
    specs = in_memory("""
        @endpoint(models={"a": HF("m/a"), "b": HF("m/b")})
        def both(ctx, payload: Input, b: Path, a, steps=3) -> Output: ...

        @endpoint(models={"a": HF("m/a"), "b": HF("m/b")})
        class Direct:
            def first(self, ctx, payload: Input, a) -> Output: ...
            def second(self, ctx, payload: Input, *, b) -> Output: ...
    """)
    assert specs["both"].injected == ("b", "a")
    assert (specs["first"].injected, specs["second"].injected) == (("a",), ("b",))
    assert (specs["first"].setup_slots, specs["first"].instance) == ((), "mine:Direct")


def test_setup_with_any_keywords_takes_every_slot() -> None:
    spec = in_memory("""
        @endpoint(models={"a": HF("m/a"), "b": HF("m/b")})
        class Painter:
            def setup(self, b, **others): ...
            def paint(self, ctx, payload: Input) -> Output: ...
    """)["paint"]
    assert spec.setup_slots == ("b", "a")


# --- variants ---------------------------------------------------------------------------------------------------------

VARIANTS = """
    @endpoint({options}variants={{"fast": HF("m/fast"), "Best_One": (HF("m/best"), Resources(vram_gb=24))}})
    class Painter:
        def setup(self, pipe{slots}): ...
        def paint(self, ctx, payload: Input) -> Output: ...
"""


def test_without_a_binding_of_the_class_only_its_variants_are_routed() -> None:
    specs = in_memory(VARIANTS.format(options="", slots=""))
    assert list(specs) == ["best-one", "fast"]
    assert {spec.python_name for spec in specs.values()} == {"paint"}
    assert specs["fast"].bindings == {"pipe": HF("m/fast")}
    assert specs["best-one"].resources.vram_gb == 24
    assert [spec.instance for spec in specs.values()] == ["mine:Painter[Best_One]", "mine:Painter[fast]"]


def test_with_a_binding_of_the_class_the_method_is_routed_too() -> None:
    specs = in_memory(VARIANTS.format(options='model=HF("m/base"), ', slots=""))
    assert list(specs) == ["best-one", "fast", "paint"]
    assert specs["paint"].instance == "mine:Painter"
    assert specs["paint"].bindings == {"pipe": HF("m/base")}


def test_a_variant_swaps_the_first_slot_and_inherits_the_others() -> None:
    options = 'models={"pipe": HF("m/base"), "vae": HF("m/vae")}, '
    specs = in_memory(VARIANTS.format(options=options, slots=", vae"))
    assert specs["fast"].bindings == {"pipe": HF("m/fast"), "vae": HF("m/vae")}


def test_variants_with_the_same_weights_share_an_instance() -> None:
    specs = in_memory("""
        variants = {"one": HF("m/b"), "two": (HF("m/b"), Resources(gpu=True)), "three": HF("m/a")}

        @endpoint(model=HF("m/a"), variants=variants)
        class Painter:
            def setup(self, pipe): ...
            def paint(self, ctx, payload: Input) -> Output: ...
    """)
    assert specs["one"].instance == specs["two"].instance == "mine:Painter[one]"
    assert specs["three"].instance == specs["paint"].instance == "mine:Painter"


# --- where things are looked for --------------------------------------------------------------------------------------


def test_every_submodule_is_walked_and_a_reexport_counts_once(project: Any) -> None:
    paths = project(
        main=PREAMBLE + "from mine.deep.inner import hidden as also_hidden, hidden",
        deep__in____init__="",
        deep__in__inner=PREAMBLE + "@endpoint\ndef hidden(ctx, payload: Input) -> Output: ...",
        loner=PREAMBLE + "@endpoint\ndef alone(ctx, payload: Input) -> Output: ...",
        __main__="raise SystemExit('not to be run')",
    )
    specs = collect(import_main("mine.main", paths))
    assert [(spec.name, spec.module, spec.declared_module) for spec in specs] == [
        ("alone", "mine", "mine.loner"),
        ("hidden", "mine", "mine.deep.inner"),
    ]


def test_what_another_package_declares_is_not_ours(project: Any) -> None:
    in_memory("@endpoint\ndef theirs(ctx, payload: Input) -> Output: ...", name="alone")
    paths = project(main="from alone import theirs")
    assert collect(import_main("mine.main", paths)) == []


def test_a_subclass_is_served_only_when_it_is_marked_itself() -> None:
    specs = in_memory("""
        @endpoint
        class Base:
            def paint(self, ctx, payload: Input) -> Output: ...

        class Sub(Base): ...
    """)
    assert specs["paint"].class_name == "Base"


def test_a_module_made_in_memory_is_taken_as_it_is() -> None:
    module = types.ModuleType("mine")
    sys.modules["mine"] = module
    exec(PREAMBLE + "@endpoint\ndef f(ctx, payload: Input) -> Output: ...", vars(module))
    assert import_main("mine", []) is module
    assert [spec.name for spec in collect(import_main("mine", []))] == ["f"]


def test_what_a_program_puts_into_its_own_module_is_served() -> None:
    elsewhere = in_memory("@endpoint\ndef f(ctx, payload: Input) -> Output: ...", name="alone")["f"]
    module = types.ModuleType("mine")
    vars(module)["f"] = elsewhere.function
    assert [(spec.name, spec.declared_module) for spec in collect(module)] == [("f", "alone")]


def test_a_single_file_is_a_project_too(tmp_path: Path) -> None:
    (tmp_path / "alone.py").write_text(PREAMBLE + "@endpoint\ndef f(ctx, payload: Input) -> Output: ...")
    assert [spec.name for spec in collect(import_main("alone", [str(tmp_path)]))] == ["f"]


def test_the_given_folders_come_first(project: Any, tmp_path: Path) -> None:
    paths = [*project(main=""), str(tmp_path / "second")]
    import_main("mine.main", paths)
    import_main("mine.main", paths)
    assert sys.path[:2] == paths
    assert sys.path.count(paths[0]) == 1


# --- imports that fail ------------------------------------------------------------------------------------------------


def test_a_module_that_does_not_exist_is_named(tmp_path: Path) -> None:
    for module, missing in (("alone", "alone"), ("mine.main", "mine")):
        with pytest.raises(DiscoveryError) as caught:
            import_main(module, [str(tmp_path)])
        assert caught.value.message == f"no module `{missing}`"
        assert caught.value.hint.startswith(f"it is looked for in: {tmp_path}")
        assert caught.value.stack == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("import no_such_library", "ModuleNotFoundError: No module named 'no_such_library'"),
        ("class A:", "IndentationError: expected an indented block"),
    ],
)
def test_a_failing_import_shows_the_authors_lines_only(project: Any, text: str, message: str) -> None:
    paths = project(main="import mine.broken", broken=text)
    with pytest.raises(DiscoveryError) as caught:
        import_main("mine.main", paths)
    error = caught.value
    assert error.message.startswith(f"`mine.main` does not import: {message}")
    assert error.stack[0] == "Traceback (most recent call last):"
    assert [line for line in error.stack if "broken.py" in line]
    assert not [line for line in error.stack if "gen_worker/" in line or "importlib" in line]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("@endpoint\ndef f(ctx): ...", "`f` must take at least (ctx, payload): `payload` is missing"),
        ("@endpoint\ndef f(payload: str): ...", "`f` must take at least (ctx, payload): `ctx` is missing"),
        ("@endpoint(nmae='g')\ndef f(ctx, payload): ...", "`@endpoint` takes no `nmae=`; did you mean `name=`?"),
        (
            "@endpoint(gpu=True)\ndef f(ctx, payload): ...",
            "`@endpoint` takes no `gpu=` itself; write `resources=Resources(gpu=…)`",
        ),
        (
            "@endpoint('g')\ndef f(ctx, payload): ...",
            "`@endpoint` goes on a class or a plain function, got 'g'; a name is given as `@endpoint(name='g')`",
        ),
        ("@endpoint\ndef f(*, ctx, payload): ...", "`f` must take at least (ctx, payload) by position, not after `*`"),
        (
            "endpoint(lambda *given: given)",
            "`<lambda>` must take at least (ctx, payload), and `*` stands for nothing here: a decorator that makes a "
            "function gives it `functools.wraps`",
        ),
        ("gen_worker.Resources(vram=8)", "`Resources` takes no `vram=`; did you mean `vram_gb=`?"),
    ],
)
def test_what_is_declared_wrongly_is_told_by_its_line_alone(project: Any, text: str, told: str) -> None:
    preamble = "import gen_worker\nfrom gen_worker import endpoint\n"
    with pytest.raises(DiscoveryError) as caught:
        import_main("mine.main", project(main=preamble + text))
    where, _, message = caught.value.message.partition(": ")
    assert (Path(where).name, message, caught.value.stack) == ("main.py:3", told, [])


def test_a_program_that_is_imported_is_told_what_to_do(project: Any) -> None:
    with pytest.raises(DiscoveryError) as caught:
        import_main("mine.main", project(main="import argparse\nargparse.ArgumentParser().error('no')"))
    assert caught.value.hint == 'put what is a program under `if __name__ == "__main__":`'


def test_methods_that_are_marked_in_a_class_that_is_not_are_an_error_and_not_a_silent_loss(project: Any) -> None:
    text = "class Painter:\n    @endpoint\n    def paint(self, ctx, payload: Input) -> Output: ...\n"
    main = import_main("mine.main", project(main=PREAMBLE + text))
    with pytest.raises(DiscoveryError, match=r"`Painter\.paint` is marked, its class is not") as caught:
        collect(main)
    assert caught.value.hint == "put `@endpoint` on `Painter`: each public method is a function then"


def test_a_base_class_may_mark_its_methods_too(project: Any) -> None:
    text = """
        class Base:
            @endpoint
            def paint(self, ctx, payload: Input) -> Output: ...
        @endpoint
        class Painter(Base): ...
    """
    main = import_main("mine.main", project(main=PREAMBLE + textwrap.dedent(text)))
    assert [spec.name for spec in collect(main)] == ["paint"]


def test_classes_beside_an_endpoint_may_be_of_any_kind(project: Any) -> None:
    text = """
        class Row(typing.TypedDict):
            text: str
        class Speaks(typing.Protocol):
            volume: int
        class Odd(type):
            def __subclasscheck__(cls, other): raise TypeError("not to be asked")
            def __eq__(cls, other): raise TypeError("not to be compared")
            __hash__ = None
        class Own(metaclass=Odd): ...
        @endpoint
        class Painter:
            def paint(self, ctx, payload: Input) -> Output: ...
    """
    main = import_main("mine.main", project(main=PREAMBLE + "import typing\n" + textwrap.dedent(text)))
    assert [spec.name for spec in collect(main)] == ["paint"]


ONE = "make it one: `class Mine(msgspec.Struct)`, with the same fields"
BOX = "T = typing.TypeVar('T')\nclass Box(msgspec.Struct, typing.Generic[T]):\n    item: T"


@pytest.mark.parametrize(
    ("types", "payload", "hint"),
    [
        ("@dataclasses.dataclass\nclass Mine:\n    text: str", "Mine", ONE),
        ("class Mine(typing.TypedDict):\n    text: str", "Mine", ONE),
        ("import urllib.parse", "urllib.parse.SplitResult", ONE.replace("Mine", "SplitResult")),
        ("", "Input | Output", "put it into a field: `class Input(msgspec.Struct)` with `item: Input | Output`"),
        (BOX, "Box[int]", "give it a name: `class Named(Box[int]): ...`"),
        (
            "import pathlib",
            "pathlib.Path",
            "declare `class Input(msgspec.Struct)` and write `payload: Input`; a field of the type `Asset` is a file",
        ),
        ("", "dict", "declare `class Input(msgspec.Struct)` and write `payload: Input`"),
    ],
)
def test_a_payload_that_is_no_struct_is_told_how_it_becomes_one(types: str, payload: str, hint: str) -> None:
    text = f"import dataclasses, typing\n{types}\n@endpoint\ndef f(ctx, payload: {payload}) -> Output: ...\n"
    assert refused(text).hint == hint


@pytest.mark.parametrize("returned", ["bytes", "pathlib.Path", "fractions.Fraction"])
@pytest.mark.parametrize("kind", ["def", "async def"])
def test_a_handler_that_returns_what_is_a_file_is_told_of_assets(kind: str, returned: str) -> None:
    text = f"import fractions, pathlib\n@endpoint\n{kind} f(ctx, payload: Input) -> {returned}: ...\n"
    assert refused(text).hint.startswith("write `-> Asset` for a file, which `ctx.save_image`, `save_file` and")


@pytest.mark.parametrize(
    ("kind", "context", "hint"),
    [
        ("inference", "ConversionContext", 'write `@endpoint(kind="conversion")`, or `ctx: RequestContext`'),
        ("dataset", "TrainingContext", 'write `@endpoint(kind="training")`'),
    ],
)
def test_a_context_of_another_kind_is_refused(kind: str, context: str, hint: str) -> None:
    handler = f"def f(ctx: {context}, payload: Input) -> Output: ..."
    text = f"from gen_worker import {context}\n@endpoint(kind='{kind}')\n{handler}"
    error = refused(text)
    assert f"`f` takes a `{context}`, which its endpoint's kind does not give: {kind}" in error.message
    assert error.hint == hint


@pytest.mark.parametrize("context", ["RequestContext", "DatasetContext", "'Unknown'", "Any"])
def test_a_handler_may_leave_open_which_context_it_gets(context: str) -> None:
    handler = f"def f(ctx: {context}, payload: Input) -> Output: ..."
    text = f"from gen_worker import DatasetContext\n@endpoint(kind='dataset')\n{handler}"
    assert list(in_memory(text)) == ["f"]


def test_an_alias_of_a_type_stands_for_it(project: Any) -> None:
    text = """
        from collections.abc import Iterator
        from typing_extensions import TypeAliasType
        Order = TypeAliasType("Order", Input)
        Items = TypeAliasType("Items", Iterator[Output])
        @endpoint
        def f(ctx, payload: Order) -> Items:
            yield Output('')
    """
    [spec] = collect(import_main("mine.main", project(main=PREAMBLE + textwrap.dedent(text))))
    assert (spec.payload_type.__name__, spec.output_type.__name__, spec.shape) == ("Input", "Output", "generator")


def test_a_submodule_that_fails_is_an_error_and_not_a_silent_loss(project: Any) -> None:
    main = import_main("mine.main", project(main="", helper="import no_such_library"))
    with pytest.raises(DiscoveryError, match=r"`mine.helper` does not import: ModuleNotFoundError") as caught:
        collect(main)
    assert caught.value.hint == "install what provides `no_such_library`, or mend the import"


def test_the_causes_of_an_error_are_told_too() -> None:
    def outer() -> None:
        try:
            in_memory("boom")
        except NameError as error:
            raise RuntimeError("outer") from error

    with pytest.raises(RuntimeError) as caught:
        outer()
    told = "\n".join(author_stack(caught.value))
    assert "NameError: name 'boom' is not defined" in told
    assert "direct cause" in told
    assert "RuntimeError: outer" in told


def test_what_gen_worker_says_of_an_error_has_only_the_lines_of_that_one() -> None:
    def told_of(error: Exception) -> list[str]:
        failure = FatalError(f"train-step: {error}")
        failure.__cause__ = error
        return author_stack(failure)

    try:
        in_memory("boom")
    except NameError as error:
        told = "\n".join(told_of(error))
    assert told.endswith("NameError: name 'boom' is not defined")
    assert "FatalError" not in told
    assert told_of(ValueError("no line of an author's leads here")) == []


def test_what_lies_between_gen_worker_and_async_code_is_not_told() -> None:
    async def handler() -> None:
        in_memory("boom")

    with asyncio.Runner() as runner, pytest.raises(NameError) as caught:
        runner.run(handler())
    error = caught.value
    assert error.__traceback__ is not None
    error.__traceback__ = error.__traceback__.tb_next  # what follows the frame of this test: asyncio's
    told = "\n".join(author_stack(error))
    assert "in handler" in told
    assert "asyncio" not in told


def traceback_of(calls: int, error: str = "ValueError: no") -> list[str]:
    frames = [line for at in range(calls) for line in (f'  File "/code/{at}.py", line 1, in f', f"    call_{at}()")]
    return ["Traceback (most recent call last):", *frames, error]


@pytest.mark.parametrize(("module", "file"), [("json", "json.py"), ("time.main", "time/__init__.py")])
def test_a_module_that_is_called_like_one_of_pythons_is_told(tmp_path: Path, module: str, file: str) -> None:
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text("")
    (tmp_path / file).with_name("main.py").write_text("")
    with pytest.raises(DiscoveryError, match=f"`{module.split('.')[0]}` is a module of Python itself") as caught:
        import_main(module, [str(tmp_path)])
    assert caught.value.hint == "give your module another name"


@pytest.mark.parametrize("calls", [10, 11, 40])
def test_of_a_long_traceback_the_first_call_and_the_last_ones_are_told(calls: int) -> None:
    told = briefly(traceback_of(calls), 20)
    assert told[:4] == [*traceback_of(1)[:3], "  ..."]
    assert told[4].startswith("  File ")
    assert told[-3:] == traceback_of(calls)[-3:]
    assert 19 <= len(told) <= 20


def test_a_traceback_that_is_not_long_is_told_as_it_is() -> None:
    assert briefly(traceback_of(9), 20) == traceback_of(9)
    assert briefly(["no frames"] * 30, 20) == ["no frames"] * 3 + ["  ..."] + ["no frames"] * 16


def test_of_several_tracebacks_the_last_one_begins_with_its_first_call() -> None:
    chain = ["", "The above exception was the direct cause of the following exception:", ""]
    short = briefly(traceback_of(8, "KeyError: 'a'") + chain + traceback_of(4), 20)
    assert (short[0], short[1][:8]) == ("  ...", '  File "')
    assert short[-10:] == traceback_of(4)
    long = briefly(traceback_of(8, "KeyError: 'a'") + chain + traceback_of(30), 20)
    assert long[:4] == [*traceback_of(1)[:3], "  ..."]
    assert long[-1] == "ValueError: no"


# --- handlers that cannot be served -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("handler", "message", "hint"),
    [
        (
            "def f(ctx, payload) -> Output: ...",
            "the payload `payload` of `f` must be annotated with a `msgspec.Struct` subclass, it is missing",
            "payload: Input",
        ),
        ("def f(ctx, payload: dict) -> Output: ...", "it is dict", "class Input(msgspec.Struct)"),
        ("def f(ctx, payload: msgspec.Struct) -> Output: ...", "it is Struct", ""),
        ("def f(payload: Input, ctx: RequestContext) -> Output: ...", "`ctx` of `f`", "context comes first"),
        (
            "def f(ctx, payload: 'Missing') -> Output: ...",
            "the annotation of `payload` in `f` means nothing",
            "at the top",
        ),
        ("def f(ctx, payload: Input): ...", "`f` cannot be served with its return annotation: missing", "-> Output"),
        ("def f(ctx, payload: Input) -> None: ...", "return annotation: NoneType", "-> Output"),
        ("def f(ctx, payload: Input) -> str: ...", "return annotation: str", ""),
        ("def f(ctx, payload: Input) -> Output | Item: ...", "return annotation: mine.Output | mine.Item", ""),
        ("def f(ctx, payload: Input) -> list[Item]: ...", "return annotation: list[mine.Item]", ""),
        ("def f(ctx, payload: Input) -> Iterator[str]: ...", "return annotation", "-> Iterator[Item]"),
        ("def f(ctx, payload: Input) -> Iterator[Item | None]: ...", "return annotation", ""),
        ("def f(ctx, payload: Input) -> Iterator: ...", "return annotation", ""),
        ("def f(ctx, payload: Input) -> Output:\n    yield 1", "return annotation: Output", "with `yield` is a stream"),
        ("async def f(ctx, payload: Input) -> AsyncIterator[Item]: ...", "return annotation", "with `yield`"),
        (
            "async def f(ctx, payload: Input) -> Iterator[Item]:\n    yield Item('')",
            "return annotation",
            "-> AsyncIterator[Item]",
        ),
        ("def f(ctx, payload: Input, pipe) -> Output: ...", "nothing fills `pipe` of `f`", "models={'pipe': …}"),
    ],
)
def test_a_handler_that_cannot_be_served_is_told_what_to_write(handler: str, message: str, hint: str) -> None:
    error = refused(f"@endpoint\n{handler}")
    assert error.message.startswith("main.py:")
    assert message in error.message
    assert hint in error.hint


@pytest.mark.parametrize(
    ("field", "reason"),
    [("value: complex", "complex"), ("value: list[complex] = []", "complex"), ("value: int = complex(1)", "complex")],
)
def test_a_type_that_cannot_be_sent_is_named_with_its_field(field: str, reason: str) -> None:
    error = refused(f"""
        class Odd(msgspec.Struct):
            text: str
            {field}

        class Outer(msgspec.Struct):
            odd: list[Odd]

        @endpoint
        def f(ctx, payload: Outer) -> Output: ...
    """)
    assert "`Outer` of `f` cannot be sent: the field `Odd.value`: " in error.message
    assert reason in error.message


def test_a_name_that_a_field_does_not_know_is_told() -> None:
    error = refused("""
        class Early(msgspec.Struct):
            value: "Late"

        @endpoint
        def f(ctx, payload: Early) -> Output: ...
    """)
    assert "an annotation in `Early` of `f` means nothing there: name 'Late' is not defined" in error.message
    assert "at the top of the module" in error.hint


@pytest.mark.parametrize(
    ("members", "message", "hint"),
    [
        (
            "def __init__(self, size): ...",
            "`Painter()` is made without arguments, its `__init__` needs `size`",
            "default",
        ),
        ("def setup(self):\n        yield", "`Painter.setup` is a generator, which nothing would run", "`yield`"),
        ("async def warmup(self):\n        yield", "`Painter.warmup` is a generator", ""),
        ("def warmup(self, size): ...", "`Painter.warmup` is called without arguments, it needs `size`", "on `self`"),
        ("def shutdown(): ...", "`Painter.shutdown` does not take `self`", "`def shutdown(self)`"),
        (
            "@classmethod\n    def setup(cls): ...",
            "`Painter.setup` is a hook and no plain method: classmethod",
            "(self)",
        ),
        ("@abc.abstractmethod\n    def _draw(self): ...", "`Painter` is abstract", "a subclass that defines `_draw`"),
    ],
)
def test_a_class_that_could_not_be_set_up_is_refused(members: str, message: str, hint: str) -> None:
    error = refused(
        "import abc\n@endpoint\nclass Painter(abc.ABC):\n    def paint(self, ctx, payload: Input) -> Output: ...\n"
        f"    {members}\n"
    )
    assert message in error.message
    assert hint in error.hint


@pytest.mark.parametrize("init", ["self", "self, size=3", "self, *sizes, **more"])
def test_a_class_may_have_an_init_that_needs_nothing(init: str) -> None:
    specs = in_memory(f"""
        @endpoint
        class Painter:
            def __init__({init}): ...
            def paint(self, ctx, payload: Input) -> Output: ...
    """)
    assert list(specs) == ["paint"]


def test_a_parameter_of_setup_that_nothing_fills_is_an_error() -> None:
    error = refused("""
        @endpoint
        class Painter:
            def setup(self, pipe, steps=3): ...
            def paint(self, ctx, payload: Input) -> Output: ...
    """)
    assert "nothing fills `pipe` of `Painter.setup`" in error.message


@pytest.mark.parametrize(
    ("annotation", "message", "hint"),
    [
        ("int", "no model goes into `pipe` of `Painter.setup`, which is int", "has `from_pretrained`"),
        ("list[str]", "no model goes into `pipe` of `Painter.setup`, which is list[str]", "has `from_pretrained`"),
        ("'Pipelin'", "the annotation of `pipe` in `Painter.setup` means nothing there: name 'Pipelin'", "at the top"),
    ],
)
def test_an_annotation_that_no_model_fits_is_told_with_its_place(annotation: str, message: str, hint: str) -> None:
    error = refused(f"""
        @endpoint(models={{"pipe": HF("a/b")}})
        class Painter:
            def setup(self, pipe: {annotation}): ...
            def paint(self, ctx, payload: Input) -> Output: ...
    """)
    assert message in error.message
    assert error.message.startswith("main.py:")
    assert hint in error.hint


def test_a_handler_takes_no_model_into_a_parameter_of_another_type_either() -> None:
    error = refused("""
        @endpoint(models={"pipe": HF("a/b")})
        def paint(ctx, payload: Input, pipe: float) -> Output: ...
    """)
    assert "no model goes into `pipe` of `paint`, which is float" in error.message


def test_a_model_that_setup_takes_is_not_injected_into_handlers_as_well() -> None:
    error = refused("""
        @endpoint(model=HF("m/a"))
        class Painter:
            def setup(self, pipe): ...
            def paint(self, ctx, payload: Input, pipe) -> Output: ...
    """)
    assert "nothing fills `pipe` of `Painter.paint`" in error.message
    assert "take it in `setup()`" in error.hint


def test_a_variant_field_defined_later_is_still_checked() -> None:
    error = refused("""
        @endpoint(variants={"fast": HF("m/a")})
        class Painter:
            def setup(self, pipe): ...
            def paint(self, ctx, payload: "Late") -> Output: ...

        class Late(msgspec.Struct):
            variant: Literal["slow"]
    """)
    assert "`Late.variant` of `Painter.paint` names 'slow'" in error.message


def test_two_functions_of_one_name_are_refused_with_both_places() -> None:
    error = refused("""
        @endpoint
        def make_it(ctx, payload: Input) -> Output: ...

        @endpoint
        class Maker:
            def setup(self): ...
            def make__it(self, ctx, payload: Input) -> Output: ...
    """)
    assert error.message.startswith("two functions are routed as `make-it`: ")
    assert "`make_it` at main.py:" in error.message
    assert "`Maker.make__it` at main.py:" in error.message


def test_a_name_that_leaves_nothing_to_route_by_is_refused() -> None:
    error = refused("@endpoint(name='…')\ndef f(ctx, payload: Input) -> Output: ...")
    assert "`…` of `f` leaves no name to route by" in error.message


def test_all_problems_are_told_at_once() -> None:
    error = refused("""
        @endpoint
        def first(ctx, payload) -> Output: ...

        @endpoint
        def second(ctx, payload: Input): ...
    """)
    assert error.message.startswith("2 problems in `mine`:")
    assert "`first`" in error.message
    assert "`second`" in error.message


# --- streams of several items, and marks ------------------------------------------------------------------------------


def test_what_ends_a_stream_is_not_among_its_items() -> None:
    specs = in_memory("""
        from gen_worker import Done, Error, IncrementalTokenDelta
        from gen_worker.api import TokenStreamSignal

        @endpoint
        def tokens(ctx, payload: Input) -> Iterator[TokenStreamSignal]: ...

        @endpoint
        async def mixed(ctx, payload: Input) -> AsyncIterator[IncrementalTokenDelta | Item | Done]:
            yield Done()
    """)
    assert specs["tokens"].output_type.__name__ == "IncrementalTokenDelta"
    assert [member.__name__ for member in specs["mixed"].output_type.__args__] == ["IncrementalTokenDelta", "Item"]


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        (
            "class Same(msgspec.Struct):\n    text: str\n"
            "@endpoint\ndef f(ctx, payload: Input) -> Iterator[Output | Same]: ...",
            "callers of `f` could not tell its items `Output` and `Same` apart",
            "`class Output(msgspec.Struct, tag=True)`",
        ),
        (
            "from gen_worker import Done, Error\n@endpoint\ndef f(ctx, payload: Input) -> Iterator[Done | Error]: ...",
            "`f` streams nothing: gen_worker.api.streaming.Done | gen_worker.api.streaming.Error",
            "`-> Iterator[Item | Done]`",
        ),
        (
            "from typing import Annotated\nfrom gen_worker.api.payload_constraints import Clamp\n"
            "class Sized(msgspec.Struct):\n    size: Annotated[str, Clamp(0, 1)]\n"
            "@endpoint\ndef f(ctx, payload: Sized) -> Output: ...",
            "a type of `f` is marked wrongly: the field `Sized.size`: `Clamp` marks something that is no number",
            "",
        ),
        (
            "from typing import Annotated\nfrom gen_worker.api.payload_constraints import Clamp\n"
            "class Sized(msgspec.Struct):\n    size: Annotated[str, Clamp(0, 1)] = ''\n"
            "@endpoint\ndef f(ctx, payload: Sized) -> Output: ...",
            "a type of `f` is marked wrongly: the field `Sized.size`: `Clamp` marks something that is no number",
            "",
        ),
        (
            "from typing import Annotated\nfrom gen_worker import ExpectedOutput, ImageAsset\n"
            "class Made(msgspec.Struct):\n    image: Annotated[ImageAsset, ExpectedOutput(count='input.many')]\n"
            "@endpoint\ndef f(ctx, payload: Input) -> Made: ...",
            "`ExpectedOutput(count='input.many')` of `image`: the payload has no such field",
            "",
        ),
        (
            "from typing import Annotated\nfrom gen_worker.api import PromptRole\n"
            "class Asked(msgspec.Struct):\n    seed: Annotated[int, PromptRole('positive')]\n"
            "@endpoint\ndef f(ctx, payload: Asked) -> Output: ...",
            "`seed` has the prompt role `positive` and is no text",
            "",
        ),
    ],
)
def test_types_that_tell_callers_too_little_are_refused(text: str, message: str, hint: str) -> None:
    error = refused(text)
    assert error.message.startswith("main.py:")
    assert message in error.message
    assert hint in error.hint


def test_every_submodule_that_fails_is_told(project: Any) -> None:
    main = import_main("mine.main", project(main="", one="1 / 0", two="import no_such_library"))
    with pytest.raises(DiscoveryError, match=r"2 problems in `mine\.main`") as caught:
        collect(main)
    assert [problem.message.partition(" ")[0] for problem in caught.value.problems] == ["`mine.one`", "`mine.two`"]
    assert any("ZeroDivisionError" in line for line in caught.value.stack)


def test_what_the_main_module_imports_from_a_plain_folder_of_its_package_is_found(project: Any) -> None:
    paths = project(
        main="import mine.plain.inner",
        plain__in__inner=PREAMBLE + "@endpoint\ndef hidden(ctx, payload: Input) -> Output: ...",
    )
    assert [spec.name for spec in collect(import_main("mine.main", paths))] == ["hidden"]


# --- several modules --------------------------------------------------------------------------------------------------


def endpoint_named(name: str) -> str:
    return PREAMBLE + f"\n@endpoint\ndef {name}(ctx: RequestContext, payload: Input) -> Output: ...\n"


def test_an_image_may_hold_several_modules(tmp_path: Path, project: Callable[..., list[str]]) -> None:
    paths = project(main=endpoint_named("first"))
    (tmp_path / "alone.py").write_text(endpoint_named("second"))
    found = collect(*import_modules("alone,mine.main", paths))
    assert [(spec.name, spec.module) for spec in found] == [("first", "mine"), ("second", "alone")]


def test_modules_of_one_package_are_walked_once(project: Callable[..., list[str]]) -> None:
    paths = project(main=endpoint_named("first"), more=endpoint_named("second"))
    assert [spec.name for spec in collect(*import_modules("mine.main,mine.more,mine", paths))] == ["first", "second"]


def test_one_name_in_two_modules_is_refused_with_both_places(tmp_path: Path, project: Callable[..., list[str]]) -> None:
    paths = project(main=endpoint_named("twice"))
    (tmp_path / "alone.py").write_text(endpoint_named("twice"))
    with pytest.raises(DiscoveryError, match=r"routed as `twice`: .*(alone|main)\.py:\d+ and .*(alone|main)\.py:\d+"):
        collect(*import_modules("alone,mine.main", paths))
