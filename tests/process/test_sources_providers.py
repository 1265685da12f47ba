"""What providers say of a model is asked for, checked, and told in words that help when they refuse."""

import json
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec
import pytest

from gen_worker.fetch.cancel import Cancel
from gen_worker.fetch.config import FetchConfig
from gen_worker.fetch.network.patience import Patience
from gen_worker.fetch.network.transport import Transport
from gen_worker.fetch.sources import Resolved, resolve
from gen_worker.models.errors import ModelError
from gen_worker.models.manifest import ManifestFile
from gen_worker.models.selection import SelectionOptions
from gen_worker.models.wanted import SnapshotFile, Wanted
from gen_worker.testing import BadRange, Corrupt, Cut, LoopbackHub, Name, NoRange, NoSize, Pointer, Stall, Status

pytestmark = pytest.mark.process

HF = Wanted("hf", "acme/tiny")
HUB = Wanted("tensorhub", "acme/tiny", tag="prod")
CIVITAI = Wanted("civitai", "4201")
SCOPE = Wanted("modelscope", "acme/tiny")
QUICK = Patience(tries=3, seconds=5.0, first_delay_s=0.01, longest_delay_s=0.02, longest_retry_after_s=0.02)


def weights(dtype: str, length: int = 2000, padding: int = 0) -> bytes:
    """Return a safetensors file with one tensor, and a header that is longer by some bytes."""
    size = length * {"F32": 4, "F16": 2, "BF16": 2}[dtype]
    entry = {"w": {"dtype": dtype, "shape": [length], "data_offsets": [0, size]}}
    header = json.dumps(entry).encode() + b" " * padding
    return len(header).to_bytes(8, "little") + header + bytes(size)


PIPELINE: Mapping[str, bytes] = {
    "README.md": b"# tiny",
    "model_index.json": json.dumps(
        {
            "_class_name": "StableDiffusionPipeline",
            "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
            "scheduler": ["diffusers", "PNDMScheduler"],
            "unet": ["diffusers", "UNet2DConditionModel"],
            "vae": ["diffusers", "AutoencoderKL"],
        }
    ).encode(),
    "safety_checker/config.json": b"{}",
    "safety_checker/model.safetensors": weights("F16"),
    "scheduler/scheduler_config.json": b"{}",
    "unet/config.json": b"{}",
    "unet/diffusion_pytorch_model.bin": b"pickle" * 500,
    "unet/diffusion_pytorch_model.safetensors": weights("BF16"),
    "vae/config.json": b'{"a": 1}',
    "vae/diffusion_pytorch_model.fp16.safetensors": weights("F16"),
    "vae/diffusion_pytorch_model.safetensors": weights("F32"),
}
NEEDED = (
    "model_index.json",
    "scheduler/scheduler_config.json",
    "unet/config.json",
    "unet/diffusion_pytorch_model.safetensors",
    "vae/config.json",
    "vae/diffusion_pytorch_model.fp16.safetensors",
)
SINGLE: Mapping[str, bytes] = {"config.json": b"{}", "model.safetensors": weights("BF16")}


@pytest.fixture
def hub() -> Iterator[LoopbackHub]:
    with LoopbackHub() as hub:
        yield hub


def config(hub: LoopbackHub, **changes: Any) -> FetchConfig:
    url = hub.url
    plain = FetchConfig(
        root="/nowhere",
        hf_cache="/nowhere",
        hf_endpoint=url,
        civitai_endpoint=url,
        modelscope_endpoint=url,
        cozy_hub_url=url,
    )
    return msgspec.structs.replace(plain, **changes)


def ask(
    hub: LoopbackHub,
    wanted: Wanted,
    snapshot: list[SnapshotFile] | None = None,
    cancel: Cancel | None = None,
    **changes: Any,
) -> Resolved:
    given = config(hub, **changes)
    with Transport(given, QUICK) as transport:
        return resolve(wanted, given, transport, cancel or Cancel(), snapshot)


def refused(hub: LoopbackHub, wanted: Wanted, **changes: Any) -> ModelError:
    with pytest.raises(ModelError) as caught:
        ask(hub, wanted, **changes)
    error = caught.value
    assert error.ref == wanted.ref
    assert "?" not in str(error) + error.hint.replace("?modelVersionId", "")
    assert hub.token not in str(error) + error.hint
    return error


def paths(resolved: Resolved) -> tuple[str, ...]:
    return tuple(file.path for file in resolved.manifest.files)


