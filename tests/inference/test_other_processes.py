"""A Classifier in threads, copied, pickled, and in spawned and forked processes."""

import copy
import multiprocessing
import os
import pickle
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

import numpy as np
import pytest

from deit_jax import Classifier
from deit_jax.inference.classifier import PredictionError
from tests.inference.conftest import CHINA, FLOWER


def test_threads_share_a_classifier(vit_workdir):
    classifier = Classifier.from_workdir(vit_workdir, batch_size=4)
    images = np.random.default_rng(1).integers(0, 256, (12, 33, 44, 3), dtype=np.uint8)
    one_by_one = [classifier.probabilities(image) for image in images]
    assert np.ptp(np.concatenate(one_by_one), axis=0).max() > 1e-3
    fresh = Classifier.from_workdir(vit_workdir, batch_size=4)  # the threads compile
    with ThreadPoolExecutor(6) as threads:
        found = list(threads.map(lambda i: fresh.probabilities(images[i : i + 1 + i % 5]), range(12)))
    for i, probabilities in enumerate(found):
        np.testing.assert_allclose(probabilities, np.concatenate(one_by_one[i : i + 1 + i % 5]), atol=1e-6)


def test_copies_are_independent(vit, regnet):
    for first in (vit, regnet):
        for other in (copy.deepcopy(first), pickle.loads(pickle.dumps(first))):
            assert other([CHINA, FLOWER]) == first([CHINA, FLOWER])
            assert repr(other) == repr(first) and other.batch_sizes == first.batch_sizes and other.model == first.model
    assert copy.copy(vit)(CHINA) == vit(CHINA)


def test_spawned_process(vit):
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        found, names, pid = pool.submit(_answer, vit).result(timeout=300)
    assert pid != os.getpid() and names == [one.label for one in vit(CHINA)]
    np.testing.assert_allclose(found, vit.probabilities([CHINA, FLOWER]), atol=1e-6)


def _answer(classifier):
    return classifier.probabilities([CHINA, FLOWER]), [one.label for one in classifier(CHINA)], os.getpid()


@pytest.mark.filterwarnings("ignore:.*fork:RuntimeWarning", "ignore:.*fork:DeprecationWarning")
def test_forked_process_raises_instead_of_hanging(vit, vit_workdir):
    vit(CHINA)  # JAX has computed here
    kept = pickle.dumps(vit)
    kinds = {
        "a copy": lambda: vit(CHINA),
        "an empty call": lambda: vit.probabilities([]),
        "unpickled": lambda: pickle.loads(kept)(CHINA),
        "pickled": lambda: pickle.dumps(vit),
        "made there": lambda: Classifier.from_workdir(vit_workdir),
    }
    for kind, call in kinds.items():
        answer = _forked(call)
        assert "was forked from one that already had a Classifier" in answer, (kind, answer)
        assert "multiprocessing.get_context('spawn')" in answer and "\n" not in answer
    assert _forked(lambda: vit.prepare(CHINA).shape) == "(28, 28, 3)"  # does not need JAX


def _forked(call):
    """Returns the result of a call, or the message of its PredictionError, in a forked copy of this process."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()

    def answer():
        try:
            theirs.send(str(call()))
        except PredictionError as error:
            theirs.send(str(error))

    process = context.Process(target=answer)
    process.start()
    try:
        assert ours.poll(30), "the forked process hangs"
        return ours.recv()
    finally:
        process.kill()
        process.join()
