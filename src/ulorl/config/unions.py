"""Sections whose keys depend on their `kind`: a union of classes, of which `kind` chooses one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import UnionType
from typing import Annotated, Any, TypeAlias, Union, get_args, get_origin

from pydantic import GetCoreSchemaHandler
from pydantic_core import core_schema

from ulorl.config.fields import StrictConfig

Variants: TypeAlias = Mapping[str, type[StrictConfig]]


@dataclass(frozen=True)
class ByKind:
    """Marks a union of sections: `Reward = Annotated[MathConfig | ExactConfig, ByKind("...")]`.

    A table that names no kind is of the first one. description: of the key `kind`.
    """

    description: str

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        variants = variants_of(source)

        def kind(value: Any) -> str | None:
            return kind_in(variants, value) if isinstance(value, Mapping) else getattr(value, "kind", None)

        return core_schema.tagged_union_schema(
            {kind: handler.generate_schema(variant) for kind, variant in variants.items()}, discriminator=kind
        )


def variants_of(annotation: Any) -> Variants:
    """Return the sections that an annotation allows: by their kind, or one section without kinds by "".

    A plain value has none.
    """
    if get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    if _is_section(annotation):
        return {"": annotation}
    members = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else ()
    if members and all(map(_is_section, members)):
        return {get_args(member.model_fields["kind"].annotation)[0]: member for member in members}
    return {}


def named_variants_of(annotation: Any) -> Variants:
    """Return the sections of a table whose names are free, `dict[str, SECTION]`; none for any other annotation."""
    return variants_of(get_args(annotation)[1]) if get_origin(annotation) is dict else {}


def kind_in(variants: Variants, table: Any) -> str:
    """Return the kind that a table names, or the default one. What is no kind at all is returned as text."""
    default = next(iter(variants))
    return str(table.get("kind", default)) if default and isinstance(table, Mapping) else default


def _is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and get_origin(annotation) is None and issubclass(annotation, StrictConfig)