def get(hub: LoopbackHub, resolved: Resolved, file: ManifestFile) -> bytes:
    """Return the content of a file, asked for as a download asks."""
    token = "" if file.signed else resolved.token
    with Transport(config(hub), QUICK) as transport:
        answer = transport.open(file.url, token=token, token_for=resolved.token_for, cancel=Cancel())
        with answer as response:
            return response.read()


# --- Hugging Face -----------------------------------------------------------------------------------------------------


def test_of_a_pipeline_what_it_needs_is_found_with_digests_sizes_and_urls(hub: LoopbackHub) -> None:
    commit = hub.add_repo("acme/tiny", PIPELINE, lfs_from=1024)
    resolved = ask(hub, HF)
    manifest = resolved.manifest
    assert (manifest.ref, manifest.commit, manifest.notes) == ("acme/tiny", commit, ())
    assert paths(resolved) == NEEDED
    for file in manifest.files:
        assert file.size == len(PIPELINE[file.path])
        assert file.algorithm == ("sha256" if len(PIPELINE[file.path]) >= 1024 else "git-sha1")
        assert file.etag == file.digest
        assert not file.signed
        assert get(hub, resolved, file) == PIPELINE[file.path]
    assert {file.path for file in manifest.listing} == set(PIPELINE)
    assert not [request for request in hub.requests if request.path.endswith(".bin")]


def test_the_token_goes_to_the_hub_and_never_to_its_cdn(hub: LoopbackHub) -> None:
    hub.add_repo("acme/tiny", PIPELINE, private=True)
    resolved = ask(hub, HF, hf_token=hub.token)
    assert (resolved.token, resolved.token_for) == (hub.token, hub.url)
    assert hub.token not in repr(resolved)
    assert [request for request in hub.requests if request.origin == "cdn"], "a header was read from there"
    assert hub.leaks == []


def test_a_revision_stands_for_the_commit_that_it_is_now(hub: LoopbackHub) -> None:
    first = hub.add_repo("acme/tiny", SINGLE, revision="refs/pr/1")
    hub.add_repo("acme/tiny", {**SINGLE, "extra.json": b"{}"})
    resolved = ask(hub, Wanted("hf", "acme/tiny", revision="refs/pr/1"))
    assert resolved.manifest.commit == first
    assert resolved.manifest.ref == "acme/tiny@refs/pr/1"
    assert "extra.json" not in paths(resolved)
    assert ask(hub, Wanted("hf", "acme/tiny", revision=first)).manifest.commit == first
    hub.add_repo("acme/tiny", {**SINGLE, "more.json": b"{}"}, revision="refs/pr/1")
    assert "more.json" in paths(ask(hub, Wanted("hf", "acme/tiny", revision="refs/pr/1")))


def test_a_listing_of_several_pages_is_read_to_its_end(hub: LoopbackHub) -> None:
    many = {f"tokenizer/{number:04}.json": b"{}" for number in range(2345)}
    hub.add_repo("acme/tiny", {**SINGLE, **many})
    assert len(ask(hub, HF).manifest.files) == 2347


def test_names_that_urls_escape_are_asked_for_as_they_are(hub: LoopbackHub) -> None:
    odd = {"a b#c?d%20e&f+ü.json": b'{"odd": true}', "config.json": b"{}"}
    hub.add_repo("acme/tiny", odd)
    resolved = ask(hub, HF)
    assert {file.path: get(hub, resolved, file) for file in resolved.manifest.files} == odd


def test_only_fp32_is_taken_with_a_note_and_refused_where_that_is_forbidden(hub: LoopbackHub) -> None:
    hub.add_repo("acme/tiny", {"config.json": b"{}", "model.safetensors": weights("F32")})
    assert "nothing smaller than fp32" in ask(hub, HF).manifest.notes[0]
    error = refused(hub, HF, selection=SelectionOptions(precisions=("bf16", "fp16")))
    assert error.kind == "no_weights"


def test_a_header_longer_than_the_first_bytes_is_read_whole(hub: LoopbackHub) -> None:
    hub.add_repo("acme/tiny", {"config.json": b"{}", "model.safetensors": weights("F32", padding=300_000)})
    assert "nothing smaller than fp32" in ask(hub, HF).manifest.notes[0]
    hub.fail("*model.safetensors", NoRange())
    assert "nothing smaller than fp32" in ask(hub, HF).manifest.notes[0]


