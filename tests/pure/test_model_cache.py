"""The record of models for endpoints that load them themselves."""

import tempfile
import weakref
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import hypothesis
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

import gen_worker
from gen_worker.model_cache import ModelCache, ModelCacheStats, ModelLocation
from gen_worker.settings import Settings

NAMES = st.sampled_from("abcde")
SIZES = st.integers(0, 40).map(lambda quarters: quarters / 4)


def settings(folder: Path, env: Mapping[str, str] | None = None) -> Settings:
    return Settings.load(env={"WORKER_MODEL_CACHE_DIR": str(folder / "models"), **(env or {})}, folder=folder)


@pytest.fixture
def cache(tmp_path: Path) -> ModelCache:
    return ModelCache(10, settings=settings(tmp_path))


class Pipeline:
    """Something that can be seen to be gone."""


def test_the_limit_is_the_argument_else_the_variable_else_the_device_less_its_margin(tmp_path: Path) -> None:
    set_ = settings(tmp_path, {"WORKER_MAX_VRAM_GB": "8"})
    assert ModelCache(6, settings=set_).max_vram_gb == 6
    assert ModelCache(0, settings=set_).max_vram_gb == 0
    assert ModelCache(settings=set_).max_vram_gb == 8
    assert ModelCache(None, 1e9, settings=settings(tmp_path)).max_vram_gb == 0


@pytest.mark.gpu
def test_without_a_limit_it_is_what_the_gpu_has_less_the_margin(tmp_path: Path) -> None:
    whole = ModelCache(None, 0, settings=settings(tmp_path)).max_vram_gb
    assert whole > 1
    assert ModelCache(settings=settings(tmp_path)).max_vram_gb == pytest.approx(whole - 3.5)


def test_its_folder_is_made(tmp_path: Path) -> None:
    assert ModelCache(1, settings=settings(tmp_path)).model_cache_dir == tmp_path / "models"
    assert (tmp_path / "models").is_dir()
    ModelCache(1, model_cache_dir=tmp_path / "a" / "b", settings=settings(tmp_path))
    assert (tmp_path / "a" / "b").is_dir()


def test_downloads_at_once_are_what_the_variable_says(tmp_path: Path) -> None:
    assert ModelCache(1, settings=settings(tmp_path)).get_max_concurrent_downloads() == 2
    more = settings(tmp_path, {"WORKER_MAX_CONCURRENT_DOWNLOADS": "5"})
    assert ModelCache(1, settings=more).get_max_concurrent_downloads() == 5


def test_a_model_is_where_it_was_last_said_to_be(cache: ModelCache) -> None:
    assert not cache.has_model("a")
    cache.mark_downloading("a", 0.25)
    assert cache.has_model("a")
    assert cache.get_downloading_models() == ["a"]
    assert cache.get_download_progress("a") == 0.25
    cache.update_download_progress("a", 0.5)
    assert cache.get_download_progress("a") == 0.5
    cache.mark_cached_to_disk("a", "/models/a", 3)
    assert cache.is_on_disk("a")
    assert cache.get_download_progress("a") is None
    cache.update_download_progress("a", 0.9)
    assert cache.get_download_progress("a") is None
    pipeline = Pipeline()
    cache.mark_loaded_to_vram("a", pipeline, 4)
    assert cache.is_in_vram("a")
    assert not cache.is_on_disk("a")
    assert cache.get_pipeline("a") is pipeline
    cache.mark_cached_to_disk("a", "/models/a")
    assert cache.get_pipeline("a") is None
    assert cache.get_stats().vram_used_gb == 0
    assert cache.get_download_progress("never heard of") is None


def test_models_are_registered_where_they_are(cache: ModelCache) -> None:
    pipeline = Pipeline()
    cache.register_model("a", ModelLocation.VRAM, 2, pipeline, "/models/a")
    cache.register_model("b", "disk", 3, disk_path=Path("/models/b"))
    assert cache.get_pipeline("a") is pipeline
    assert cache.get_pipeline("b") is None
    assert cache.get_available_models() == ["a", "b"]
    with pytest.raises(ValueError, match="nowhere"):
        cache.register_model("c", "nowhere")


