"""Records to write: plain ones that differ by a number, and odd ones that stores are known to bend."""

from __future__ import annotations

import math
import random
from typing import Any

from projectors.record import Document, Edge, Node, Record, Row, Value, Vector

DIMENSIONS = 8

TEXTS = {
    "emoji": "👩‍👩‍👧‍👦 🏴‍☠️ 🇺🇳",
    "right to left": "שלום مرحبا \u202eabc\u202c",
    "combining": "e\u0301 n\u0303 क्षि",
    "not normalized": "\ufb01 \u00e9 e\u0301 \u212b",
    "control characters": "".join(chr(c) for c in range(1, 32)) + "\x7f\x85\u2028\u2029\ufeff",
    "quotes and backslashes": "'\"`\\\\ \\n \\u0041 ''; \"\" $$ $1 %s {0} {{x}}",
    "empty": "",
    "blank": "  \t\n ",
    "beyond the basic plane": "𝒳𐍈\U0010ffff",
    "long": "wörter " * 150_000,  # about 1 MB in UTF-8
}

NUMBERS: dict[str, Any] = {
    "2^53": 2**53,
    "2^53 + 1": 2**53 + 1,
    "-(2^53 + 1)": -(2**53) - 1,
    "2^63 - 1": 2**63 - 1,
    "-2^63": -(2**63),
    "one": 1,
    "one as a float": 1.0,
    "minus zero": -0.0,
    "zero": 0,
    "smallest": 5e-324,
    "greatest": 1.7976931348623157e308,
    "tenth": 0.1,
    "third": 1 / 3,
    "many digits": 1234567890.1234567,
    "big as a float": 1e22,
    "true": True,
    "false": False,
}

LISTS: dict[str, Any] = {
    "texts": ["b", "a", "", "a", "é"],
    "ints": [3, 1, 2, 2**63 - 1],
    "floats": [1.0, -0.0, 0.1],
    "bools": [True, False],
    "one item": ["x"],
    "empty list": [],
    "ints and floats": [1, 1.0, 2.5],
    "all kinds": [1, "1", True, 1.0],
}

NESTED: dict[str, Any] = {
    "null": None,
    "object": {"a": {"b": [1, {"c": None}]}, "": "", "é": [[], {}]},
    "lists of lists": [[1], [2.0, "x"], []],
}

NAMES = {
    "_v": 1,
    "_s": "x",
    "_m": "{}",
    "_id": 2,
    "_version": 99,
    "id": "z",
    "key": "other",
    "stream": "s",
    "version": 77,
    "kind": "k",
    "name": "n",
    "text": "t",
    "embedding": "e",
    "properties": "p",
    "chroma:document": "d",
    "with space": 1,
    "dotted.name": 2,
    "dotted": 3,
    "back`tick": 4,
    'quo"te': 5,
    "$dollar": 6,
    "é": 7,
    "名": 8,
    "UPPER": 9,
    "upper": 10,
}

KEYS = [
    "plain",
    "Plain",
    " plain",
    "plain ",
    "a/b?c=d&e#f%20",
    "*",
    "key:* OR 1=1 --",
    "'; DROP TABLE x; --",
    '{"match_all": {}}',
    "(a)-[:B]->(c) RETURN n",
    "$where",
    "`tick`",
    "_underscore",
    ".",
    "..",
    "e\u0301",
    "\u00e9",
    "👩‍👩‍👧‍👦",
    "מפתח",
    "new\nline",
    "tab\tand\x01control",
    "back\\slash",
    "0",
    "00",
    "null",
    "k" * 1_000,
    "k" * 999 + "l",
    "é" * 500,
]


def sample(kind: type, key: str, n: int = 0) -> Record:
    """The ``n``-th content of ``key``. Contents differ in every part; some names come and go with ``n``."""
    plain: dict[str, Any] = {"n": n, "ratio": n + 0.5, "even": n % 2 == 0, "label": f"label {n}", f"only_{n % 3}": n}
    listed = {**plain, "tags": [f"tag{n}", "common"], "counts": [n, n + 1]}
    if kind is Vector:
        return Vector(key, f"text {n} of a thing", plain, embedding(f"{key} {n}"))
    if kind is Node:
        return Node(key, f"Kind{n % 2}", f"name {n}", listed, edges(n))
    if kind is Document:
        return Document(key, f"kind{n % 2}", f"title {n}", f"text {n} of a thing", listed)
    if kind is Row:
        return Row(key, {**listed, "inner": {"n": n, "none": None}})
    assert kind is Value, f"no sample of {kind}"
    return Value(key, {"n": n, "listed": listed})


