import jax
import pytest

from deit_jax.errors import UserError
from deit_jax.parallel.mesh import make_mesh
from deit_jax.parallel.xla_options import xla_options


def test_pairs_are_parsed_by_type():
    mesh = make_mesh()
    assert xla_options(mesh, "") == {}
    options = xla_options(mesh, "xla_cpu_enable_fast_math=True, xla_cpu_prefer_vector_width=512")
    assert options == {"xla_cpu_enable_fast_math": True, "xla_cpu_prefer_vector_width": 512}
    assert jax.jit(lambda x: 2 * x, compiler_options=options)(3.0) == 6.0


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("xla_cpu_enable_fast_math", "is not name=value"),
        ("xla_cpu_enable_fast_maths=true", "No such compile option: 'xla_cpu_enable_fast_maths'"),
        ("xla_cpu_enable_fast_math=maybe", "'maybe' is not a valid bool value"),
    ],
)
def test_invalid_options_raise_one_line(given, message):
    with pytest.raises(UserError, match=r"config\.parallel\.xla_options") as error:
        xla_options(make_mesh(), given)
    assert message in str(error.value) and "\n" not in str(error.value)
