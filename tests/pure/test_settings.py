"""Settings: what each variable does, and what a bad value says."""

from collections.abc import Mapping
from pathlib import Path

import msgspec
import pytest

from gen_worker.fetch.config import FetchConfig
from gen_worker.settings import VARIABLES, Secret, Settings, SettingsError
from gen_worker.wire.messages import REGION_LIMIT


def load(env: Mapping[str, str], **given: object) -> Settings:
    """Read the settings of an environment, where there is no file."""
    return Settings.load(given, env=env, folder=Path("/nowhere"), root=Path("/nowhere"))


def test_without_variables_the_documented_defaults_hold() -> None:
    assert load({"GEN_WORKER_RUN_DIR": "/somewhere", "TENSORHUB_CACHE_DIR": "/models"}) == Settings(
        run_dir=Path("/somewhere"),
        cache_dir=Path("/models"),
        max_queued=10_000,
        max_queued_bytes=1 << 30,
        max_input_bytes=64 << 20,
        max_output_bytes=64 << 20,
        max_line_bytes=16 << 20,
        token=None,
        local_output_dir=Path(".gen-worker-run/outputs"),
        local_device=None,
        log_format="auto",
        log_level="info",
        debuggable=False,
        hf_token=Secret(""),
        hf_home="",
        tensorhub_public_url="",
        orchestrator_public_addr="",
        grpc_ca_bundle="",
        worker_id="",
        worker_mode="inference",
        endpoint_lock_path="/app/.tensorhub/endpoint.lock",
        worker_jwt=Secret(""),
        trainer_job_spec_path="",
        runpod_pod_id="",
        worker_disconnected_timeout_s=600.0,
        warnings=(),
    )


