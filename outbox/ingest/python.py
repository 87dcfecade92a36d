"""A Python source file as an entity: the module, with each class and function as a part.

Pure: the data is a function of the bytes and the names given. Increase :data:`VERSION` with every
change of what comes out, so that files already in the log are read again.
"""

from __future__ import annotations

import ast
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, Final

from outbox.ingest.clean import NAME_CHARS_MAX, TEXT_CHARS_MAX, clean, words
from outbox.ingest.definitions import Definition, Scope, read_scopes
from outbox.ingest.errors import UnreadableFile
from outbox.ingest.names import Names
from outbox.ingest.naming import module_stream
from outbox.ingest.signature import signature, source_of

VERSION: Final = 1

DEFINITIONS_MAX: Final = 20_000
"""Definitions in one file: more come from generated code, and would make an event too large to relay."""

LISTED_MAX: Final = 100
"""Decorators or bases listed of one definition."""


def read_python(
    source: bytes, module: str, is_package: bool = False, *, stream: str | None = None, path: str = "", prefix: str = ""
) -> dict[str, Any]:
    """The data of an ``entity.upserted`` event for one file.

    ``module`` is its dotted name, empty if it cannot be imported; ``stream`` its stream (by default the
    module's); ``path`` its path for people. Links of kinds ``contains``, ``imports``, ``calls`` and
    ``inherits`` lead to keys that need not exist. The encoding is found as PEP 263 says.
    Raises :class:`UnreadableFile` and nothing else.
    """
    try:
        scopes = read_scopes(_parse(source, path))
        if len(scopes) > DEFINITIONS_MAX:
            raise UnreadableFile(f"{len(scopes) - 1} definitions are more than {DEFINITIONS_MAX}", path=path)
        stream = stream or module_stream(module, prefix)
        names = Names(scopes, stream, module, is_package=is_package, prefix=prefix)
        facts = {"lines": len(source.splitlines()), "package": is_package, "path": path, "module": module}
        return _entity(scopes, names, stream, facts)
    except (RecursionError, MemoryError) as error:
        raise UnreadableFile("nested too deeply to be read", path=path) from error


def _parse(source: bytes, path: str) -> ast.Module:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return ast.parse(source, filename=path or "<source>")
    except SyntaxError as error:
        raise UnreadableFile(error.msg or "invalid syntax", error.lineno, path) from error
    except (ValueError, LookupError, OverflowError) as error:
        raise UnreadableFile(str(error) or type(error).__name__, path=path) from error


def _entity(scopes: Sequence[Scope], names: Names, stream: str, facts: dict[str, Any]) -> dict[str, Any]:
    root = scopes[0]
    name = facts["module"] or facts["path"] or stream
    return {
        "kind": "module",
        "name": clean(name, NAME_CHARS_MAX),
        "text": _text(root.node) or clean(words(name)),
        "properties": {
            key: clean(fact) if isinstance(fact, str) else fact for key, fact in facts.items() if fact != ""
        },
        "links": [*_contains(root, stream), *_imports(names, scopes), *_calls(names, root)],
        "parts": [_part(s.definition, names, stream) for s in scopes if s.definition is not None],
    }


def _part(definition: Definition, names: Names, stream: str) -> dict[str, Any]:
    node, scope = definition.node, definition.scope
    head = clean(signature(node), NAME_CHARS_MAX)
    return {
        "key": definition.key,
        "kind": definition.kind,
        "name": clean(node.name, NAME_CHARS_MAX),
        "text": _text(node) or clean(f"{head}\n{words(node.name)}"),
        "properties": _properties(definition, head),
        "links": [*_contains(scope, stream), *_inherits(names, definition), *_calls(names, scope)],
    }


def _properties(definition: Definition, head: str) -> dict[str, Any]:
    node = definition.node
    found: dict[str, Any] = {
        "line": node.lineno,
        "end_line": node.end_lineno or node.lineno,
        "signature": head,
        "qualname": clean(definition.qualname, NAME_CHARS_MAX),
    }
    if node.decorator_list:
        found["decorators"] = _listed(node.decorator_list)
    if isinstance(node, ast.ClassDef) and node.bases:
        found["bases"] = _listed(node.bases)
    if isinstance(node, ast.AsyncFunctionDef):
        found["async"] = True
    return found


def _listed(expressions: Iterable[ast.expr]) -> list[str]:
    return [clean(source_of(e), NAME_CHARS_MAX) for e in list(expressions)[:LISTED_MAX]]


def _text(node: ast.AST) -> str:
    assert isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
    return clean(ast.get_docstring(node) or "", TEXT_CHARS_MAX).strip()


def _link(kind: str, target: str, **properties: Any) -> dict[str, Any]:
    return {"kind": kind, "target": target, "properties": properties}


def _contains(scope: Scope, stream: str) -> list[dict[str, Any]]:
    return [_link("contains", f"{stream}#{definition.key}") for definition in scope.defined]


def _imports(names: Names, scopes: Sequence[Scope]) -> list[dict[str, Any]]:
    return [
        _link("imports", target, **({"names": taken} if taken else {}))
        for target, taken in names.imports(scopes).items()
    ]


def _inherits(names: Names, definition: Definition) -> list[dict[str, Any]]:
    around = definition.scope.parent
    if not isinstance(definition.node, ast.ClassDef) or around is None:
        return []
    bases = (base.value if isinstance(base, ast.Subscript) else base for base in definition.node.bases)
    targets = dict.fromkeys(names.target(base, around) for base in bases)
    return [_link("inherits", target) for target in targets if target]


def _calls(names: Names, scope: Scope) -> list[dict[str, Any]]:
    counts = Counter(names.target(called, scope) for called in scope.calls)
    return [_link("calls", target, count=count) for target, count in counts.items() if target]
