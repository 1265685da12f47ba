"""What a JSON schema says of a place in a value: its type, its members, whether bytes or a file belong there.

Pure. A schema may come from any server, so nothing of its form is taken for granted.
"""

from typing import Any, NamedTuple, TypeAlias

Schema: TypeAlias = dict[str, Any]

_ALTERNATIVES = 1000  # a reference in a schema from elsewhere may go round in a circle
_ASSET = {"ref", "local_path", "inline_bytes"}  # the fields that make a struct one that stands for a file
_TENSORS = {"ref", "local_path", "blob_digest"}
_TYPES = frozenset(("string", "integer", "number", "boolean", "null", "array", "object"))


class Place(NamedTuple):
    """Where in a value something stands: the whole schema, and the part for this place."""

    root: Schema | None
    here: Schema

    def resolved(self) -> "Place":
        """Return the place that this one refers to, or this one."""
        reference = self.here.get("$ref")
        if not isinstance(reference, str) or self.root is None:
            return self
        part: Any = self.root
        for step in reference.removeprefix("#/").split("/"):
            part = part.get(step) if isinstance(part, dict) else None
        return Place(self.root, part if isinstance(part, dict) else {})

    def members(self) -> "list[Place]":
        """Return the alternatives: those of the unions here, in their order, or the place itself."""
        found: list[Place] = []
        waiting, seen = [self.resolved()], 0
        while waiting and seen < _ALTERNATIVES:
            each, seen = waiting.pop(0), seen + 1
            union = each.here.get("anyOf") or each.here.get("oneOf")
            if isinstance(union, list):
                waiting[:0] = [Place(each.root, member).resolved() for member in union if isinstance(member, dict)]
            else:
                found.append(each)
        return found or [Place(self.root, {})]

    @property
    def kind(self) -> str:
        """The type here: a JSON type, `enum`, or nothing where the schema does not say."""
        if "enum" in self.here or "const" in self.here:
            return "enum"
        kind = self.here.get("type")
        return kind if isinstance(kind, str) and kind in _TYPES else ""

    def kinds(self) -> set[str]:
        """Return the types of all alternatives."""
        return {member.kind for member in self.members()}

    def fields(self) -> dict[str, Schema]:
        """Return the fields of the object here, by name."""
        properties = self.whole().here.get("properties")
        if not isinstance(properties, dict):
            return {}
        return {name: part for name, part in properties.items() if isinstance(part, dict)}

    def whole(self, like: object = None) -> "Place":
        """Return the object among the alternatives: the first, or the first that a value looks like."""
        objects = [member for member in self.members() if member.here.get("type") == "object"]
        if isinstance(like, dict):
            objects = [member for member in objects if _looks_like(like, member)] or objects
        return objects[0] if objects else Place(self.root, {})

    def below(self, name: str, like: object = None) -> "Place | None":
        """Return the place of the field `name`, None when the schema forbids it; `like` is the object, if there is."""
        whole = self.whole(like).here
        properties = whole.get("properties")
        part = properties.get(name) if isinstance(properties, dict) else None
        if isinstance(part, dict):
            return Place(self.root, part)
        others = whole.get("additionalProperties")
        if isinstance(others, dict):
            return Place(self.root, others)
        return None if "properties" in whole else Place(self.root, {})

    def item(self, index: int) -> "Place":
        """Return the place of an item of the array here."""
        for member in self.members():
            if member.here.get("type") == "array":
                first, rest = member.here.get("prefixItems"), member.here.get("items")
                part = first[index] if isinstance(first, list) and index < len(first) else rest
                return Place(self.root, part if isinstance(part, dict) else {})
        return Place(self.root, {})

    def is_bytes(self) -> bool:
        """Whether bytes belong here, written as base64."""
        return any(member.here.get("contentEncoding") == "base64" for member in self.members())

    def is_asset(self) -> bool:
        """Whether an `Asset` or `Tensors` belong here: an object that stands for a file."""
        fields = self.fields().keys()
        return fields >= _ASSET or fields >= _TENSORS


def _looks_like(value: dict[str, Any], place: Place) -> bool:
    required, fields = place.here.get("required"), place.fields()
    if isinstance(required, list) and not all(name in value for name in required):
        return False
    tags = {name: part["enum"] for name, part in fields.items() if isinstance(part.get("enum"), list)}
    return all(value[name] in tags[name] for name in tags if name in value)