EXAMPLES: Mapping[str, tuple[str, object]] = {
    "run_dir": ("/somewhere", Path("/somewhere")),
    "max_queued": ("5", 5),
    "max_queued_bytes": ("2G", 2 << 30),
    "max_queued_per_function": ("50", 50),
    "stall_timeout_s": ("7.5", 7.5),
    "quarantine_s": ("60", 60.0),
    "memory_reserve_bytes": ("1G", 1 << 30),
    "recycle_jobs": ("1000", 1000),
    "recycle_growth_bytes": ("512M", 512 << 20),
    "recycle_age_s": ("3600", 3600.0),
    "postmortem_bytes": ("16M", 16 << 20),
    "log_bytes": ("32M", 32 << 20),
    "job_log_bytes": ("0", 0),
    "max_input_bytes": ("1000", 1000),
    "max_output_bytes": ("0", REGION_LIMIT),
    "max_line_bytes": ("4MiB", 4 << 20),
    "token": ("open sesame", Secret("open sesame")),
    "orchestrator_token": ("abc", Secret("abc")),
    "local_output_dir": ("outputs", Path("outputs")),
    "local_device": ("cuda:1", "cuda:1"),
    "http": ("0.0.0.0:8082", "0.0.0.0:8082"),
    "ready_file": ("/run/ready", Path("/run/ready")),
    "log_format": ("json", "json"),
    "log_level": ("debug", "debug"),
    "debuggable": ("1", True),
    "cache_dir": ("/models", Path("/models")),
    "lower_caches": ("/mnt/a, /mnt/b", ("/mnt/a", "/mnt/b")),
    "cache_bytes": ("100G", 100 << 30),
    "host_cache_bytes": ("0", 0),
    "compile_cache_bytes": ("5G", 5 << 30),
    "offline": ("yes", True),
    "max_vram_gb": ("12.5", 12.5),
    "vram_margin_gb": ("0", 0.0),
    "max_concurrent_downloads": ("4", 4),
    "download_stall_timeout_s": ("0", 0.0),
    "download_max_seconds": ("3600", 3600.0),
    "allow_pickle": ("a/b, c/*", ("a/b", "c/*")),
    "ca_bundle": ("/etc/ca.pem", "/etc/ca.pem"),
    "hf_endpoint": ("https://mirror.example/hf/", "https://mirror.example/hf"),
    "hf_components": ("unet,vae", ("unet", "vae")),
    "hf_optional_components": ("1", True),
    "hf_weight_precisions": ("FP32,bf16", ("fp32", "bf16")),
    "hf_allow_root_json": ("t", True),
    "hf_full_repo_download": ("off", False),
    "hf_max_repo_bytes": ("-1", -1),
    "civitai_endpoint": ("http://127.0.0.1:80", "http://127.0.0.1:80"),
    "civitai_token": ("abc", Secret("abc")),
    "modelscope_endpoint": ("https://scope.example", "https://scope.example"),
    "modelscope_token": ("abc", Secret("abc")),
    "cozy_hub_url": ("https://hub.example/", "https://hub.example"),
    "cozy_hub_token": ("abc", Secret("abc")),
    "hf_token": ("hf_abc", Secret("hf_abc")),
    "hf_home": ("/models", "/models"),
    "tensorhub_public_url": ("https://hub.example", "https://hub.example"),
    "orchestrator_public_addr": ("host:443", "host:443"),
    "grpc_ca_bundle": ("/etc/ca.pem", "/etc/ca.pem"),
    "worker_id": ("007", "007"),
    "worker_mode": ("trainer", "trainer"),
    "endpoint_lock_path": ("/lock", "/lock"),
    "training_dir": ("/trainings", Path("/trainings")),
    "worker_jwt": ("a.b.c", Secret("a.b.c")),
    "trainer_job_spec_path": ("/job.json", "/job.json"),
    "runpod_pod_id": ("pod", "pod"),
    "worker_disconnected_timeout_s": ("1.5", 1.5),
    "scheduler_addr": ("host:8080", "host:8080"),
    "scheduler_addrs": ("a:1, b:2", ("a:1", "b:2")),
    "use_tls": ("true", True),
    "jwks_url": ("https://keys.example/jwks.json", "https://keys.example/jwks.json"),
    "jwt_issuer": ("platform", "platform"),
    "jwt_audience": ("workers", "workers"),
    "devices": ("cpu:2", "cpu:2"),
    "user_modules": ("shop, zoo", ("shop", "zoo")),
    "drain_timeout_s": ("12.5", 12.5),
    "max_concurrency": ("8", 8),
    "max_upload_bytes": ("1G", 1 << 30),
    "max_input_file_bytes": ("0", 0),
    "input_tries": ("5", 5),
    "allow_private_inputs": ("yes", True),
    "image_digest": ("sha256:abc", "sha256:abc"),
    "git_commit": ("0123abc", "0123abc"),
    "deployment_id": ("shop", "shop"),
    "runs_dir": ("/runs", Path("/runs")),
    "input_cache_dir": ("/inputs", Path("/inputs")),
    "input_cache_bytes": ("1G", 1 << 30),
    "file_api_url": ("https://files.example", "https://files.example"),
    "file_api_token": ("abc", Secret("abc")),
    "reconnect_delay_s": ("0.1", 0.1),
    "reconnect_max_delay_s": ("3", 3.0),
    "reconnect_jitter_s": ("0", 0.0),
    "max_reconnect_attempts": ("7", 7),
    "max_output_delta_bytes": ("64k", 64 << 10),
    "max_output_delta_events": ("100", 100),
    "max_ws_frame_bytes": ("1M", 1 << 20),
    "cuda_version": ("12.8", "12.8"),
    "torch_version": ("2.9.1", "2.9.1"),
    "tensorrt_version": ("10.9", "10.9"),
    "gpu_sm": ("89", "89"),
    "fake_gpu_count": ("2", 2),
    "fake_gpu_memory_bytes": ("80G", 80 << 30),
    "fake_gpu_name": ("H100", "H100"),
    "fake_gpu_driver": ("570.1", "570.1"),
}


def test_every_field_can_be_set() -> None:
    fields = {field.name for field in msgspec.structs.fields(Settings)}
    assert fields == {*VARIABLES, "warnings"} == {*EXAMPLES, "warnings"}


@pytest.mark.parametrize("field", EXAMPLES)
def test_each_variable_sets_its_field(field: str) -> None:
    text, value = EXAMPLES[field]
    for name in VARIABLES[field].names:
        settings = load({name: f" {text}\n"})
        assert (getattr(settings, field), settings.warnings) == (value, ())


@pytest.mark.parametrize("field", EXAMPLES)
def test_an_argument_may_be_a_text_or_the_value_itself(field: str) -> None:
    text, value = EXAMPLES[field]
    assert getattr(load({}, **{field: text}), field) == getattr(load({}, **{field: value}), field) == value


