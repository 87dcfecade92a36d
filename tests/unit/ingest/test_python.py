"""What a Python file comes to."""

from __future__ import annotations

import pytest

from outbox.ingest.errors import UnreadableFile
from outbox.ingest.python import read_python


def read(source: str, module: str = "pkg.mod", is_package: bool = False, **named):
    return read_python(source.encode(), module, is_package, **named)


def keys(data) -> list[str]:
    return [part["key"] for part in data["parts"]]


def part(data, key: str):
    return next(p for p in data["parts"] if p["key"] == key)


def links(entity, kind: str) -> dict:
    return {link["target"]: link["properties"] for link in entity["links"] if link["kind"] == kind}


def test_every_definition_is_a_part_under_its_qualified_name():
    data = read("class A:\n def m(self):\n  def inner(): pass\n  class B:\n   async def n(self): pass\ndef f(): pass\n")
    inner = "A.m.<locals>."
    assert keys(data) == ["A", "A.m", f"{inner}inner", f"{inner}B", f"{inner}B.n", "f"]
    assert [p["kind"] for p in data["parts"]] == ["class", "method", "function", "class", "method", "function"]
    assert part(data, f"{inner}B.n")["properties"]["async"] is True
    assert "async" not in part(data, "f")["properties"]


def test_definitions_in_blocks_are_found():
    data = read(
        "if x:\n def a(): pass\nelse:\n def b(): pass\ntry:\n def c(): pass\nexcept E:\n def d(): pass\n"
        "finally:\n def e(): pass\nwith x:\n def f(): pass\nfor i in x:\n def g(): pass\nelse:\n def h(): pass\n"
        "while x:\n def i(): pass\nmatch x:\n case 1:\n  def j(): pass\n"
    )
    assert keys(data) == list("abcdefghij")


def test_repeated_names_are_numbered_in_source_order():
    data = read(
        "class C:\n @property\n def x(self): pass\n @x.setter\n def x(self, v): pass\ndef f(): pass\ndef f(): pass"
    )
    assert keys(data) == ["C", "C.x", "C.x@2", "f", "f@2"]


def test_a_name_declared_global_has_no_enclosing_name():
    data = read("def outer():\n global made\n def made():\n  def inner(): pass\n")
    assert keys(data) == ["outer", "made", "made.<locals>.inner"]


def test_the_module_contains_its_definitions_and_a_class_its_methods():
    data = read("class A:\n def m(self): pass\ndef f():\n def g(): pass")
    assert list(links(data, "contains")) == ["python-pkg.mod#A", "python-pkg.mod#f"]
    assert list(links(part(data, "A"), "contains")) == ["python-pkg.mod#A.m"]
    assert list(links(part(data, "f"), "contains")) == ["python-pkg.mod#f.<locals>.g"]


def test_imports_of_one_module_are_one_link_with_all_names():
    data = read("import os, a.b\nfrom json import loads, dumps\ndef f():\n from json import loads, JSONDecoder\n")
    assert links(data, "imports") == {
        "python-os": {},
        "python-a.b": {},
        "python-json": {"names": ["loads", "dumps", "JSONDecoder"]},
    }


@pytest.mark.parametrize(
    ("source", "module", "is_package", "target"),
    [
        ("from . import x", "a.b.c", False, "python-a.b"),
        ("from . import x", "a.b.c", True, "python-a.b.c"),
        ("from .d import x", "a.b.c", False, "python-a.b.d"),
        ("from ..d import x", "a.b.c", False, "python-a.d"),
        ("from ...d import x", "a.b.c", False, None),
        ("from . import x", "a", False, None),
        ("from . import x", "", False, None),
    ],
)
def test_relative_imports_are_resolved_against_the_package(source, module, is_package, target):
    found = links(read(source, module, is_package, stream="python-s"), "imports")
    assert list(found) == ([target] if target else [])


def calls(body: str) -> dict[str, int]:
    data = read(body)
    return {target: count["count"] for target, count in links(part(data, "f"), "calls").items()}


def test_calls_are_counted_per_target():
    assert calls("def g(): pass\ndef f():\n g(); g()\n [g() for _ in x]") == {"python-pkg.mod#g": 3}


@pytest.mark.parametrize(
    ("body", "target"),
    [
        ("class A: pass\ndef f(): A()", "python-pkg.mod#A"),
        ("class A:\n def m(): pass\ndef f(): A.m()", "python-pkg.mod#A.m"),
        ("def f():\n def g(): pass\n g()", "python-pkg.mod#f.<locals>.g"),
        ("def f(): f()", "python-pkg.mod#f"),
        ("import a.b\ndef f(): a.b.c()", "python-a.b#c"),
        ("import a.b as ab\ndef f(): ab.c()", "python-a.b#c"),
        ("from a import b\ndef f(): b()", "python-a#b"),
        ("from a import b as c\ndef f(): c()", "python-a#b"),
        ("from a import B\ndef f(): B.make()", "python-a#B.make"),
        ("from os import path\ndef f(): path.join()", "python-os.path#join"),
        ("from . import sub\ndef f(): sub.go()", "python-pkg.sub#go"),
        ("def f():\n from a import b\n b()", "python-a#b"),
        ("try:\n from a import g\nexcept ImportError:\n g = None\ndef f(): g()", "python-a#g"),
    ],
)
def test_a_call_leads_to_what_the_file_says_is_called(body, target):
    assert list(calls(body)) == [target]


@pytest.mark.parametrize(
    "body",
    [
        "def f(): print()",
        "def f(x): x()",
        "def g(): pass\ndef f(g): g()",
        "def g(): pass\ndef f():\n g = h\n g()",
        "def f(): super().m()",
        "def f(): a().b()",
        "from x import *\ndef f(): unknown()",
        "class A:\n def g(self): pass\ndef f(): g()",
        "from .... import g\ndef f(): g()",
    ],
)
def test_a_call_the_file_cannot_explain_is_dropped(body):
    assert calls(body) == {}


