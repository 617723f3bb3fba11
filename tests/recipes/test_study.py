"""The arguments of configs/study.py."""

import itertools

import pytest

from configs.study import CHANGES, KINDS, get_config
from deit_jax.config import ConfigError


def test_a_word_changes_the_configuration_or_is_refused():
    for kind, word in itertools.product(KINDS, CHANGES):
        try:
            changed = get_config(f"{kind},{word}")
        except ConfigError as error:
            assert "would change nothing: leave it out" in str(error)
        else:
            assert changed != get_config(kind), (kind, word)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("none,transformer", r"study\.py:none,transformer: none has no teacher, so 'transformer'"),
        ("convnet,mixing,no_drop_path", "convnet has no stochastic depth, so 'no_drop_path'"),
    ],
)
def test_words_without_effect_are_refused(argument, message):
    with pytest.raises(ConfigError, match=message):
        get_config(argument)
