import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from gen_worker import (
    HF,
    ActionContext,
    CanceledError,
    RequestContext,
    RetryableError,
    ValidationError,
    endpoint,
    worker_function,
)
from gen_worker.discovery import DiscoveryError
from gen_worker.models.errors import ModelError
from gen_worker.testing import Client, Log, Progress, fake_model
from gen_worker.testing.plugin import project_above
from tests.endpoints import tried


@pytest.fixture
def client() -> Iterator[Client]:
    with Client(tried.Greeter) as client:
        yield client


def test_a_call_gives_what_the_handler_gave_told_and_kept(client: Client) -> None:
    result = client.run("greet", {"name": "Ada"}, times=2)
    assert result.output == tried.Line("hello hello Ada")
    assert result.logs == [Log("warning", "greeting Ada")]
    assert result.progress == [Progress(0.5, "greeting")]
    assert result.json == b'{"text":"hello hello Ada"}'


def test_a_function_is_named_in_either_spelling_or_by_its_handler(tmp_path: Path) -> None:
    with Client(tried.count_down) as client:
        by_name = client.run("count_down", name="x", times=2).output
        assert client.run("count-down", name="x", times=2).output == by_name
        assert client.run(tried.count_down, tried.Person("x", 2)).output == by_name


def test_a_payload_is_a_dict_a_struct_or_fields(client: Client) -> None:
    person = tried.Person("Ada", raw=b"!")
    assert client.run("greet", person).output.text == "hello Ada !"
    assert client.run("greet", person, name="Bob").output.text == "hello Bob !"
    assert client.run("greet", {"name": "Ada", "raw": b"!"}).output.text == "hello Ada !"


@pytest.mark.parametrize("payload", [{}, {"name": 3}, {"name": "Ada", "times": "many"}])
def test_a_payload_that_the_function_does_not_take_is_a_validation_error(
    client: Client, payload: dict[str, object]
) -> None:
    with pytest.raises(ValidationError, match="`greet` does not take this payload"):
        client.run("greet", payload)


@pytest.mark.parametrize(("name", "error"), [("try again", RetryableError), ("end", CanceledError), ("x", KeyError)])
def test_what_the_handler_raises_is_raised_as_it_is(client: Client, name: str, error: type[Exception]) -> None:
    with pytest.raises(error) as raised:
        client.run("refuse", name=name)
    assert raised.traceback[-1].name == "refuse", "the test sees the author's line"


def test_an_output_that_its_annotation_does_not_allow_is_told(client: Client) -> None:
    with pytest.raises(TypeError, match=r"`lie` gives what its annotation does not allow: .*\$\.value"):
        client.run("lie", name="x")


def test_an_output_or_an_item_of_another_type_is_told() -> None:
    @endpoint
    def wrong(ctx: RequestContext, payload: tried.Person) -> tried.Line:
        return payload.name  # type: ignore[return-value]

    @endpoint
    def wrong_item(ctx: RequestContext, payload: tried.Person) -> Iterator[tried.Line]:
        yield tried.Line("right")
        yield payload.name  # type: ignore[misc]

    with Client(wrong) as client, pytest.raises(TypeError, match="`wrong` returned a `str`"):
        client.run("wrong", name="x")
    with Client(wrong_item) as client:
        items = client.stream("wrong-item", name="x")
        assert next(items).text == "right"
        with pytest.raises(TypeError, match="`wrong_item` yielded a `str`, its annotation says `Line`"):
            next(items)


def test_a_function_that_is_not_there_is_told_with_those_that_are(client: Client) -> None:
    with pytest.raises(LookupError, match=r"no function `gret`.*`greet`") as caught:
        client.run("gret")
    assert caught.value.__notes__ == ["hint: did you mean `greet`?"]
    with pytest.raises(LookupError, match="is no handler of"):
        client.run(tried.count_down)


@pytest.mark.parametrize("function", [tried.count_up, tried.count_down])
def test_a_stream_gives_its_items(function: object) -> None:
    with Client(function) as client:  # type: ignore[arg-type]
        result = client.run(function, name="x", times=3)  # type: ignore[call-overload]
        assert len(result.output) == 3
        assert result.items == result.output
        assert result.json == b'{"yielded":3}'
        assert [item.text for item in client.stream(function, name="x", times=3)] == [  # type: ignore[arg-type]
            item.text for item in result.output
        ]


