"""What a slot's annotation asks for."""

from pathlib import Path, PosixPath
from typing import Annotated, Any, Optional

import pytest

from gen_worker.models.errors import ModelError
from gen_worker_child.models.annotations import Asked, annotations_of, asked


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
