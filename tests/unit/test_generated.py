"""The generated writers: what they write is what the strict ones do, and what they do not take is left to those."""

import datetime
import enum
import uuid
from collections import OrderedDict
from types import MappingProxyType

import pytest
from fastavro.schema import parse_schema
from hypothesis import given, settings
from hypothesis import strategies as st

from outbox import generated
from outbox.encoder import Encoder
from outbox.refusal import Refusal
from tests.unit.test_codec_properties import PLAIN, TYPES, anything, events, paths, replaced

MAX = 1 << 20
INNER = {"type": "record", "name": "Inner", "fields": [{"name": "n", "type": "long", "default": 3}]}
EVERYTHING = {
    "string": "string",
    "long": "long",
    "int": "int",
    "double": "double",
    "float": "float",
    "boolean": "boolean",
    "null": "null",
    "bytes": "bytes",
    "fixed": {"type": "fixed", "name": "Four", "size": 4},
    "enum": {"type": "enum", "name": "Suit", "symbols": ["hearts", "spades"]},
    "day": {"type": "int", "logicalType": "date"},
    "unknown": {"type": "string", "logicalType": "of our own"},
    "list": {"type": "array", "items": "long"},
    "map": {"type": "map", "values": ["null", "long", "double", "string", {"type": "array", "items": "string"}]},
    "record": INNER,
    "again": "Inner",
    "maybe_long": ["null", "long"],
    "maybe_double": ["double", "null"],
    "maybe_uuid": ["null", {"type": "string", "logicalType": "uuid"}],
    "uuid_maybe": [{"type": "string", "logicalType": "uuid"}, "null"],
    "maybe_record": ["null", "Inner"],
    "two_texts": ["Suit", "string"],
    "two_numbers": ["float", "double", "int", "long"],
    "only": ["string"],
}


class Text(str):
    pass


class Word(str, enum.Enum):
    LONG = "long"


GIVEN = [
    *(None, True, False, 0, 1, -1, 8191, 8192, 2**31, 2**63, 0.0, 1.5, -0.0, float("nan"), 1e300),
    *(
        "",
        "hearts",
        "Zürich",
        "x" * 9000,
        "a\0b",
        "\ud800",
        Text("hearts"),
        Word.LONG,
        b"",
        b"four",
        bytearray(b"four"),
    ),
    *([], [1, 2], (1, 2), [True], ["a"], [None], {}, {"n": 1}, {"n": "1"}, {"m": 1}, {1: 1}, {"a": [1]}, {"a": ["b"]}),
    *(OrderedDict(n=1), MappingProxyType({"n": 1}), {"x" * 100: 1}, {"a\0": 1}, {Text("n"): 1}, {None: 1}),
    *(datetime.date(2026, 1, 2), datetime.datetime(2026, 1, 2), uuid.UUID(int=7), str(uuid.UUID(int=7)), object()),
]


def encoder(**fields):
    return Encoder(
        parse_schema({"type": "record", "name": "Event", "fields": [{"name": n, **f} for n, f in fields.items()]})
    )


def outcome(encode, value):
    try:
        return encode(value, b"head", MAX)
    except Refusal as refusal:
        return (refusal.reason, refusal.field)


def quickly(encoder, value):
    """What the generated writer alone makes of it; None if it gives up."""
    out = bytearray(b"head")
    try:
        encoder._generate()(value, out, MAX)
    except Exception:
        return None
    return bytes(out)


def event_of(name, value):
    """A schema's event in which everything but the named field is absent or the smallest there is."""
    fields = {"record": {"type": INNER, "default": {}}, "enum": {"type": EVERYTHING["enum"], "default": "hearts"}}
    return encoder(**(fields | {name: {"type": EVERYTHING[name]}})), {name: value}


