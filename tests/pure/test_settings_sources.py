"""Where settings can be written down: which place outranks which, and how each is read."""

from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given as drawn
from hypothesis import strategies as st

from gen_worker.settings import ELSEWHERE, Settings, SettingsError
from gen_worker.sources import parse_dotenv


class Host:
    """A machine's folders, and a person's."""

    def __init__(self, place: Path) -> None:
        self.root = place / "root"
        self.folder = place / "folder"
        self.given: dict[str, object] = {}
        self.env: dict[str, str] = {}
        self.folder.mkdir()

    def write(self, path: str, text: str | bytes) -> None:
        """Write a file of the person's folder, or with a leading slash of the machine."""
        file = self.root / path[1:] if path.startswith("/") else self.folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(text.encode() if isinstance(text, str) else text)

    def load(self) -> Settings:
        return Settings.load(self.given, env=self.env, folder=self.folder, root=self.root)

    def is_read(self) -> bool:
        """Whether the settings can be read; whatever is raised but `SettingsError` is a defect."""
        try:
            self.load()
        except SettingsError:
            return False
        return True

    def refusal(self) -> str:
        """Return what is wrong with the settings, with the folders' names left out."""
        with pytest.raises(SettingsError) as caught:
            self.load()
        return str(caught.value).replace(str(self.root), "").replace(str(self.folder), ".")

    def warnings(self) -> list[str]:
        return [each.replace(str(self.root), "").replace(str(self.folder), ".") for each in self.load().warnings]


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


# --- which outranks which ---------------------------------------------------------------------------------------------


PLACES: Mapping[str, Callable[[Host, str], None]] = {
    "arguments": lambda host, value: host.given.update(worker_id=value),
    "environment": lambda host, value: host.env.update(WORKER_ID=value),
    ".env": lambda host, value: host.write(".env", f"WORKER_ID={value}\n"),
    "secrets": lambda host, value: host.write("/run/secrets/WORKER_ID", f"{value}\n"),
    "YAML of the machine": lambda host, value: host.write("/etc/gen-worker/config.yaml", f"WORKER_ID: {value}\n"),
    "YAML of the folder": lambda host, value: host.write("gen-worker.yaml", f"worker_id: {value}\n"),
}


@pytest.mark.parametrize("place", PLACES)
def test_each_place_outranks_the_default(host: Host, place: str) -> None:
    PLACES[place](host, "mine")
    assert host.load().worker_id == "mine"


@pytest.mark.parametrize(("higher", "lower"), [*pairwise(PLACES)])
def test_each_place_outranks_the_next(host: Host, higher: str, lower: str) -> None:
    PLACES[lower](host, "lower")
    PLACES[higher](host, "higher")
    assert host.load().worker_id == "higher"


@pytest.mark.parametrize(("higher", "lower"), [*pairwise(list(PLACES)[:-1])])
def test_an_empty_value_leaves_it_to_the_next_place(host: Host, higher: str, lower: str) -> None:
    PLACES[lower](host, "lower")
    PLACES[higher](host, "")
    assert host.load().worker_id == "lower"


def test_places_are_asked_setting_by_setting(host: Host) -> None:
    host.given = {"log_level": "debug"}
    host.env = {"GEN_WORKER_MAX_QUEUED": "1"}
    host.write(".env", "WORKER_ID=me\nGEN_WORKER_MAX_QUEUED=2\n")
    host.write("/run/secrets/WORKER_JWT", "a.b.c\n")
    host.write("gen-worker.yaml", "log_format: json\nlog_level: error\n")
    found = host.load()
    told = (found.log_level, found.max_queued, found.worker_id, found.worker_jwt, found.log_format)
    assert told == ("debug", 1, "me", "a.b.c", "json")


def test_a_bad_value_that_is_outranked_is_not_read(host: Host) -> None:
    host.write(".env", "GEN_WORKER_MAX_QUEUED=many\n")
    host.env = {"GEN_WORKER_MAX_QUEUED": "5"}
    assert host.load().max_queued == 5