def test_the_least_recently_used_leave_and_only_as_many_as_needed(cache: ModelCache) -> None:
    for name in ("a", "b", "c"):
        cache.mark_cached_to_disk(name, f"/models/{name}")
        cache.mark_loaded_to_vram(name, Pipeline(), 3)
    assert cache.get_pipeline("a") is not None  # a use
    cache.mark_loaded_to_vram("d", Pipeline(), 4)
    assert cache.get_vram_models() == ["c", "a", "d"]
    assert cache.get_stats().vram_used_gb == 10
    assert cache.get_disk_models() == ["b"]


def test_who_leaves_and_is_not_on_disk_is_forgotten(cache: ModelCache) -> None:
    cache.mark_loaded_to_vram("a", Pipeline(), 8)
    cache.mark_loaded_to_vram("b", Pipeline(), 8)
    assert cache.get_all_models() == ["b"]


def test_a_pipeline_that_leaves_is_not_held_on_to(cache: ModelCache) -> None:
    def loaded(name: str) -> weakref.ref[Pipeline]:
        pipeline = Pipeline()
        cache.mark_loaded_to_vram(name, pipeline, 8)
        return weakref.ref(pipeline)

    first = loaded("a")
    second = loaded("b")
    assert first() is None
    cache.mark_cached_to_disk("b", "/models/b")
    assert second() is None
    third = loaded("c")
    assert cache.unload_model("c")
    assert third() is None


def test_a_model_that_is_loaded_anew_does_not_count_twice(cache: ModelCache) -> None:
    cache.mark_loaded_to_vram("a", Pipeline(), 6)
    cache.mark_loaded_to_vram("b", Pipeline(), 2)
    cache.mark_loaded_to_vram("a", Pipeline(), 7)
    assert cache.get_vram_models() == ["b", "a"]
    assert cache.get_stats().vram_used_gb == 9


def test_a_model_that_was_unloaded_is_unknown(cache: ModelCache) -> None:
    cache.mark_cached_to_disk("a", "/models/a")
    assert cache.unload_model("a")
    assert not cache.unload_model("a")
    assert not cache.has_model("a")


def test_what_others_can_make_room_for_fits(cache: ModelCache) -> None:
    cache.mark_loaded_to_vram("a", Pipeline(), 9)
    assert cache.can_fit_in_vram(10)
    assert not cache.can_fit_in_vram(10.1)


def test_models_are_available_when_all_are_there_and_none_only_comes(cache: ModelCache) -> None:
    cache.mark_cached_to_disk("a", "/models/a")
    cache.mark_loaded_to_vram("b", Pipeline(), 1)
    cache.mark_downloading("c")
    assert cache.are_models_available(["a", "b"])
    assert cache.are_models_available([])
    assert not cache.are_models_available(["a", "c"])
    assert not cache.are_models_available(["never heard of"])
    assert cache.get_all_models() == ["a", "b", "c"]


def test_figures_are_told_with_two_decimals(cache: ModelCache) -> None:
    cache.mark_loaded_to_vram("a", Pipeline(), 1 / 3)
    cache.mark_cached_to_disk("b", "/models/b", 2)
    cache.mark_downloading("c")
    stats = cache.get_stats()
    assert isinstance(stats, ModelCacheStats)
    assert stats.vram_available_gb == 10 - 1 / 3
    assert stats.to_dict() == {
        "vram_models": ["a"],
        "disk_models": ["b"],
        "downloading_models": ["c"],
        "vram_used_gb": 0.33,
        "vram_total_gb": 10.0,
        "vram_available_gb": 9.67,
        "total_models": 3,
        "vram_model_count": 1,
        "disk_model_count": 1,
    }


@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.floats(0, 10), st.booleans()), max_size=30))
def test_models_never_take_more_than_the_limit(
    tmp_path_factory: pytest.TempPathFactory, loads: list[tuple[str, float, bool]]
) -> None:
    cache = ModelCache(10, settings=settings(tmp_path_factory.getbasetemp()))
    for name, size_gb, use in loads:
        cache.mark_loaded_to_vram(name, None, size_gb)
        if use:
            cache.get_pipeline("a")
        stats = cache.get_stats()
        assert stats.vram_used_gb <= 10 + 1e-9
        assert cache.get_vram_models()[-1] in (name, "a")


