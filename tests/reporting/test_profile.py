import jax
import jax.numpy as jnp

from deit_jax.reporting.profile import Profile


def test_the_steps_asked_for_are_traced(tmp_path, capsys):
    profile = Profile(tmp_path / "profile", start=10, steps=2)
    work = jax.jit(lambda x: x @ x)
    for step in range(11, 15):
        profile.before(step)
        profile.after(step, work(jnp.ones((8, 8))))
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))
    assert "a profile of steps 11 to 12 is in" in capsys.readouterr().out


def test_a_run_that_ends_within_the_steps_keeps_what_was_traced(tmp_path, capsys):
    with Profile(tmp_path / "profile", start=0, steps=50) as profile:
        for step in (1, 2, 3):
            profile.before(step)
            profile.after(step, jnp.ones(3))
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))
    assert "a profile of steps 1 to 3 is in" in capsys.readouterr().out


def test_no_steps_leave_nothing(tmp_path):
    profile = Profile(tmp_path / "profile", start=0, steps=0)
    for step in (1, 2):
        profile.before(step)
        profile.after(step, jnp.ones(3))
    assert not (tmp_path / "profile").exists()