@pytest.mark.parametrize("fault", [Pointer(), BadRange()])
def test_weights_that_cannot_be_looked_into_are_left_to_the_download_to_judge(hub: LoopbackHub, fault: Any) -> None:
    hub.add_repo("acme/tiny", {"config.json": b"{}", "model.safetensors": weights("F32")})
    hub.fail("model.safetensors", fault)
    assert paths(ask(hub, HF)) == ("config.json", "model.safetensors")


def test_a_size_that_the_hub_does_not_know_is_left_open(hub: LoopbackHub) -> None:
    hub.add_repo("acme/tiny", SINGLE)
    hub.fail("model.safetensors", NoSize())
    assert {file.path: file.size for file in ask(hub, HF).manifest.files} == {
        "config.json": 2,
        "model.safetensors": None,
    }


@pytest.mark.parametrize(
    ("private", "token"), [(False, ""), (False, "right"), (True, ""), (True, "denied")], ids=lambda each: str(each)
)
def test_a_repository_that_is_missing_or_hidden_is_told_alike(hub: LoopbackHub, private: bool, token: str) -> None:
    hub.denied.add("denied")
    if private:
        hub.add_repo("acme/tiny", SINGLE, private=True)
    error = refused(hub, HF, hf_token=hub.token if token == "right" else token)
    assert error.kind == "not_found"
    assert "`acme/tiny` is not on" in str(error)
    assert f"{hub.url}/acme/tiny" in error.hint
    assert "HF_TOKEN" in error.hint


def test_a_token_that_is_refused_is_told_as_that(hub: LoopbackHub) -> None:
    hub.add_repo("acme/tiny", SINGLE)
    error = refused(hub, HF, hf_token="hf_wrong")
    assert error.kind == "unauthorized"
    assert "the token in `HF_TOKEN` is refused" in str(error)
    assert "hf_wrong" not in str(error) + error.hint


@pytest.mark.parametrize("files", [(), ("config.json",)])
@pytest.mark.parametrize("token", ["", "denied"])
def test_a_gated_model_is_told_with_where_its_terms_are(hub: LoopbackHub, token: str, files: tuple[str, ...]) -> None:
    hub.denied.add("denied")
    hub.add_repo("acme/tiny", SINGLE, gated=True)
    error = refused(hub, Wanted("hf", "acme/tiny", files=files), hf_token=token)
    assert error.kind == "gated"
    assert f"accept them at {hub.url}/acme/tiny" in error.hint
    assert ("HF_TOKEN" in error.hint) == (token == "")
    assert paths(ask(hub, Wanted("hf", "acme/tiny", files=files), hf_token=hub.token))


def test_a_revision_that_is_missing_is_told_as_that(hub: LoopbackHub) -> None:
    hub.add_repo("acme/tiny", SINGLE)
    error = refused(hub, Wanted("hf", "acme/tiny", revision="v9"))
    assert error.kind == "revision_not_found"
    assert "`acme/tiny` has no revision `v9`" in str(error)


@pytest.mark.parametrize(("status", "kind"), [(503, "unreachable"), (500, "unreachable"), (429, "rate_limited")])
@pytest.mark.parametrize("route", ["api:*/revision/*", "api:*/tree/*", "resolve:*", "config.json"])
def test_an_outage_is_never_told_as_a_model_that_is_missing(
    hub: LoopbackHub, route: str, status: int, kind: str
) -> None:
    hub.add_repo("acme/tiny", SINGLE)
    hub.fail(route, Status(status, {"Retry-After": "0"}))
    error = refused(hub, HF)
    assert error.kind == kind
    assert error.retryable


def test_what_passes_is_tried_again(hub: LoopbackHub) -> None:
    hub.add_repo("acme/tiny", PIPELINE)
    hub.fail("api:*", Status(503), times=2)
    hub.fail("model_index.json", Cut(after=20), times=2)
    hub.fail("unet/*.safetensors", Cut(after=50), times=2)
    assert paths(ask(hub, HF)) == NEEDED


@pytest.mark.parametrize("wanted", [HF, SCOPE], ids=lambda wanted: wanted.provider)
def test_what_decides_the_choice_is_checked_against_its_digest(hub: LoopbackHub, wanted: Wanted) -> None:
    hub.add_repo("acme/tiny", PIPELINE)
    hub.add_modelscope("acme/tiny", PIPELINE)
    hub.fail("model_index.json", Corrupt(at=3), times=2)
    assert paths(ask(hub, wanted)) == NEEDED
    hub.fail("model_index.json", Corrupt(at=3))
    error = refused(hub, wanted)
    assert (error.kind, error.file) == ("digest_mismatch", "model_index.json")