@pytest.mark.parametrize("function", [tried.count_up, tried.count_down])
def test_a_stream_that_is_left_ends_at_once(function: object) -> None:
    with Client(function) as client:  # type: ignore[arg-type]
        items = client.stream(function, name="x", times=1 << 40)  # type: ignore[arg-type]
        assert next(items)
        items.close()  # type: ignore[attr-defined]
        assert not [thread for thread in threading.enumerate() if thread.name.startswith("gen-worker-test")]


@pytest.mark.parametrize("function", ["wait", "poll"])
def test_a_deadline_is_a_timeout_error(client: Client, function: str) -> None:
    with pytest.raises(TimeoutError, match=rf"`{function}` did not end within 0\.05 s"):
        client.run(function, name="x", timeout_s=0.05)
    assert client.run("greet", name="Ada").output.text == "hello Ada", "the next call runs as ever"


@pytest.mark.parametrize("function", ["wait", "poll"])
def test_a_call_under_way_can_be_cancelled(client: Client, function: str) -> None:
    job = client.submit(function, name="x")
    job.cancel()
    with pytest.raises(CanceledError):
        job.result(10)


def test_classes_are_set_up_by_the_first_call_and_shut_down_by_close() -> None:
    client = Client(tried.Greeter)
    assert tried.Greeter.living == 0
    client.run("greet", name="Ada")
    client.run("greet", name="Ada")
    assert tried.Greeter.living == 1
    client.close()
    assert tried.Greeter.living == 0


def test_files_are_there_until_the_client_is_closed() -> None:
    with Client(tried.keep) as client:
        result = client.run("keep", name="ada")
        file = result.files["ada.txt"]
        assert file.read_bytes() == b"ada"
        assert result.output.asset.local_path == str(file)
    assert not file.exists()


def test_files_stay_in_a_folder_that_the_test_names(tmp_path: Path) -> None:
    with Client(tried.keep, output_dir=tmp_path) as client:
        client.run("keep", name="ada")
    assert (tmp_path / "ada.txt").read_bytes() == b"ada"