def test_an_argument_that_is_none_is_not_given() -> None:
    assert load({"GEN_WORKER_LOCAL_DEVICE": "cpu"}, local_device=None).local_device == "cpu"


def test_an_argument_that_is_no_setting_is_a_mistake_of_the_program() -> None:
    with pytest.raises(TypeError, match="no settings: max_qued"):
        load({}, max_qued=5)


@pytest.mark.parametrize("text", ["0", "0.0", ""])
def test_a_drain_of_no_length_is_the_default_one(text: str) -> None:
    assert load({"WORKER_DRAIN_TIMEOUT_SECONDS": text}).drain_timeout_s == 30.0


def test_the_first_of_a_settings_names_counts() -> None:
    env = {"HUGGINGFACE_TOKEN": "third", "HUGGING_FACE_HUB_TOKEN": "second", "HF_TOKEN": "first"}
    assert load(env).hf_token == "first"
    assert load(env | {"HF_TOKEN": ""}).hf_token == "second"


def test_a_field_is_no_name_in_the_environment() -> None:
    assert load({"token": "open sesame", "run_dir": "/elsewhere"}).token is None


def test_an_empty_variable_counts_as_unset() -> None:
    assert load({"GEN_WORKER_MAX_QUEUED": " ", "GEN_WORKER_LOCAL_DEVICE": ""}).max_queued == 10_000


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("GEN_WORKER_MAX_QUEUED", "many", "a whole number"),
        ("GEN_WORKER_MAX_QUEUED", "0", "above 0"),
        ("GEN_WORKER_MAX_QUEUED", "٣", "a whole number"),
        ("GEN_WORKER_MAX_LINE", "0", "above 0"),
        ("WORKER_MAX_INPUT_BYTES", "64MB", "a whole number of bytes, as `16777216` or `16M`"),
        ("WORKER_MAX_OUTPUT_BYTES", "-1", "a whole number of bytes, as `16777216` or `16M`"),
        ("GEN_WORKER_LOCAL_DEVICE", "gpu", "`cpu`, `cuda` or `cuda:N`"),
        ("GEN_WORKER_LOCAL_DEVICE", "cpu:1", "`cpu`, `cuda` or `cuda:N`"),
        ("GEN_WORKER_LOCAL_OUTPUT_DIR", "a\0b", "a path"),
        ("GEN_WORKER_LOG_FORMAT", "xml", "`auto`, `text` or `json`"),
        ("WORKER_MODE", "training", "`inference` or `trainer`"),
        ("WORKER_DISCONNECTED_TIMEOUT_S", "nan", "a number of seconds, 0 or more"),
        ("WORKER_DISCONNECTED_TIMEOUT_S", "soon", "a number of seconds, 0 or more"),
        ("WORKER_ID", "a\nb", "one line of text"),
        ("WORKER_MAX_CONCURRENCY", "8k", "a whole number, 0 or more"),
        ("GEN_WORKER_HTTP", ":8082", "a port, as `8082` or `0.0.0.0:8082`"),
        ("GEN_WORKER_HTTP", "70000", "a port, as `8082` or `0.0.0.0:8082`"),
        ("GEN_WORKER_HTTP", "http://localhost", "a port, as `8082` or `0.0.0.0:8082`"),
        ("WORKER_MAX_CONCURRENCY", "-1", "a whole number, 0 or more"),
    ],
)
def test_a_bad_value_names_the_variable_where_it_is_set_and_what_is_allowed(
    name: str, value: str, allowed: str
) -> None:
    with pytest.raises(SettingsError) as caught:
        load({name: value})
    shown = value.replace("\n", "\\n").replace("\0", "\\x00")
    assert str(caught.value) == f"`{name}` in the environment must be {allowed}, not `{shown}`"


def test_a_long_value_is_told_in_part() -> None:
    with pytest.raises(SettingsError, match=r"not `x{80}…`$"):
        load({"GEN_WORKER_MAX_QUEUED": "x" * 10_000})


def test_a_bad_argument_is_named_by_its_field() -> None:
    with pytest.raises(SettingsError, match=r"^`max_queued` must be a whole number, not `True`$"):
        load({}, max_queued=True)


