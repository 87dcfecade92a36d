"""What a name in a Python module stands for, as far as the file alone can tell.

Only what is certain or conventional is resolved: definitions of this module, imported names,
``self``/``cls`` within a class. Parameters, variables, builtins and results of calls are not.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from outbox.ingest.clean import NAME_CHARS_MAX, bounded_key
from outbox.ingest.definitions import Definition, Scope
from outbox.ingest.naming import module_stream


@dataclass(frozen=True, slots=True)
class Imported:
    """``import module`` (no attribute) or ``from module import attribute``."""

    module: str
    attribute: str = ""


@dataclass(frozen=True, slots=True)
class Instance:
    """``self`` or ``cls``."""

    definition: Definition


@dataclass(frozen=True, slots=True)
class Opaque:
    """Bound to something only a run would show."""


Bound = Definition | Imported | Instance | Opaque

OPAQUE: Final = Opaque()


def absolute(node: ast.ImportFrom, module: str, *, is_package: bool) -> str | None:
    """The module that a ``from ... import`` names, or None if it lies outside every package."""
    if not node.level:
        return node.module
    parents = module.split(".") if module else []
    kept = len(parents) - node.level + is_package
    if kept < 1:
        return None
    return ".".join([*parents[:kept], *([node.module] if node.module else [])])


class Names:
    """The bindings of every scope of one module, and the link targets they lead to."""

    def __init__(
        self, scopes: Sequence[Scope], stream: str, module: str, *, is_package: bool = False, prefix: str = ""
    ) -> None:
        self._stream = stream
        self._module = module
        self._is_package = is_package
        self._prefix = prefix
        self._by_qualname: dict[str, Definition] = {}
        self._imported_modules: set[str] = set()
        for scope in scopes:
            if scope.definition is not None:
                self._by_qualname.setdefault(scope.definition.qualname, scope.definition)
        self._bindings = {scope: self._bind(scope) for scope in scopes}

    def target(self, expression: ast.expr, scope: Scope) -> str | None:
        """The key of what ``expression`` (a dotted name) stands for in ``scope``, or None."""
        dotted = _dotted(expression)
        if not dotted:
            return None
        match self._lookup(dotted[0], scope):
            case Definition() as definition:
                return self._member_target(definition, dotted[1:])
            case Instance(definition):
                return self._member_target(definition, dotted[1:]) if len(dotted) == 2 else None
            case Imported(module, ""):
                return self._in_module(module, dotted[1:])
            case Imported(module, attribute):
                return self._through(module, attribute, dotted[1:])
        return None

    def imports(self, scopes: Sequence[Scope]) -> dict[str, list[str]]:
        """Each imported module's stream with the names taken from it, in the order first met."""
        found: dict[str, list[str]] = {}
        for scope in scopes:
            for module, names in self._imported(scope):
                kept = found.setdefault(module_stream(module, self._prefix), [])
                kept.extend(name for name in dict.fromkeys(names) if name not in kept)
        return found

    def _imported(self, scope: Scope) -> Iterator[tuple[str, list[str]]]:
        for node in scope.imports:
            if isinstance(node, ast.Import):
                yield from ((alias.name, []) for alias in node.names)
            elif (module := absolute(node, self._module, is_package=self._is_package)) is not None:
                yield module, [alias.name for alias in node.names]

    def _bind(self, scope: Scope) -> dict[str, Bound]:
        """Definitions win over imports and imports over variables: ``try: import x / except: x = None``."""
        bound: dict[str, Bound] = dict.fromkeys(scope.assigned, OPAQUE)
        for node in scope.imports:
            bound.update(self._bind_import(node))
        first = _first_parameter(scope)
        if first and scope.parent is not None and scope.parent.definition is not None:
            bound[first] = Instance(scope.parent.definition)
        for definition in reversed(scope.defined):
            bound[definition.node.name] = definition
        for name in scope.global_names | scope.nonlocal_names:
            bound.pop(name, None)
        return bound

    def _bind_import(self, node: ast.Import | ast.ImportFrom) -> Iterator[tuple[str, Bound]]:
        if isinstance(node, ast.Import):
            for alias in node.names:
                self._imported_modules.update(_prefixes(alias.name))
                yield alias.asname or alias.name.partition(".")[0], _module_of(alias)
            return
        module = absolute(node, self._module, is_package=self._is_package)
        for alias in node.names:
            yield alias.asname or alias.name, Imported(module, alias.name) if module else OPAQUE

    def _lookup(self, name: str, scope: Scope) -> Bound | None:
        """Python's rule: the scope itself, then the functions around it and the module; never an outer class."""
        here: Scope | None = scope
        if name in scope.global_names:
            here = _module_scope(scope)
        while here is not None:
            if (here is scope or not here.is_class) and (bound := self._bindings[here].get(name)):
                return bound
            here = here.parent
        definition = self._by_qualname.get(name)
        return definition if definition is not None and name in scope.global_names else None

    def _member_target(self, definition: Definition, rest: Sequence[str]) -> str | None:
        if not rest:
            return self._part(definition.qualname)
        if definition.kind != "class":
            return None
        member = self._member(definition, ".".join(rest), set())
        return self._part(member.qualname) if member else None

    def _member(self, definition: Definition, name: str, seen: set[str]) -> Definition | None:
        """The class's own definition of ``name`` or, depth first, that of its bases in this module."""
        if definition.qualname in seen or not isinstance(definition.node, ast.ClassDef):
            return None
        seen.add(definition.qualname)
        if own := self._by_qualname.get(f"{definition.qualname}.{name}"):
            return own
        scope = definition.scope.parent
        for base in definition.node.bases if scope is not None else ():
            bound = self._lookup(base.id, scope) if scope is not None and isinstance(base, ast.Name) else None
            if isinstance(bound, Definition) and (found := self._member(bound, name, seen)):
                return found
        return None

    def _in_module(self, module: str, rest: Sequence[str]) -> str | None:
        """``a.b.c`` after ``import a.b``: what ``c`` is in the longest module known to be imported."""
        inner = list(rest)
        while inner and f"{module}.{inner[0]}" in self._imported_modules:
            module = f"{module}.{inner.pop(0)}"
        return self._elsewhere(module, ".".join(inner)) if inner else None

    def _through(self, module: str, attribute: str, rest: Sequence[str]) -> str:
        """``b.c`` after ``from a import b``: PEP 8's names tell a class ``b`` from a module ``b``."""
        if rest and not attribute[:1].isupper():
            return self._elsewhere(f"{module}.{attribute}", ".".join(rest))
        return self._elsewhere(module, ".".join([attribute, *rest]))

    def _part(self, qualname: str) -> str:
        return f"{self._stream}#{bounded_key(qualname)}"

    def _elsewhere(self, module: str, qualname: str) -> str:
        return f"{module_stream(module, self._prefix)}#{bounded_key(qualname)}"


def _dotted(expression: ast.expr) -> list[str]:
    """``a.b.c`` as its names; nothing for any other expression."""
    names: list[str] = []
    while isinstance(expression, ast.Attribute) and len(names) < NAME_CHARS_MAX:
        names.append(expression.attr)
        expression = expression.value
    return [expression.id, *reversed(names)] if isinstance(expression, ast.Name) else []


def _module_of(alias: ast.alias) -> Imported:
    return Imported(alias.name if alias.asname else alias.name.partition(".")[0])


def _prefixes(module: str) -> Iterator[str]:
    parts = module.split(".")
    return (".".join(parts[: n + 1]) for n in range(len(parts)))


def _module_scope(scope: Scope) -> Scope:
    while scope.parent is not None:
        scope = scope.parent
    return scope


def _first_parameter(scope: Scope) -> str | None:
    """The name that a method gives to its instance or class."""
    definition, arguments = scope.definition, scope.parameters
    if definition is None or definition.kind != "method" or arguments is None:
        return None
    if any(isinstance(d, ast.Name) and d.id == "staticmethod" for d in definition.node.decorator_list):
        return None
    return next((a.arg for a in [*arguments.posonlyargs, *arguments.args]), None)