def edges(n: int) -> list[Edge]:
    """Edges to some of ``k0`` .. ``k4``: as ``n`` grows they come, change and go."""
    return [Edge(f"EDGE{i % 2}", f"k{(n + i) % 5}", {"n": n, "label": f"edge {i}"}) for i in range(n % 4)]


def embedding(seed: str, dimensions: int = DIMENSIONS) -> list[float]:
    """A vector of any length other than zero; not of length one, which some stores would bring it to."""
    source = random.Random(seed)
    return [source.uniform(-3, 3) for _ in range(dimensions)]


def oddities(kind: type) -> dict[str, Record]:
    """Records that a careless store bends, by what is odd about them. Keys are ``odd0``, ``odd1``, ..."""
    bodies: dict[str, tuple[str, dict[str, Any]]] = {}
    bodies |= {f"text: {name}": (text, {"a": 1}) for name, text in TEXTS.items()}
    bodies |= {f"property: {name}": ("t", {"p": text}) for name, text in TEXTS.items() if name != "long"}
    bodies |= {f"number: {name}": ("t", {"p": number}) for name, number in NUMBERS.items()}
    bodies["numbers together"] = ("t", {f"p{i}": number for i, number in enumerate(NUMBERS.values())})
    bodies["no properties"] = ("t", {})
    bodies["many properties"] = ("t", {f"name_{i}": i for i in range(200)})
    bodies["properties' names"] = ("t", NAMES)
    if kind is not Vector:
        bodies |= {f"list: {name}": ("t", {f"list_{i}": v}) for i, (name, v) in enumerate(LISTS.items())}
    if kind in (Row, Value):
        bodies |= {f"nested: {name}": ("t", {f"nested_{i}": v}) for i, (name, v) in enumerate(NESTED.items())}
    odd = {name: _shaped(kind, f"odd{i}", *body) for i, (name, body) in enumerate(bodies.items())}
    return odd | _shapes(kind, len(odd))


def _shaped(kind: type, key: str, text: str, properties: dict[str, Any]) -> Record:
    if kind is Vector:
        return Vector(key, text, properties, embedding(key))
    if kind is Node:
        return Node(key, "Kind", text, properties, [Edge("ODD", "odd0", properties)])
    if kind is Document:
        return Document(key, "kind", text, text, properties)
    if kind is Row:
        return Row(key, {"body": text, **properties})
    return Value(key, {"body": text, **properties})


def _shapes(kind: type, start: int) -> dict[str, Record]:
    """Oddities that only one kind has."""
    keys = (f"odd{i}" for i in range(start, start + 100))
    if kind is Vector:
        vectors = {
            "tiny": [1e-38] * DIMENSIONS,
            "huge": [1e18, -1e18] * (DIMENSIONS // 2),
            "one axis": [1.0] + [0.0] * (DIMENSIONS - 1),
            "not a float32": [math.pi] * DIMENSIONS,
        }
        return {f"vector: {name}": Vector(next(keys), "t", {"a": 1}, v) for name, v in vectors.items()}
    if kind is Node:
        names = {"edge kind": [Edge("lower case é `x`", "odd0")], "edge target": [Edge("E", k) for k in KEYS]}
        kinds = {"node's kind": "kind `with` space é", "another kind": "KIND"}
        return {n: Node(next(keys), "Kind", "n", {}, e) for n, e in names.items()} | {
            n: Node(next(keys), k, "n") for n, k in kinds.items()
        }
    if kind is Document:
        return {"document's kind": Document(next(keys), "kind `with` space é", "t", "t")}
    if kind is Value:
        bare: list[Any] = [None, True, 0, 1.0, "", "text", [], {}, [None]]
        return {f"bare {value!r}": Value(next(keys), value) for value in bare}
    return {}
