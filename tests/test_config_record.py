from deit_jax.config_record import differing_fields


def test_differing_fields_are_listed_by_dotted_name():
    one = {"a": {"b": 1, "c": [1, 2]}, "d": None}
    assert differing_fields(one, {"a": {"b": 1, "c": [1, 2]}, "d": None}) == []
    assert differing_fields(one, {"a": {"b": 2, "c": [1]}, "e": 3}) == ["a.b", "a.c", "e"]