def test_a_hub_that_is_not_there_is_told_with_its_address() -> None:
    with LoopbackHub() as hub, LoopbackHub() as gone:
        url = gone.url
        gone.close()
        error = refused(hub, HF, hf_endpoint=url)
    assert error.kind == "unreachable"
    assert url.removeprefix("http://") in str(error)


@pytest.mark.parametrize(
    "path", ["../../evil.json", "/etc/passwd", "a\\..\\b", "tokenizer/\0", "UNET/CONFIG.json/../x"]
)
@pytest.mark.parametrize("wanted", [HF, SCOPE, HUB], ids=lambda wanted: wanted.provider)
def test_a_hostile_name_in_a_listing_is_refused(hub: LoopbackHub, wanted: Wanted, path: str) -> None:
    hub.add_repo("acme/tiny", PIPELINE)
    hub.add_modelscope("acme/tiny", PIPELINE)
    hub.add_snapshot("acme/tiny", PIPELINE)
    hub.fail("README.md", Name(path))
    assert refused(hub, wanted).kind == "bad_manifest"


def test_two_names_that_are_one_on_some_disks_are_refused(hub: LoopbackHub) -> None:
    hub.add_repo("acme/tiny", {**SINGLE, "b.json": b"{}"})
    hub.fail("b.json", Name("CONFIG.json"))
    assert refused(hub, HF).kind == "bad_manifest"


@pytest.mark.parametrize("repo", ["../x", "acme", "acme/../..", "acme/tiny%3Fx", "acme/tiny#a", "acme/ti ny"])
def test_what_is_no_ref_is_never_asked_for(hub: LoopbackHub, repo: str) -> None:
    assert refused(hub, Wanted("hf", repo)).kind == "not_found"
    assert hub.requests == []


def test_a_cancel_ends_the_asking_at_once(hub: LoopbackHub) -> None:
    hub.add_repo("acme/tiny", PIPELINE)
    hub.fail("model_index.json", Stall(after=10, seconds=30))
    cancel = Cancel()
    ended: list[tuple[str, float]] = []

    def work() -> None:
        try:
            ask(hub, HF, cancel=cancel)
        except ModelError as error:
            ended.append((error.kind, time.monotonic()))

    thread = threading.Thread(target=work)
    thread.start()
    deadline = time.monotonic() + 10
    while not [each for each in hub.requests if each.path.endswith("model_index.json")]:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    began = time.monotonic()
    cancel.set()
    thread.join(10)
    kind, at = ended[0]
    assert kind == "canceled"
    assert at - began < 0.2


# --- the platform's hub -----------------------------------------------------------------------------------------------


def test_a_snapshot_comes_whole_with_signed_urls_and_without_credentials(hub: LoopbackHub) -> None:
    digest = hub.add_snapshot("acme/tiny", PIPELINE, private=True)
    resolved = ask(hub, HUB, cozy_hub_token=hub.token)
    assert resolved.manifest.commit == digest.removeprefix("blake3:")
    assert set(paths(resolved)) == set(PIPELINE)
    for file in resolved.manifest.files:
        assert (file.signed, file.algorithm, file.size) == (True, "blake3", len(PIPELINE[file.path]))
        assert get(hub, resolved, file) == PIPELINE[file.path]
    assert hub.leaks == []


def test_tags_flavors_and_digests_name_snapshots(hub: LoopbackHub) -> None:
    prod = hub.add_snapshot("acme/tiny", SINGLE)
    beta = hub.add_snapshot("acme/tiny", {**SINGLE, "beta": b"1"}, tag="beta")
    small = hub.add_snapshot("acme/tiny", {**SINGLE, "small": b"1"}, flavor="fp8")

    def found(**changes: Any) -> str:
        return f"blake3:{ask(hub, Wanted('tensorhub', 'acme/tiny', **changes)).manifest.commit}"

    assert found() == found(tag="prod") == prod
    assert found(tag="beta") == beta
    assert found(flavor="fp8") == small
    assert found(digest=beta) == beta