def test_the_machines_yaml_stands_alone(host: Host) -> None:
    host.write("/etc/gen-worker/config.yaml", "worker_id: machine\n")
    host.write("gen-worker.yaml", "log_format: json\n")
    found = host.load()
    assert (found.worker_id, found.log_format) == ("machine", "auto")


# --- .env -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("X=5", "5"),
        ("  X =  5  ", "5"),
        ("export X=5", "5"),
        ("export\tX=5\r", "5"),
        ("X='5 6'", "5 6"),
        ('X="5 # 6"', "5 # 6"),
        ('X="5"  # five', "5"),
        ("X=5 # five", "5"),
        ("X=5#6", "5#6"),
        ("X= # nothing", ""),
        ("X=", ""),
        ("X=''", ""),
        ("X='5", "'5"),
        ("X=a=b", "a=b"),
        ("X=$HOME", "$HOME"),
        ("X=ü", "ü"),
        ("\ufeffX=5", "5"),
    ],
)
def test_a_line_of_dotenv_sets_a_name(line: str, value: str) -> None:
    assert {name: each.text for name, each in parse_dotenv(line).items()} == {"X": value}


@pytest.mark.parametrize("line", ["", "# X=5", "  # X=5", "X", "=5", "X Y=5", "5X=5", "X: 5", "--X=5", "exportX 5"])
def test_other_lines_of_dotenv_set_nothing(line: str) -> None:
    assert parse_dotenv(line) == {}


def test_the_last_line_of_a_name_counts() -> None:
    assert (parse_dotenv("X=1\n\nX=2\n")["X"].number, parse_dotenv("X=1\n\nX=2\n")["X"].text) == (3, "2")


def test_dotenv_takes_names_and_fields(host: Host) -> None:
    host.write(".env", "export GEN_WORKER_MAX_QUEUED='5'\nlog_format=json\n")
    assert (host.load().max_queued, host.load().log_format) == (5, "json")


def test_a_bad_line_of_dotenv_is_named(host: Host) -> None:
    host.write(".env", "# limits\nGEN_WORKER_MAX_QUEUED=many\n")
    assert host.refusal() == "`GEN_WORKER_MAX_QUEUED` in line 2 of `./.env` must be a whole number, not `many`"


def test_a_virtual_environment_called_dotenv_is_no_settings(host: Host) -> None:
    (host.folder / ".env").mkdir()
    assert host.load().max_queued == 10_000


def test_a_dotenv_that_leads_in_circles_is_an_error(host: Host) -> None:
    (host.folder / ".env").symlink_to(".env")
    assert host.refusal() == "`./.env` cannot be read: too many levels of symbolic links"


NAMES = st.sampled_from(["GEN_WORKER_MAX_QUEUED", "WORKER_ID", "run_dir", "token", "GEN_WORKER_X", "OTHER"])
LINES = st.tuples(
    st.sampled_from(["", "export ", "# "]), NAMES, st.sampled_from(["=", " = ", ": ", ""]), st.text(max_size=20)
).map("".join)


@drawn(st.binary(max_size=200) | st.lists(LINES, max_size=5).map(lambda lines: "\n".join(lines).encode()))
def test_whatever_dotenv_holds_it_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    host = Host(tmp_path_factory.mktemp("host"))
    host.write(".env", content)
    assert host.is_read() or host.refusal().startswith("`")


@drawn(st.text(st.characters(exclude_categories=["C", "Z"], exclude_characters="#'\""), min_size=1))
def test_what_is_written_plainly_in_dotenv_is_read_as_written(text: str) -> None:
    for line in (f"X={text}", f"export X = '{text}'", f'X="{text}" # said'):
        assert parse_dotenv(line)["X"].text == text


# --- secrets ----------------------------------------------------------------------------------------------------------


def test_a_secret_is_a_file_of_its_name(host: Host) -> None:
    host.write("/run/secrets/GEN_WORKER_TOKEN", "open sesame\n")
    assert host.load().token == "open sesame"


