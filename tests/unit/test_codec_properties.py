"""Properties of the codec over arbitrary data of every built-in type."""

import copy

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from outbox.codec import Registry
from outbox.errors import InvalidEvent

REGISTRY = Registry.load()
TYPES = {version.type: version.parsed for version in REGISTRY.check()}

text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12)
PLAIN = {
    "null": st.none(),
    "boolean": st.booleans(),
    "long": st.integers(-(2**63), 2**63 - 1),
    "double": st.floats(allow_nan=False, allow_infinity=False),
    "string": text,
    "bytes": st.binary(max_size=12),
}


def values(schema, named):
    """A strategy of valid values, straight from the schema."""
    match schema:
        case list():
            return st.one_of([values(branch, named) for branch in schema])
        case str() if schema in named:
            return values(named[schema], named)
        case str():
            return PLAIN[schema]
        case {"type": "array"}:
            return st.lists(values(schema["items"], named), max_size=3)
        case {"type": "map"}:
            return st.dictionaries(text, values(schema["values"], named), max_size=3)
    fields = {field["name"]: values(field["type"], named) for field in schema["fields"]}
    return st.fixed_dictionaries(fields)


def events():
    return st.one_of([st.tuples(st.just(t), values(schema, schema["__named_schemas"])) for t, schema in TYPES.items()])


def exactly(value):
    """The value with the types of its numbers, for which Python's == does not ask."""
    if isinstance(value, dict):
        return {key: exactly(item) for key, item in value.items()}
    if isinstance(value, list):
        return [exactly(item) for item in value]
    return (type(value), repr(value))


@given(events())
@settings(max_examples=300, deadline=None)
def test_every_valid_event_decodes_to_exactly_itself(event):
    type_, data = event
    assert exactly(REGISTRY.decode(type_, REGISTRY.encode(type_, data))) == exactly(data)


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.binary(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5) | st.integers(), inner, max_size=3),
    max_leaves=8,
)


@given(events(), anything, st.data())
@settings(max_examples=300, deadline=None)
def test_whatever_is_accepted_decodes_equal_and_all_else_is_an_invalid_event(event, intruder, data):
    type_, valid = event
    path = data.draw(st.sampled_from(sorted(paths(valid), key=repr)))
    changed = replaced(valid, path, intruder)
    try:
        coded = REGISTRY.encode(type_, changed)
    except InvalidEvent:
        return
    assert covers(exactly(REGISTRY.decode(type_, coded)), exactly(changed))


POISON = ["\0", "a\0b", "\ud800", "x\udfff", float("nan"), float("inf"), float("-inf")]


@given(events(), st.sampled_from(POISON), st.data())
@settings(max_examples=300, deadline=None)
def test_poison_anywhere_is_refused_at_its_own_path(event, poison, data):
    type_, valid = event
    path = data.draw(st.sampled_from(sorted((p for p in paths(valid) if p), key=repr)))
    with pytest.raises(InvalidEvent) as caught:
        REGISTRY.encode(type_, replaced(valid, path, poison))
    assert caught.value.field == written(path)


@given(events(), st.data())
@settings(max_examples=300, deadline=None)
def test_corrupt_bytes_never_raise_anything_but_an_invalid_event(event, data):
    type_, valid = event
    coded = bytearray(REGISTRY.encode(type_, valid))
    for _ in range(data.draw(st.integers(1, 3))):
        coded[data.draw(st.integers(0, len(coded) - 1))] = data.draw(st.integers(0, 255))
    try:
        assert isinstance(REGISTRY.decode(type_, bytes(coded)), dict)
    except InvalidEvent as error:
        assert "\n" not in str(error)


def covers(decoded, given):
    """Whether everything given is there, unchanged; defaults may have joined it."""
    if isinstance(given, dict):
        return given.keys() <= decoded.keys() and all(covers(decoded[key], given[key]) for key in given)
    if isinstance(given, list):
        return len(given) == len(decoded) and all(map(covers, decoded, given))
    return decoded == given


def paths(value, path=()):
    """The path of the value and of everything inside it."""
    yield path
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for step, item in inside:
        yield from paths(item, (*path, step))


def replaced(value, path, new):
    if not path:
        return new
    changed = copy.copy(value)
    changed[path[0]] = replaced(value[path[0]], path[1:], new)
    return changed


def written(path):
    steps = [
        f"[{s}]" if isinstance(s, int) else f".{s}" if s.isidentifier() and s.isascii() else f"[{s!a}]" for s in path
    ]
    return "".join(steps).removeprefix(".")
