from deit_jax.weights.layout import Renaming

NAMES = Renaming(
    [
        ("cls_token", "embeddings.cls"),
        ("blocks.{i}.fc1.{leaf}", "layer.{i}.ffn.0.{leaf}"),
        ("s{s}.b{n}.{leaf}", "block{s}.block{s}-{n0}.{leaf}"),
    ]
)


def test_renaming_is_invertible():
    for ours, theirs in (
        ("cls_token", "embeddings.cls"),
        ("blocks.11.fc1.bias", "layer.11.ffn.0.bias"),
        ("s3.b10.weight", "block3.block3-9.weight"),
    ):
        assert NAMES.theirs(ours) == theirs
        assert NAMES.ours(theirs) == ours


def test_names_without_template():
    for name in (
        "cls_tokens",
        "layer.x.ffn.0.bias",
        "layer.1.ffn.0.bias.extra",
        "block3.block4-9.weight",  # one field, two values
        "layer.\u0661.ffn.0.bias",  # another script's digit
        "",
    ):
        assert NAMES.ours(name) is None


def test_dots_are_literal():
    assert NAMES.ours("embeddingsxcls") is None