class Account(RuleBasedStateMachine):
    """What is done to models one after the other, beside a plain account of it."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.cache = ModelCache(10, settings=settings(Path(self.folder.name)))
        self.where: dict[str, str] = {}
        self.sizes: dict[str, float] = {}
        self.on_disk: set[str] = set()

    def teardown(self) -> None:
        self.folder.cleanup()

    def put(self, name: str, where: str) -> None:
        self.where.pop(name, None)
        self.where[name] = where

    @rule(name=NAMES, size_gb=SIZES)
    def load(self, name: str, size_gb: float) -> None:
        self.cache.mark_loaded_to_vram(name, None, size_gb)
        self.where.pop(name, None)
        for victim in [each for each, where in self.where.items() if where == "vram"]:
            if size_gb + sum(self.sizes[each] for each, where in self.where.items() if where == "vram") <= 10:
                break
            if victim in self.on_disk:
                self.where[victim] = "disk"
            else:
                del self.where[victim]
        self.put(name, "vram")
        self.sizes[name] = size_gb

    @rule(name=NAMES)
    def cache_on_disk(self, name: str) -> None:
        self.cache.mark_cached_to_disk(name, f"/models/{name}")
        self.put(name, "disk")
        self.on_disk.add(name)

    @rule(name=NAMES, progress=st.floats(0, 1))
    def download(self, name: str, progress: float) -> None:
        self.cache.mark_downloading(name)
        self.cache.update_download_progress(name, progress)
        assert self.cache.get_download_progress(name) == progress
        self.put(name, "downloading")

    @rule(name=NAMES)
    def use(self, name: str) -> None:
        self.cache.get_pipeline(name)
        if self.where.get(name) == "vram":
            self.put(name, "vram")

    @rule(name=NAMES)
    def unload(self, name: str) -> None:
        assert self.cache.unload_model(name) is (self.where.pop(name, None) is not None)
        self.on_disk.discard(name)

    @invariant()
    def is_as_the_account_says(self) -> None:
        self.on_disk &= set(self.where)
        at = {each.value: [name for name, where in self.where.items() if where == each] for each in ModelLocation}
        stats = self.cache.get_stats()
        assert (stats.vram_models, stats.disk_models) == (at["vram"], at["disk"])
        assert stats.downloading_models == self.cache.get_downloading_models() == at["downloading"]
        assert self.cache.get_all_models() == list(self.where)
        assert self.cache.get_available_models() == at["vram"] + at["disk"]
        assert self.cache.are_models_available(self.where) is (not at["downloading"])
        assert stats.vram_used_gb == pytest.approx(sum(self.sizes[name] for name in at["vram"]))
        assert stats.vram_available_gb == pytest.approx(10 - stats.vram_used_gb, abs=1e-6)
        for name in "abcde":
            where = self.where.get(name)
            assert self.cache.has_model(name) is (where is not None)
            assert (self.cache.is_in_vram(name), self.cache.is_on_disk(name)) == (where == "vram", where == "disk")


TestAccount = Account.TestCase
TestAccount.settings = hypothesis.settings(max_examples=40, stateful_step_count=25, deadline=None)


def test_threads_may_use_it_at_once(cache: ModelCache) -> None:
    def use(name: str) -> None:
        for _ in range(20):
            cache.mark_loaded_to_vram(name, None, 4)
            cache.get_pipeline(name)
            cache.get_stats()
            cache.unload_model(name)

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(use, "abcd"))
    assert cache.get_all_models() == []


def test_what_threads_load_at_once_never_takes_more_than_the_limit(cache: ModelCache) -> None:
    over: list[float] = []

    def load(names: str) -> None:
        for name in names * 20:
            cache.mark_loaded_to_vram(name, None, 4)
            over.append(cache.get_stats().vram_used_gb)
            cache.mark_cached_to_disk(name, f"/models/{name}")
            cache.mark_downloading(name)

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(load, ("abc", "def", "ace", "bdf")))
    assert max(over) <= 10


def test_the_package_has_the_names_and_does_not_list_them() -> None:
    for name in ("ModelCache", "ModelCacheStats", "ModelLocation"):
        assert getattr(gen_worker, name).__module__ == "gen_worker.model_cache"
        assert name not in gen_worker.__all__
    assert [each.value for each in ModelLocation] == ["vram", "disk", "downloading"]
