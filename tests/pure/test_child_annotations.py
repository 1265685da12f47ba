"""What a slot's annotation asks for."""

from pathlib import Path, PosixPath
from typing import Annotated, Any, Optional

import pytest

from gen_worker.api.slots import Asked, asked, takes_model
from gen_worker.models.errors import ModelError
from gen_worker_child.models.annotations import annotations_of


class Pipeline:
    @classmethod
    def from_pretrained(cls, path: str) -> "Pipeline":
        raise NotImplementedError


class Unbuildable:
    from_pretrained = "a word"


@pytest.mark.parametrize(
    "annotation", [None, str, object, Any, Unbuildable, "Pipeline", list[str], dict[str, Pipeline]]
)
def test_without_an_annotation_that_can_be_built_a_slot_gets_its_path_as_text(annotation: object) -> None:
    assert asked(annotation) == Asked("text")


@pytest.mark.parametrize("annotation", [Path, PosixPath, Path | None, Annotated[Path, "where"]])
def test_a_path_is_given_as_a_path(annotation: object) -> None:
    assert asked(annotation) == Asked("path")


@pytest.mark.parametrize(
    "annotation",
    [Pipeline, Optional[Pipeline], Pipeline | None, None | Pipeline, str | Pipeline, Annotated[Pipeline | None, 1]],  # noqa: UP045
)
def test_a_class_with_from_pretrained_is_built(annotation: object) -> None:
    assert asked(annotation) == Asked("built", Pipeline)


class Absent(type):
    """As transformers' stand-ins for classes whose library is not installed."""

    def __getattribute__(cls, name: str) -> object:
        if name.startswith("_"):
            return super().__getattribute__(name)
        raise ImportError("it needs a library that is not here")


class NotInstalled(metaclass=Absent):
    pass


def test_a_class_whose_library_is_not_installed_is_one_to_build() -> None:
    assert asked(NotInstalled) == Asked("built", NotInstalled)


@pytest.mark.parametrize(
    "annotation", [None, str, object, Any, type(None), Path | None, Pipeline, str | None, int | str, NotInstalled]
)
def test_what_a_path_or_an_object_of_the_class_is_takes_a_model(annotation: object) -> None:
    assert takes_model(annotation)


@pytest.mark.parametrize("annotation", [int, int | None, list[str], Unbuildable, dict[str, Pipeline], "Pipeline"])
def test_what_neither_a_path_nor_a_built_object_is_takes_no_model(annotation: object) -> None:
    assert not takes_model(annotation)


def test_annotations_that_are_written_as_strings_are_read_where_they_stand() -> None:
    def setup(self: object, pipeline: "Pipeline", folder: "Path", name, **others: str) -> None:  # type: ignore[no-untyped-def]
        pass

    found = annotations_of(setup, ["pipeline", "folder", "name", "more"])
    assert found == {"pipeline": Pipeline, "folder": Path, "name": None, "more": None}


def test_an_annotation_that_means_nothing_there_is_told_with_what_to_do() -> None:
    def setup(self: object, pipeline: "Missing") -> None:  # type: ignore[name-defined]  # noqa: F821
        pass

    with pytest.raises(ModelError, match=r"the annotation of `pipeline` in .*setup.* means nothing there") as raised:
        annotations_of(setup, ["pipeline"])
    assert raised.value.hint == "import the class at the top of the module, not under `TYPE_CHECKING`"