def test_a_secret_for_somebody_else_is_not_looked_at(host: Host) -> None:
    host.write("/run/secrets/token", "of a database")
    host.write("/run/secrets/GEN_WORKER_DATABASE", "password")
    (host.root / "run/secrets/orchestrator/account").mkdir(parents=True)
    assert (host.load().token, host.warnings()) == (None, [])


def test_a_bad_secret_names_its_file_and_shows_nothing(host: Host) -> None:
    host.write("/run/secrets/WORKER_JWT", "canary\ncanary\n")
    assert host.refusal() == "`/run/secrets/WORKER_JWT` must be one line of text"


def test_a_secret_that_cannot_be_read_is_an_error_only_where_it_counts(host: Host) -> None:
    (host.root / "run/secrets/WORKER_JWT").mkdir(parents=True)
    assert host.refusal() == "`/run/secrets/WORKER_JWT` cannot be read: is a directory"
    host.env = {"WORKER_JWT": "a.b.c"}
    assert host.load().worker_jwt == "a.b.c"


# --- YAML -------------------------------------------------------------------------------------------------------------


def test_yaml_takes_names_and_fields(host: Host) -> None:
    host.write("gen-worker.yaml", "GEN_WORKER_MAX_QUEUED: 5\nlog_format: json\n")
    assert (host.load().max_queued, host.load().log_format) == (5, "json")


@pytest.mark.parametrize("value", ["007", "1_000", "on", "0x10", "2024-02-30", "1e3", "!!int 5", "'null'"])
def test_a_value_of_yaml_is_taken_as_it_is_written(host: Host, value: str) -> None:
    host.write("gen-worker.yaml", f"worker_id: {value}\n")
    assert host.load().worker_id == value.removeprefix("!!int ").strip("'")


@pytest.mark.parametrize("text", ["", "# nothing\n", "---\n", "null\n", "worker_id:\n", "worker_id: null\n", "{}"])
def test_a_yaml_that_sets_nothing_leaves_the_defaults(host: Host, text: str) -> None:
    host.write("gen-worker.yaml", text)
    assert (host.load().worker_id, host.warnings()) == ("", [])


@pytest.mark.parametrize(
    ("text", "refusal"),
    [
        ("max_queued: many", "`max_queued` in `./gen-worker.yaml` must be a whole number, not `many`"),
        ("max_queued: [5]", "`max_queued` in `./gen-worker.yaml` must be a single value, not a list"),
        ("token: {is: canary}", "`token` in `./gen-worker.yaml` must be a single value, not a mapping"),
        ("token: 'canary\n\n  canary'", "`token` in `./gen-worker.yaml` must be one line of text"),
        ("- max_queued", "`./gen-worker.yaml` must be a mapping of settings to values"),
        ("max_queued", "`./gen-worker.yaml` must be a mapping of settings to values"),
        ("log_level: debug\ntoken: *canary", "`./gen-worker.yaml` is no YAML: see line 2, column 8"),
        ("max_queued: 5\n\tlog_level: debug", "`./gen-worker.yaml` is no YAML: see line 2, column 1"),
        ("[max_queued]: 5", "`./gen-worker.yaml` is no YAML: see line 1, column 1"),
        ("a: 1\n---\nb: 2\n", "`./gen-worker.yaml` is no YAML: see line 2, column 1"),
        ("[" * 1000, "`./gen-worker.yaml` is nested too deep"),
    ],
)
def test_a_bad_yaml_is_refused_without_showing_what_may_be_secret(host: Host, text: str, refusal: str) -> None:
    host.write("gen-worker.yaml", text)
    assert host.refusal() == refusal


def test_a_yaml_that_is_no_text_is_refused(host: Host) -> None:
    host.write("/etc/gen-worker/config.yaml", b"\x00\xff\xfe")
    assert host.refusal() == "`/etc/gen-worker/config.yaml` is no YAML"