def test_a_secret_is_shown_neither_by_the_settings_nor_by_an_error() -> None:
    secrets = {"GEN_WORKER_TOKEN": "canary", "HF_TOKEN": "canary", "WORKER_JWT": "canary"}
    settings = load(secrets)
    assert "canary" not in repr(settings)
    assert (settings.token, settings.hf_token, settings.worker_jwt) == ("canary",) * 3
    for name in secrets:
        with pytest.raises(SettingsError) as caught:
            load({name: "canary\ncanary"})
        assert str(caught.value) == f"`{name}` in the environment must be one line of text"


def test_what_a_fetcher_goes_by_does_not_show_what_is_secret_either() -> None:
    names = ("HF_TOKEN", "CIVITAI_TOKEN", "MODELSCOPE_API_TOKEN", "COZY_HUB_TOKEN")
    proxies = {"HTTPS_PROXY": "http://bob:canary@proxy"}
    config = FetchConfig.of(load(dict.fromkeys(names, "canary")), env=proxies)
    assert config.hf_token == config.cozy_hub_token == "canary"
    assert "canary" not in repr(config)
    assert "hf_endpoint='https://huggingface.co'" in repr(config)


@pytest.mark.parametrize("name", ["HF_ENDPOINT", "COZY_HUB_URL", "GEN_WORKER_CIVITAI_ENDPOINT"])
@pytest.mark.parametrize("url", ["http://bob:canary@host/a", "https://canary@host", "bob:canary@host"])
def test_an_address_with_a_password_in_it_is_refused_without_showing_it(name: str, url: str) -> None:
    with pytest.raises(SettingsError, match=f"^`{name}` in the environment must be a URL ") as caught:
        load({name: url})
    assert "canary" not in str(caught.value)


@pytest.mark.parametrize("name", ["HF_HOME", "TENSORHUB_CACHE_DIR", "GEN_WORKER_RUN_DIR"])
def test_a_folder_that_is_set_may_begin_at_home_or_here(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    field = next(field for field, variable in VARIABLES.items() if name in variable.names)
    for text, path in (("~/models", tmp_path / "home/models"), ("models", tmp_path / "models")):
        assert str(getattr(load({name: text}), field)) == str(path)


def test_a_run_directory_is_absolute_wherever_it_is_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert load({"GEN_WORKER_RUN_DIR": "run"}).run_dir == tmp_path / "run"


def test_settings_can_be_read_where_the_current_folder_is_gone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert Settings.load(env={"GEN_WORKER_RUN_DIR": "/run/here"}).run_dir == Path("/run/here")
    with pytest.raises(SettingsError, match="must be an absolute path, as the current folder is gone, not `run`"):
        Settings.load(env={"GEN_WORKER_RUN_DIR": "run"})


def test_without_one_that_is_set_the_run_directory_is_the_systems_or_the_users(tmp_path: Path) -> None:
    assert load({"XDG_RUNTIME_DIR": str(tmp_path)}).run_dir in (Path("/run/gen-worker"), tmp_path / "gen-worker")
    assert load({}).run_dir.name.startswith("gen-worker")


@pytest.mark.parametrize(
    "names",
    [
        ("worker_jwt", "AUTH_TOKEN", "WORKER_JWT"),
        ("hf_token", "HF_TOKEN", "HUGGINGFACE_TOKEN", "HUGGINGFACEHUB_API_TOKEN"),
        ("civitai_token", "CIVITAI_API_KEY", "CIVITAI_TOKEN"),
        ("max_upload_bytes", "WORKER_MAX_UPLOAD_BYTES", "WORKER_MAX_OUTPUT_FILE_BYTES"),
        ("cache_dir", "TENSORHUB_CACHE_DIR", "WORKER_MODEL_CACHE_DIR"),
    ],
    ids=lambda names: names[0],
)
def test_of_several_variables_for_one_thing_the_first_that_is_set_counts(names: tuple[str, ...]) -> None:
    setting, *variables = names
    for at, variable in enumerate(variables):
        alone = load({variable: f"10{at}"})
        assert getattr(alone, setting) != getattr(load({}), setting)
        assert load({name: f"10{at + number}" for number, name in enumerate(variables[at:])}) == alone
        assert load({**dict.fromkeys(variables[:at], ""), variable: f"10{at}"}) == alone