@pytest.mark.parametrize("name", EVERYTHING)
def test_each_type_is_written_as_the_strict_encoder_does_or_left_to_it(name):
    taken = 0
    for value in GIVEN:
        made, event = event_of(name, value)
        strict = outcome(made.encode_strictly, event)
        assert outcome(made.encode, event) == strict, value
        quick = quickly(made, event)
        assert quick in (None, strict), value
        taken += quick is not None
    assert bool(taken) is not name.startswith("two_")  # where two branches would do, the choice is the strict one's


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("string", "a"),
        ("list", [1, 2]),
        ("map", {"a": None, "b": 1, "c": 1.5, "d": "e", "f": ["g"]}),
        ("record", {"n": 1}),
    ]
    + [
        ("maybe_long", None),
        ("maybe_long", 7),
        ("maybe_uuid", uuid.UUID(int=7)),
        ("uuid_maybe", None),
        ("day", GIVEN[-5]),
    ]
    + [("maybe_record", {}), ("double", 2), ("enum", "spades"), ("again", {}), ("only", "a")],
)
def test_what_is_usual_is_taken_quickly(name, value):
    made, event = event_of(name, value)
    assert quickly(made, event) == made.encode_strictly(event, b"head", MAX)


@given(events())
@settings(max_examples=300, deadline=None)
def test_every_valid_event_of_the_built_in_types_is_taken_quickly_and_as_strictly(event):
    made = Encoder(TYPES[event[0]])
    assert quickly(made, event[1]) == made.encode_strictly(event[1], b"head", MAX)


@given(events(), anything, st.data())
@settings(max_examples=300, deadline=None)
def test_whatever_stands_anywhere_in_an_event_has_the_strict_encoders_outcome(event, intruder, data):
    type_, valid = event
    changed = replaced(valid, data.draw(st.sampled_from(sorted(paths(valid), key=repr))), intruder)
    made = Encoder(TYPES[type_])
    strict = outcome(made.encode_strictly, changed)
    assert outcome(made.encode, changed) == strict
    assert quickly(made, changed) in (None, strict)


@pytest.mark.parametrize("value", [{}, {"a": "b", "c": 1}, {"b": "a"}, [], None, OrderedDict(a="b")])
def test_a_missing_field_one_too_many_and_what_is_no_dict_are_left_to_the_strict_encoder(value):
    made = encoder(a={"type": "string"})
    assert quickly(made, value) is None
    assert outcome(made.encode, value) == outcome(made.encode_strictly, value)


def test_names_that_would_be_code_are_data():
    fields = {
        "class": {"type": "string"},
        "_": {"type": "long", "default": 1},
        "out": {"type": {"type": "map", "values": "long"}},
    }
    made = encoder(**fields)
    event = {"class": "import os", "out": {"); raise SystemExit(": 1}}
    assert quickly(made, event) == made.encode_strictly(event, b"head", MAX)


def test_data_that_outgrow_the_limit_are_refused_while_they_grow():
    made = encoder(rows={"type": {"type": "array", "items": {"type": "array", "items": "string"}}})
    shared = ["x" * 1000] * 1000

    out = bytearray()
    with pytest.raises(generated.GivenUpError):
        made._generate()({"rows": [shared] * 1000}, out, MAX)
    assert len(out) < 4 * MAX
    with pytest.raises(Refusal, match="larger than"):
        made.encode({"rows": [shared] * 1000}, b"", MAX)


def test_keys_are_kept_within_bounds():
    keys = generated._Keys()
    for n in range(3 * generated.KEYS_MAX):
        assert keys[f"k{n}"] == keys[f"k{n}"] == bytes([2 * len(f"k{n}")]) + f"k{n}".encode()
    assert keys["x" * 65] and keys[Text("text")]
    assert len(keys) == generated.KEYS_MAX


def test_a_schema_that_contains_itself_is_left_to_the_strict_encoder():
    made = encoder(
        tree={
            "type": {
                "type": "record",
                "name": "Tree",
                "fields": [{"name": "in", "type": {"type": "array", "items": "Tree"}}],
            }
        }
    )
    tree = {"in": []}
    for _ in range(70):
        tree = {"in": [tree]}
    with pytest.raises(Refusal, match="deeper"):
        made.encode({"tree": tree}, b"", MAX)


@pytest.mark.parametrize("kind", ["array", "map"])
@pytest.mark.parametrize("levels", [20, 21, 60])
def test_what_nests_deeper_than_python_does_is_left_to_the_strict_encoder(kind, levels):
    schema, value = "long", 7
    for _ in range(levels):
        schema = {"type": kind, {"array": "items", "map": "values"}[kind]: schema}
        value = [value] if kind == "array" else {"k": value}
    made = encoder(deep={"type": schema})
    event = {"deep": value}
    assert made.encode(event, b"head", MAX) == made.encode_strictly(event, b"head", MAX)


