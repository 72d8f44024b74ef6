"""What there is to generate, in words: all families in a line each, or one of them whole."""

import inspect
from typing import Any, Literal, get_args, get_origin

from data_pipeline.base.config import Config
from data_pipeline.solvers.base import Parameters, Solver
from data_pipeline.solvers.registry import FAMILIES, find_family


def list_families() -> str:
    """One line a family: its name and its equation."""
    return "\n".join(f"{name:<28} {FAMILIES[name].equation}" for name in sorted(FAMILIES))


def describe_family(name: str) -> str:
    """A family's equation, scheme, channels, and parameters with their defaults. Raises ConfigError for no family."""
    family = find_family(name)
    lines = [name, "", inspect.cleandoc(family.__doc__ or ""), ""]
    facts = {
        "equation": family.equation,
        "scheme": f"{family.scheme} (version {family.version})",
        **_shape(family),
        "each trajectory": ", ".join(family.parameter_names) or "no parameters of its own",
    }
    lines += [f"{key:<16} {value}" for key, value in facts.items()]
    return "\n".join([*lines, "", "generate.parameters:", *_settings(family)])


def _shape(family: type[Solver[Any]]) -> dict[str, str]:
    """Axes and channels; what a family settles from its parameters only is left out."""
    found = {"axes": ", ".join(family.axes)}
    for title, name in (
        ("channels", "channels"),
        ("static channels", "static_channels"),
        ("boundaries", "boundaries"),
    ):
        value = getattr(family, name, ())
        if value:
            found[title] = ", ".join(value)
    extent = getattr(family, "extent", None)
    return found | ({"domain": " x ".join(f"[{low:g}, {high:g}]" for low, high in extent)} if extent else {})


def _settings(family: type[Solver[Any]]) -> list[str]:
    lines = []
    for name, field in family.parameters_class.model_fields.items():
        default = field.get_default()
        if isinstance(default, tuple) and len(default) == 2 and default[0] == default[1]:
            default = default[0]  # a fixed value of a range
        lines.append(f"  {name:<22} {default!s:<22} {_meaning(family.parameters_class, name)}".rstrip())
        lines += [f"  {'':<22} {choice}." for choice in _choices(field.annotation)]
    return lines


def _choices(annotation: Any) -> list[str]:
    """What a setting may be, where it is one of some words, or one of some groups of settings."""
    if get_origin(annotation) is Literal:
        return ["one of: " + ", ".join(map(str, get_args(annotation)))]
    lines: list[str] = []
    for part in get_args(annotation):
        if isinstance(part, type) and issubclass(part, Config):
            settings = ", ".join(f"{name}: {field.get_default()}" for name, field in part.model_fields.items())
            lines.append(f"{'or' if lines else 'either'} {{{settings}}}")
        else:
            lines += _choices(part)
    return lines


def _meaning(parameters: type[Parameters], name: str) -> str:
    """What a setting means; one that only has another default keeps the words of the class that it comes from."""
    for kind in parameters.__mro__:
        field = getattr(kind, "model_fields", {}).get(name)
        if field is not None and field.description:
            return " ".join(field.description.split())
    return ""