def test_methods_called_on_self_are_found_in_the_class_and_its_bases_here():
    data = read(
        "class Base:\n def low(self): pass\n"
        "class A(Base):\n def m(self): self.n(); self.low(); self.missing()\n def n(self): pass\n"
        " @classmethod\n def c(cls): cls.n()\n @staticmethod\n def s(x): x.n()\n"
    )
    assert list(links(part(data, "A.m"), "calls")) == ["python-pkg.mod#A.n", "python-pkg.mod#Base.low"]
    assert list(links(part(data, "A.c"), "calls")) == ["python-pkg.mod#A.n"]
    assert links(part(data, "A.s"), "calls") == {}


def test_classes_that_inherit_from_each_other_do_not_go_round_for_ever():
    data = read("class A(B):\n def m(self): self.x()\nclass B(A): pass\n")
    assert links(part(data, "A.m"), "calls") == {}
    assert list(links(part(data, "A"), "inherits")) == ["python-pkg.mod#B"]


def test_bases_are_linked_when_they_can_be_resolved():
    data = read("import abc\nfrom typing import Generic\nclass A(abc.ABC, Generic[T], make(), object): pass")
    assert list(links(part(data, "A"), "inherits")) == ["python-abc#ABC", "python-typing#Generic"]
    assert part(data, "A")["properties"]["bases"] == ["abc.ABC", "Generic[T]", "make()", "object"]


@pytest.mark.parametrize(
    "head",
    [
        "def f()",
        "def f(a, /, b: int = 1, *args, c, d: str = 'x', **kw) -> list[int]",
        "def f(*, a=None)",
        "async def f(a, b=(1, 2))",
        "class f(a.b, metaclass=M)",
        "class f",
    ],
)
def test_the_signature_is_the_definition_in_one_form(head):
    spread = head.replace(",", ",\n   ").replace("  #", "")
    assert part(read(f"{spread}: pass"), "f")["properties"]["signature"] == head


def test_without_a_docstring_the_text_is_the_signature_and_the_words_of_the_name():
    data = read("def parseHTTP_header(x): pass\ndef g():\n  'What g does.'\n")
    assert part(data, "parseHTTP_header")["text"] == "def parseHTTP_header(x)\nparse HTTP header"
    assert part(data, "g")["text"] == "What g does."


def test_the_module_has_its_docstring_and_facts():
    data = read('"""Doc."""\n@d.e\ndef f():\n    pass\n', path="pkg/mod.py")
    assert (data["kind"], data["name"], data["text"]) == ("module", "pkg.mod", "Doc.")
    assert data["properties"] == {"lines": 4, "package": False, "path": "pkg/mod.py", "module": "pkg.mod"}
    found = part(data, "f")["properties"]
    assert (found["line"], found["end_line"], found["decorators"]) == (3, 4, ["d.e"])


def test_a_prefix_is_part_of_every_target():
    data = read("import os\ndef f(): os.stat()", prefix="v2/")
    assert list(links(data, "imports")) == ["python-v2/os"]
    assert list(links(part(data, "f"), "calls")) == ["python-v2/os#stat"]
    assert list(links(data, "contains")) == ["python-v2/pkg.mod#f"]


def test_what_the_log_refuses_is_replaced():
    data = read('"""a\\ud800b\\x00c"""')
    assert data["text"] == "a�b�c"


def test_text_is_bounded():
    assert len(read(f'"""{"x" * 50_000}"""')["text"]) == 20_000


def test_a_name_too_long_for_a_key_is_cut_and_stays_unique():
    first, second = "x" * 5_000 + "a", "x" * 5_000 + "b"
    found = keys(read(f"def {first}(): pass\ndef {second}(): pass"))
    assert len(set(found)) == 2 and max(map(len, found)) <= 600


@pytest.mark.parametrize(
    "source",
    [
        "# -*- coding: latin-1 -*-\n'\xe9'".encode("latin-1"),
        b"\xef\xbb\xbf'\xc3\xa9'",
        "'\xe9'\r\n".encode(),
        "# coding: cp1252\n'\xe9'".encode("cp1252"),
    ],
)
def test_the_encoding_is_found_as_python_finds_it(source):
    assert read_python(source, "m")["text"] == "\xe9"


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (b"x = (\n", "a.py:1: '(' was never closed"),
        (b"x\x00y", "null bytes"),
        (b"'\xff'", "a.py:1: "),
        (b"# coding: nonsense\n", "unknown encoding"),
        (b"(" * 5_000, "a.py"),
        (b"-" * 100_000 + b"1", "nested too deeply"),
        (b"x = " + b"9" * 5_000, "a.py"),
    ],
)
def test_what_python_cannot_read_is_one_typed_line(source, said):
    with pytest.raises(UnreadableFile) as caught:
        read_python(source, "m", path="a.py")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_number_too_long_to_print_does_not_stop_the_file():
    data = read(f"def f(x=0x{'f' * 20_000}): pass")
    assert part(data, "f")["properties"]["signature"] == "def f(x=...)"


def test_dubious_source_warns_nobody(recwarn):
    read("x = '\\d'\nif x is 1: pass\n")
    assert not recwarn.list


def test_more_definitions_than_an_event_can_hold_are_refused():
    with pytest.raises(UnreadableFile, match="more than 20000"):
        read("def f():0\n" * 20_001)


def test_a_default_too_deep_to_print_does_not_stop_the_file():
    data = read(f"def f(a={'+'.join(['1'] * 2_000)}): pass")
    assert part(data, "f")["properties"]["signature"] == "def f(a=...)"