def test_a_url_that_is_over_is_replaced_by_a_new_one(hub: LoopbackHub) -> None:
    hub.add_snapshot("acme/tiny", PIPELINE)
    given = config(hub)
    with Transport(given, QUICK) as transport:
        resolved = resolve(HUB, given, transport, Cancel())
        assert resolved.fresh is not None
        for file in resolved.manifest.files:
            renewed = resolved.fresh(file, Cancel())
            assert renewed.url != file.url
            assert msgspec.structs.replace(renewed, url=file.url) == file
            assert get(hub, resolved, renewed) == PIPELINE[file.path]


def test_a_hub_whose_address_is_not_set_is_told_with_the_variable(hub: LoopbackHub) -> None:
    error = refused(hub, HUB, cozy_hub_url="")
    assert error.kind == "not_configured"
    assert "COZY_HUB_URL" in error.hint


def test_what_the_hub_refuses_is_told_with_its_variable(hub: LoopbackHub) -> None:
    error = refused(hub, HUB)
    assert (error.kind, "COZY_HUB_TOKEN" in error.hint) == ("not_found", True)
    error = refused(hub, HUB, cozy_hub_token="wrong")
    assert (error.kind, "COZY_HUB_TOKEN" in error.hint) == ("unauthorized", True)
    assert refused(hub, Wanted("tensorhub", "acme/tiny", digest="blake3:../x")).kind == "bad_manifest"


def test_a_snapshot_that_an_orchestrator_describes_is_taken_without_asking_anybody(hub: LoopbackHub) -> None:
    files = hub.signed_files("acme/tiny", PIPELINE)
    digest = hub.add_snapshot("acme/tiny", PIPELINE)
    resolved = ask(hub, HUB, files, cozy_hub_url="")
    assert hub.requests == []
    assert resolved.manifest.commit == digest.removeprefix("blake3:"), "the tree's digest where none is named"
    assert set(paths(resolved)) == set(PIPELINE)
    assert all(file.signed and file.algorithm == "blake3" for file in resolved.manifest.files)
    assert resolved.token == ""
    pinned = ask(hub, Wanted("tensorhub", "acme/tiny", digest="blake3:" + "ab" * 32), files)
    assert pinned.manifest.commit == "ab" * 32


@pytest.mark.parametrize(
    "change",
    [{"path": "../x"}, {"path": "a"}, {"path": "B"}, {"blake3": "00"}, {"blake3": ""}, {"size_bytes": -1}],
    ids=str,
)
def test_a_described_snapshot_that_cannot_be_is_refused(hub: LoopbackHub, change: Mapping[str, Any]) -> None:
    good = [SnapshotFile(name, 1, "ab" * 32, f"{hub.cdn_url}/x?signature=1") for name in ("a", "b")]
    with pytest.raises(ModelError) as caught:
        ask(hub, HUB, [*good, msgspec.structs.replace(good[0], **{"path": "c", **change})])
    assert caught.value.kind == "bad_manifest"
    assert "signature" not in str(caught.value)
    with pytest.raises(ModelError, match="has no files"):
        ask(hub, HUB, [])


# --- Civitai ----------------------------------------------------------------------------------------------------------


def test_of_a_civitai_model_the_latest_version_or_the_named_one_is_taken(hub: LoopbackHub) -> None:
    hub.add_civitai("4201", {"old.safetensors": weights("F16")}, version="100")
    hub.add_civitai("4201", {"new.safetensors": weights("BF16"), "new.yaml": b"x"}, version="200")
    latest = ask(hub, CIVITAI)
    assert (latest.manifest.commit, paths(latest)) == ("200", ("new.safetensors",))
    file = latest.manifest.files[0]
    assert (file.algorithm, file.size) == ("sha256", len(weights("BF16")))
    assert get(hub, latest, file) == weights("BF16")
    for version in ("100", "versions/100", "https://civitai.com/models/4201?modelVersionId=100"):
        assert paths(ask(hub, Wanted("civitai", "4201", version=version))) == ("old.safetensors",)
    assert paths(ask(hub, Wanted("civitai", "versions/100"))) == ("old.safetensors",)


def test_of_a_civitai_version_only_safetensors_are_taken_unless_it_is_trusted(hub: LoopbackHub) -> None:
    hub.add_civitai("4201", {"a.ckpt": b"x" * 2000, "b.safetensors": weights("F16")}, version="1")
    assert paths(ask(hub, CIVITAI)) == ("b.safetensors",)
    hub.add_civitai("4201", {"a.ckpt": b"x" * 2000, "a.yaml": b"x"}, version="2")
    error = refused(hub, CIVITAI)
    assert error.kind == "no_weights"
    assert "has no safetensors, but `a.ckpt`" in str(error)
    assert paths(ask(hub, CIVITAI, selection=SelectionOptions(allow_pickle=("4201",)))) == ("a.ckpt",)


