"""Which files a payload names by URLs, and that they are its assets' files while the job runs."""

import dataclasses
from typing import Any

import msgspec
import pytest

from gen_worker.api.types import Asset, ImageAsset, Tensors
from gen_worker.utils.lora import Lora
from gen_worker.wire.messages import FRAME_LIMIT, MOST_INPUTS, InputAsset, InputFile, NeedsInputs
from gen_worker_child.inputs import filled, needed, refuse_paths

URL = "https://example.org/cat.png"


@dataclasses.dataclass
class Frame:
    image: ImageAsset


class Payload(msgspec.Struct):
    image: Asset | None = None
    several: list[Asset] = []
    by_name: dict[str, tuple[Asset, int]] = {}
    frame: Frame | None = None


class Deep(msgspec.Struct):
    image: Asset | None = None
    next: "Deep | None" = None


class Photo(ImageAsset):
    url_max_bytes: int | None = 1000
    url_allowed_mime_types: tuple[str, ...] = ("image/*",)


class Portrait(msgspec.Struct):
    photo: Photo


class Text(msgspec.Struct):
    text: str = URL


def urls(payload: msgspec.Struct) -> list[str]:
    return [asset.url for asset in needed(payload)]


def test_assets_behind_urls_are_needed_in_the_order_of_the_payload() -> None:
    payload = Payload(
        Asset("https://a/1"),
        [Asset("HTTP://a/2"), Asset("https://a/3")],
        {"x": (Asset("https://a/4"), 1), "y": (Asset("http://a/5"), 2)},
        Frame(ImageAsset("https://a/6")),
    )
    assert urls(payload) == [f"{'HTTP' if n == 2 else 'http' if n == 5 else 'https'}://a/{n}" for n in range(1, 7)]


@pytest.mark.parametrize(
    "asset",
    [
        Asset("pictures/cat.png"),
        Asset(URL, local_path="/here/cat.png"),
        Asset(URL, inline_bytes=b""),
        Asset("ftp://example.org/cat.png"),
        Asset("data:image/png;base64,AAAA"),
        Asset("file:///etc/passwd"),
        Asset(""),
    ],
)
def test_other_assets_are_not(asset: Asset) -> None:
    assert needed(Payload(asset)) == []


def test_a_text_that_is_a_url_is_a_text() -> None:
    assert needed(Text()) == []


def test_what_the_asset_allows_goes_with_it() -> None:
    asset = Asset(URL, url_max_bytes=5, url_allowed_mime_types=("image/png",), url_max_width=1, url_max_height=2)
    assert needed(Payload(asset)) == [InputAsset(URL, 5, ("image/png",), 1, 2, 0)]
    assert needed(Portrait(Photo(URL))) == [InputAsset(URL, 1000, ("image/*",))]


@pytest.mark.parametrize(("given", "limit"), [(-1, 0), (0, 0), (10**30, 1 << 53)])
def test_a_limit_that_no_frame_can_carry_stands_for_any(given: int, limit: int) -> None:
    (asset,) = needed(Payload(Asset(URL, url_max_bytes=given, url_max_pixels=given)))
    assert (asset.max_bytes, asset.max_pixels) == (limit, limit)
    msgspec.msgpack.encode(NeedsInputs(1, [asset]))


def test_assets_down_to_the_eighth_level_are_found() -> None:
    def nested(depth: int) -> Deep:
        value = Deep(Asset(URL))
        for _ in range(depth - 1):
            value = Deep(next=value)
        return value

    assert urls(nested(8)) == [URL]
    assert urls(nested(9)) == []


def test_more_files_than_may_be_are_refused_by_their_number() -> None:
    assert len(needed(Payload(several=[Asset(URL)] * MOST_INPUTS))) == MOST_INPUTS
    with pytest.raises(ValueError, match="it names 33 files by URLs, the limit is 32"):
        needed(Payload(several=[Asset(URL)] * (MOST_INPUTS + 1)))


def test_urls_that_do_not_fit_into_a_frame_are_refused_by_their_length() -> None:
    with pytest.raises(ValueError, match=r"the URLs of its files take \d+ bytes, the limit is"):
        needed(Payload(several=[Asset(f"{URL}?{'x' * 4000}")] * 20))
    most = NeedsInputs(1 << 60, needed(Payload(Asset(f"{URL}?{'x' * 64_000}"))))
    assert len(msgspec.msgpack.encode((1 << 60, 1 << 60, most))) <= FRAME_LIMIT


def test_the_files_are_their_assets_while_the_job_runs() -> None:
    payload = Payload(Asset("stored"), [Asset(URL), Asset("stored"), Asset(URL, mime_type="wrong/type")])
    first, second = InputFile("/in/0.png", 10, "image/png"), InputFile("/in/1.txt", 20, "text/plain")
    with filled(payload, [first, second]):
        found = [(each.local_path, each.size_bytes, each.mime_type) for each in payload.several]
        assert found == [("/in/0.png", 10, "image/png"), (None, None, None), ("/in/1.txt", 20, "text/plain")]
        assert payload.image == Asset("stored")
    assert [each.local_path for each in payload.several] == [None] * 3


@pytest.mark.parametrize("encoding", ["json", "msgpack"])
def test_a_payload_that_is_decoded_again_has_its_assets_in_the_same_places(encoding: str) -> None:
    coder: Any = msgspec.json if encoding == "json" else msgspec.msgpack
    names = [f"https://a/{number}" for number in range(20)]
    body = coder.encode({"by_name": {name: [{"ref": name}, 1] for name in names}})
    assert urls(coder.decode(body, type=Payload)) == urls(coder.decode(body, type=Payload)) == names


class Styled(msgspec.Struct):
    loras: list[Lora] = []


def test_weights_behind_urls_are_fetched_like_assets() -> None:
    payload = Styled([Lora(Tensors("https://host/a.safetensors")), Lora(Tensors("acme/b"))])
    assert needed(payload) == [InputAsset("https://host/a.safetensors")]
    with filled(payload, [InputFile("/x/a.safetensors", 7, "application/octet-stream")]):
        assert payload.loras[0].tensors.local_path == "/x/a.safetensors"
        assert payload.loras[0].tensors.size_bytes == 7
    assert payload.loras[0].tensors.local_path is None


def test_who_asks_from_elsewhere_names_no_weights_of_this_machine() -> None:
    with pytest.raises(ValueError, match="has no `local_path` here"):
        refuse_paths(Styled([Lora(Tensors("a", local_path="/etc/passwd"))]))