def test_a_path_in_a_payload_stands_for_the_asset_that_is_that_file(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one")
    with Client(tried.read) as client:
        plain = {"ref": "b", "inline_bytes": b"two"}
        assert client.run("read", assets=[tmp_path / "a.txt", plain]).output.text == "one,two"
        with pytest.raises(FileNotFoundError, match="cannot read"):
            client.run("read", assets=[tmp_path / "none.txt"])
        with pytest.raises(ValidationError, match="`read` does not take this payload") as caught:
            client.run("read", assets=[str(tmp_path / "a.txt")])
        assert caught.value.__notes__ == ["hint: a file is given as a `pathlib.Path`, a struct as itself or as a dict"]


def test_a_test_is_shown_the_hint_of_a_module_that_cannot_be_read() -> None:
    with pytest.raises(DiscoveryError, match="no module `nowhere`") as caught:
        Client("nowhere.main")
    assert caught.value.__notes__ == [f"hint: {caught.value.hint}"]


def test_models_are_replaced_by_objects_and_by_folders(tmp_path: Path) -> None:
    fake = fake_model(str.upper, config={"layers": 2})
    with Client(tried.Modelled, models={"weights": fake, "voice": tmp_path}) as client:
        assert client.run("speak", name="ada").output.text == f"ADA {tmp_path.name} acme/weights"
        assert fake.calls == [(("ada",), {})]
        assert fake.to("cuda") is fake
        assert fake.config == {"layers": 2}  # type: ignore[attr-defined]
    with Client(tried.whisper, models={"weights": fake_model("psst")}) as client:
        assert client.run("whisper", name="ada").output.text == "psst"


def test_a_model_that_is_neither_given_nor_here_is_told_with_the_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TENSORHUB_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    with Client(tried.whisper) as client, pytest.raises(ModelError) as raised:
        client.run("whisper", name="ada")
    assert "fake_model" in raised.value.__notes__[0]


def test_a_slot_that_no_function_has_is_refused() -> None:
    with pytest.raises(ValueError, match=r"no function has a slot `weight`; there are `voice`, `weights`"):
        Client(tried.Modelled, models={"weight": object()})


def test_what_is_no_endpoint_is_refused() -> None:
    with pytest.raises(TypeError, match="decorate it with `@endpoint`"):
        Client(tried.Person)
    with pytest.raises(TypeError, match="got 3"):
        Client(3)  # type: ignore[arg-type]
    with pytest.raises(DiscoveryError, match="no module `nowhere`"):
        Client("nowhere.main")
    with pytest.raises(FileNotFoundError, match="/nowhere"):
        Client(Path("/nowhere"))


def test_an_isolated_client_takes_no_objects() -> None:
    with pytest.raises(ValueError, match="isolated"):
        Client(tried.Modelled, isolated=True, models={"weights": object()})
    with Client(tried.keep) as client, pytest.raises(RuntimeError, match="isolated=True"):
        client.server  # noqa: B018


def test_an_exception_of_setup_is_raised_and_the_next_call_tries_again() -> None:
    attempts = []

    @endpoint
    class Flaky:
        def setup(self) -> None:
            attempts.append(1)
            if len(attempts) == 1:
                raise OSError("no weights yet")

        def greet(self, ctx: RequestContext, payload: tried.Person) -> tried.Line:
            return tried.Line("hello")

    with Client(Flaky) as client:
        with pytest.raises(OSError, match="no weights yet"):
            client.run("greet", name="x")
        assert client.run("greet", name="x").output.text == "hello"


def test_the_variant_of_a_class_is_called_by_its_name() -> None:
    @endpoint(variants={"small": HF("acme/small"), "large": HF("acme/large")})
    class Painter:
        def setup(self, pipe: object) -> None:
            self.pipe = pipe

        def paint(self, ctx: RequestContext, payload: tried.Person) -> tried.Line:
            return tried.Line(f"{ctx.models['pipe']} {payload.name}")

    with Client(Painter, models={"pipe": fake_model()}) as client:
        assert client.functions == ["large", "small"]
        assert client.run("small", name="x").output.text == "acme/small x"
        assert client.run(Painter.paint, name="x").output.text == "acme/large x"


def test_the_plugin_loads_nothing_until_a_test_asks() -> None:
    program = (
        "import sys, pytest; before = set(sys.modules); import gen_worker.testing.plugin;"
        "print(*sorted(set(sys.modules) - before))"
    )
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    assert loaded == ["gen_worker", "gen_worker.testing", "gen_worker.testing.plugin"]


def test_a_function_that_takes_batches_gets_one_payload_and_gives_one_output() -> None:
    with Client(tried.lengths) as client:
        assert client.run("lengths", name="four").output == tried.Number(4)


def test_a_producer_has_its_source_and_publishes_nothing(tmp_path: Path) -> None:
    (tmp_path / "weights.bin").touch()
    with Client(tried.convert, source_path=tmp_path) as client:
        assert client.run("convert", source={"ref": "acme/in"}).output.text == "weights.bin"
        assert client.run("convert").output.text == "weights.bin", "the folder names the source, as in `run`"


def test_functions_of_the_earlier_api_are_called_like_any_other() -> None:
    @worker_function()
    def shout(ctx: ActionContext, payload: tried.Person) -> tried.Line:
        ctx.log("shouting")
        return tried.Line(f"{payload.name.upper()} {ctx.run_id}")

    with Client(shout) as client:
        result = client.run(shout, name="ada")
        assert result.output.text == "ADA test-1"
        assert result.logs == [Log("info", "shouting")]


@pytest.mark.parametrize("table", ["gen_worker", "cozy"])
def test_the_fixture_finds_the_project_around_a_test(tmp_path: Path, table: str) -> None:
    (tmp_path / "pyproject.toml").write_text(f"[tool.{table}]\n")
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "pyproject.toml").write_text("[tool.other]\n")
    assert project_above(tmp_path / "tests" / "test_it.py") == tmp_path