def test_the_civitai_token_goes_to_its_own_host_only(hub: LoopbackHub) -> None:
    hub.add_civitai("4201", {"a.safetensors": weights("F16")}, version="1", gated=True)
    resolved = ask(hub, CIVITAI, civitai_token=hub.token)
    assert get(hub, resolved, resolved.manifest.files[0]) == weights("F16")
    assert hub.leaks == []


def test_what_civitai_refuses_is_told_with_its_variable(hub: LoopbackHub) -> None:
    error = refused(hub, CIVITAI)
    assert (error.kind, "(civitai_not_found)" in str(error)) == ("not_found", True)
    assert refused(hub, Wanted("civitai", "4201", version="9")).kind == "not_found"
    assert refused(hub, Wanted("civitai", "4201", version="v9")).kind == "not_found"
    hub.fail("api:*", Status(401))
    error = refused(hub, CIVITAI)
    assert (error.kind, "CIVITAI_API_KEY" in error.hint) == ("unauthorized", True)
    assert "(civitai_access_denied)" in str(error)
    hub.heal()
    hub.add_civitai("4201", {"readme.txt": b"none"}, version="2")
    assert "(civitai_no_supported_files)" in str(refused(hub, Wanted("civitai", "4201", version="2")))
    hub.add_civitai("4201", {"../evil.safetensors": weights("F16")}, version="1")
    assert refused(hub, CIVITAI).kind == "bad_manifest"


# --- ModelScope -------------------------------------------------------------------------------------------------------


def test_of_a_modelscope_pipeline_what_it_needs_is_found(hub: LoopbackHub) -> None:
    hub.add_modelscope("acme/tiny", PIPELINE)
    resolved = ask(hub, SCOPE)
    assert paths(resolved) == NEEDED
    for file in resolved.manifest.files:
        assert (file.algorithm, file.size) == ("sha256", len(PIPELINE[file.path]))
        assert get(hub, resolved, file) == PIPELINE[file.path]
    assert resolved.manifest.commit == ask(hub, SCOPE).manifest.commit
    hub.add_modelscope("acme/tiny", {**PIPELINE, "vae/config.json": b"{}"})
    assert resolved.manifest.commit != ask(hub, SCOPE).manifest.commit
    assert hub.leaks == []


def test_a_modelscope_listing_that_is_cut_short_is_asked_for_by_folder(hub: LoopbackHub) -> None:
    many = {f"part{part}/sub/{number:04}.json": b"{}" for part in range(2) for number in range(2000)}
    hub.add_modelscope("acme/tiny", {**SINGLE, **many})
    assert set(paths(ask(hub, SCOPE))) == {*SINGLE, *many}


def test_what_modelscope_refuses_is_told_with_its_variable(hub: LoopbackHub) -> None:
    error = refused(hub, SCOPE)
    assert (error.kind, "MODELSCOPE_API_TOKEN" in error.hint) == ("not_found", True)
    hub.add_modelscope("acme/tiny", SINGLE)
    error = refused(hub, Wanted("modelscope", "acme/tiny", revision="v9"))
    assert (error.kind, "no revision `v9`" in str(error)) == ("not_found", True)
    assert refused(hub, SCOPE, modelscope_token="wrong").kind == "unauthorized"
    assert paths(ask(hub, SCOPE, modelscope_token=hub.token))


# --- all of them ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wanted", [HF, HUB, CIVITAI, SCOPE], ids=lambda wanted: wanted.provider)
@pytest.mark.parametrize("status", [404, 403, 401, 418, 503, 429])
def test_every_refusal_is_an_error_that_names_the_model(hub: LoopbackHub, wanted: Wanted, status: int) -> None:
    hub.fail("api:*", Status(status))
    error = refused(hub, wanted)
    assert wanted.repo in str(error)
    assert not str(error).endswith(".")


@pytest.mark.parametrize("wanted", [HF, HUB, CIVITAI, SCOPE], ids=lambda wanted: wanted.provider)
def test_an_answer_that_is_no_answer_is_told_with_its_address(hub: LoopbackHub, wanted: Wanted) -> None:
    hub.fail("api:*", Status(200))
    error = refused(hub, wanted)
    assert error.kind == "download_failed"
    assert f"{hub.url}/api/" in str(error)