def test_a_yaml_that_cannot_be_read_is_an_error(host: Host) -> None:
    (host.root / "etc/gen-worker/config.yaml").mkdir(parents=True)
    assert host.refusal() == "`/etc/gen-worker/config.yaml` cannot be read: is a directory"


@drawn(
    st.binary(max_size=100) | st.text(st.sampled_from("ab: -[]{}&*!'\"\n#|>?,%@`token"), max_size=60).map(str.encode)
)
def test_whatever_yaml_holds_it_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    host = Host(tmp_path_factory.mktemp("host"))
    host.write("gen-worker.yaml", content)
    assert host.is_read() or "`./gen-worker.yaml`" in host.refusal()


# --- names that are no settings ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "warning"),
    [
        ("GEN_WORKER_MAX_QUED", " is no setting; did you mean `GEN_WORKER_MAX_QUEUED`?"),
        ("GEN_WORKER_XYZZY_PLUGH", " is no setting"),
        ("WORKER_MAX_INPUTS_BYTES", " is no setting; did you mean `WORKER_MAX_INPUT_BYTES`?"),
        ("WORKER_MODES", " is no setting; did you mean `WORKER_MODE`?"),
    ],
)
def test_a_name_in_the_environment_that_is_nearly_a_setting_is_told(host: Host, name: str, warning: str) -> None:
    host.env = {name: "1"}
    assert host.warnings() == [f"`{name}` in the environment{warning}"]


@pytest.mark.parametrize(
    "name",
    ["WORKER_THREADS", "WORKER_CLASS", "MAX_QUEUED", "TENSORHUB_X", "MY_WORKER_MODE", *sorted(ELSEWHERE)],
)
def test_what_may_be_anybodys_in_the_environment_is_not_told(host: Host, name: str) -> None:
    host.env = {name: "1"}
    assert host.warnings() == []


@pytest.mark.parametrize("suffix", ["SERVICE_HOST", "SERVICE_PORT", "SERVICE_PORT_HTTP", "PORT", "PORT_80_TCP_ADDR"])
def test_what_an_orchestrator_of_containers_says_of_its_services_is_not_told(host: Host, suffix: str) -> None:
    host.env = {f"GEN_WORKER_{suffix}": "1", f"WORKER_{suffix}": "1"}
    assert host.warnings() == []


def test_dotenv_is_shared_so_only_names_like_ours_are_told(host: Host) -> None:
    host.write(".env", "ACME_KEY=1\nmax_qued=1\nWORKER_THREADS=1\nTENSORHUB_PUBLIC_URI=1\nTENSORHUB_CACHE_DIR=1\n")
    assert host.warnings() == [
        "`WORKER_THREADS` in line 3 of `./.env` is no setting",
        "`TENSORHUB_PUBLIC_URI` in line 4 of `./.env` is no setting; did you mean `TENSORHUB_PUBLIC_URL`?",
    ]


def test_a_line_of_ours_that_sets_nothing_is_told_without_what_it_says(host: Host) -> None:
    host.write(".env", "DEBUG\n\nGEN_WORKER_TOKEN: canary\n")
    assert host.warnings() == ["line 3 of `./.env` sets nothing: write `NAME=value`"]


def test_yaml_is_ours_so_every_unknown_key_is_told(host: Host) -> None:
    host.write("gen-worker.yaml", "max_qued: 1\nxyzzy: 1\nUSER_MODULES: a\nGEN_WORKER_TOKENS: canary\n")
    assert host.warnings() == [
        "`max_qued` in `./gen-worker.yaml` is no setting; did you mean `max_queued`?",
        "`xyzzy` in `./gen-worker.yaml` is no setting",
        "`GEN_WORKER_TOKENS` in `./gen-worker.yaml` is no setting; did you mean `GEN_WORKER_TOKEN`?",
    ]


def test_a_name_that_shares_only_its_beginning_with_a_setting_gets_no_suggestion() -> None:
    (told,) = Settings.load(env={"GEN_WORKER_FOO": "1"}).warnings
    assert told.endswith("`GEN_WORKER_FOO` in the environment is no setting")