LEAVES = ["null", "boolean", "int", "long", "float", "double", "bytes", "string"]
LOGICAL = [
    {"type": "int", "logicalType": "date"},
    {"type": "string", "logicalType": "uuid"},
    {"type": "long", "logicalType": "timestamp-micros"},
    {"type": "bytes", "logicalType": "decimal", "precision": 4, "scale": 2},
    {"type": "string", "logicalType": "of our own"},
]


@st.composite
def schemas(draw):
    """A record of random types, some of which are named again."""
    names, numbers = [], iter(range(10_000))

    def named(schema):
        names.append(schema["name"])
        return schema

    def one(depth, inside_union=False):
        kinds = ["leaf", "leaf", "logical", "enum", "fixed"]
        kinds += ["named"] * bool(names) + ["array", "map", "record"] * (depth > 0)
        kinds += ["union"] * (depth > 0 and not inside_union)
        match draw(st.sampled_from(kinds)):
            case "leaf":
                return draw(st.sampled_from(LEAVES))
            case "logical":
                return dict(draw(st.sampled_from(LOGICAL)))
            case "enum":
                return named({"type": "enum", "name": f"E{next(numbers)}", "symbols": ["hearts", "spades"]})
            case "fixed":
                return named({"type": "fixed", "name": f"F{next(numbers)}", "size": 4})
            case "named":
                return draw(st.sampled_from(names))
            case "array":
                return {"type": "array", "items": one(depth - 1)}
            case "map":
                return {"type": "map", "values": one(depth - 1)}
            case "union":
                branches = [one(depth - 1, inside_union=True) for _ in range(draw(st.integers(1, 4)))]
                return list({_branch(branch): branch for branch in branches}.values())
        return record(depth - 1)

    def record(depth):
        name = f"R{next(numbers)}"
        fields = [
            {"name": f, "type": one(depth)}
            for f in draw(st.lists(st.sampled_from(["n", "a", "class"]), max_size=3, unique=True))
        ]
        for field in fields:
            if field["type"] in ("long", "double") and draw(st.booleans()):
                field["default"] = 3
        return named({"type": "record", "name": name, "fields": fields})

    return record(3)


def _branch(schema):
    """By which a union tells its branches apart."""
    return schema if isinstance(schema, str) else schema.get("name", schema["type"])


given_values = st.recursive(
    st.sampled_from([v for v in GIVEN if not isinstance(v, list | dict | tuple)]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["n", "a", "class", "", Text("n")]), inner, max_size=3)
    ),
    max_leaves=10,
)


RIGHT = PLAIN | {
    "int": st.integers(-(2**31), 2**31 - 1),
    "float": st.floats(width=32, allow_nan=False, allow_infinity=False),
    "enum": st.sampled_from(["hearts", "spades"]),
    "fixed": st.just(b"four"),
    "date": st.dates(),
    "uuid": st.uuids(),
    "timestamp-micros": st.datetimes(timezones=st.just(datetime.UTC)),
    "decimal": st.decimals(-99, 99, places=2),
}


def fitting(schema, named):
    """A strategy of values that are of the type, but for a few in them."""
    if isinstance(schema, list):
        return st.one_of([fitting(branch, named) for branch in schema])
    if isinstance(schema, str) and schema in named:
        return fitting(named[schema], named)
    kind = schema if isinstance(schema, str) else schema["type"]
    match kind:
        case "array":
            return st.lists(fitting(schema["items"], named), max_size=3)
        case "map":
            return st.dictionaries(st.sampled_from(["", "k", "n"]), fitting(schema["values"], named), max_size=3)
        case "record":
            return st.fixed_dictionaries({f["name"]: fitting(f["type"], named) for f in schema["fields"]})
    logical = None if isinstance(schema, str) else schema.get("logicalType")
    right = RIGHT.get(logical, RIGHT[kind])
    return st.integers(0, 19).flatmap(lambda n: right if n else given_values)


@given(schemas(), st.data())
@settings(max_examples=400, deadline=None)
def test_values_of_random_schemas_have_the_strict_encoders_outcome(schema, data):
    try:
        parsed = parse_schema(schema)
        made = Encoder(parsed)
    except ValueError:  # items of an array that take no bytes
        return
    value = data.draw(fitting(parsed, parsed["__named_schemas"]))
    strict = outcome(made.encode_strictly, value)
    assert outcome(made.encode, value) == strict
    assert quickly(made, value) in (None, strict)
