"""The first line of a definition, in one form whatever its layout."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from outbox.ingest.definitions import Defined


def signature(node: Defined) -> str:
    """``def name(a, b=1) -> int`` or ``class Name(Base)``: no decorators, no colon."""
    if isinstance(node, ast.ClassDef):
        inner = [*map(source_of, node.bases), *map(_keyword, node.keywords)]
        return f"class {node.name}({', '.join(inner)})" if inner else f"class {node.name}"
    start = "async def" if isinstance(node, ast.AsyncFunctionDef) else "def"
    end = f" -> {source_of(node.returns)}" if node.returns is not None else ""
    return f"{start} {node.name}({', '.join(_parameters(node.args))}){end}"


def source_of(node: ast.expr) -> str:
    """The expression as source. The usual ones are written here: ``ast.unparse`` is ten times slower."""
    match node:
        case ast.Name(id=name):
            return name
        case ast.Constant(value=None | bool() as value):
            return str(value)
        case ast.Attribute(value=ast.Name(id=name), attr=attribute):
            return f"{name}.{attribute}"
    try:
        return ast.unparse(node)
    except (ValueError, RecursionError):  # an integer too long to be printed, or too deep for ast's own recursion
        return "..."


def _keyword(node: ast.keyword) -> str:
    return f"{node.arg}={source_of(node.value)}" if node.arg else f"**{source_of(node.value)}"


def _parameters(arguments: ast.arguments) -> Iterator[str]:
    positional = [*arguments.posonlyargs, *arguments.args]
    missing: list[ast.expr | None] = [None] * (len(positional) - len(arguments.defaults))
    for place, (argument, default) in enumerate(zip(positional, [*missing, *arguments.defaults], strict=True), 1):
        yield _parameter(argument, default)
        if place == len(arguments.posonlyargs):
            yield "/"
    if arguments.vararg:
        yield f"*{_parameter(arguments.vararg)}"
    elif arguments.kwonlyargs:
        yield "*"
    yield from map(_parameter, arguments.kwonlyargs, arguments.kw_defaults)
    if arguments.kwarg:
        yield f"**{_parameter(arguments.kwarg)}"


def _parameter(argument: ast.arg, default: ast.expr | None = None) -> str:
    if argument.annotation is None:
        return argument.arg if default is None else f"{argument.arg}={source_of(default)}"
    typed = f"{argument.arg}: {source_of(argument.annotation)}"
    return typed if default is None else f"{typed} = {source_of(default)}"
