"""Answers step by step: the rows of this process, the comparison of crops, and the wait for a recorder."""

import threading
import time

import numpy as np
import pytest

from deit_jax.answers.files import CROPS, AnswersError, AnswersFolder
from deit_jax.answers.reading import RecordedAnswers, open_answers, rows_of_crops
from deit_jax.data.sampling import TrainOrder
from deit_jax.data.sources import ArraySource, DataError
from deit_jax.parallel.host_rows import HostRows

from .test_files import FACTS_OF, content, recorded

SOURCE = ArraySource(np.zeros((24, 4, 4), np.uint8), np.zeros(24, int), ("a",), origin="the set")
ORDER = TrainOrder(num_examples=24, batch_size=8, repeats=1, group_size=2, groups_per_block=2, seed=0)
ALL = HostRows(((0, 8),))


def reader(path, rows=ALL, timeout=60):
    return RecordedAnswers(AnswersFolder(path), FACTS_OF, ORDER, rows, SOURCE, timeout)


def written(step):
    shard = step // 3
    return {name: values[step - 3 * shard] for name, values in content(FACTS_OF, shard).items()}


def test_each_step_has_its_answers_in_any_order(tmp_path):
    recorded(tmp_path)
    answers = reader(tmp_path)
    for step in (0, 1, 6, 4, 0):
        found = answers.of_step(step, written(step)[CROPS])
        assert found.keys() == {"decision"}
        np.testing.assert_array_equal(found["decision"], written(step)["decision"])


def test_a_process_takes_its_own_rows(tmp_path):
    recorded(tmp_path)
    dealt = HostRows(((4, 8),))
    found = reader(tmp_path, dealt).of_step(4, written(4)[CROPS][4:])
    np.testing.assert_array_equal(found["decision"], written(4)["decision"][4:])
    # Where the devices deal the rows, the crops that a process reads are those of other rows than it computes.
    undealt = HostRows(((2, 6),), dealt=False)
    crops = ORDER.positions(4, 2, 6).row
    np.testing.assert_array_equal(rows_of_crops(ORDER, undealt), crops)
    found = reader(tmp_path, undealt).of_step(4, written(4)[CROPS][crops])
    np.testing.assert_array_equal(found["decision"], written(4)["decision"][2:6])


def test_a_crop_that_the_teacher_has_not_seen_is_named(tmp_path):
    recorded(tmp_path)
    checksums = written(5)[CROPS].copy()
    checksums[6] += 1
    image = ORDER.positions(5).image_index[ORDER.positions(5).row == 6][0]
    with pytest.raises(DataError, match=rf"step 6, row 6: the crop of image {image} of the set is not the one"):
        reader(tmp_path).of_step(5, checksums)


def test_a_training_waits_for_the_recorder_and_says_so(tmp_path, capsys):
    folder = recorded(tmp_path)
    (tmp_path / "shard-000001.bin").unlink()

    def write():
        for step in range(3):  # signs of life, over a longer time than a silent recorder is granted
            time.sleep(0.7)
            folder.note_progress(step)
        folder.write(FACTS_OF, 1, content(FACTS_OF, 1))

    writer = threading.Thread(target=write)
    writer.start()
    found = reader(tmp_path, timeout=1).of_step(3, written(3)[CROPS])
    writer.join()
    np.testing.assert_array_equal(found["decision"], written(3)["decision"])
    assert f"waiting for the answers to steps 4 to 6 in {tmp_path}" in " ".join(capsys.readouterr().out.split())


def test_a_recorder_that_is_silent_ends_the_wait(tmp_path):
    recorded(tmp_path)
    (tmp_path / "shard-000002.bin").unlink()
    with pytest.raises(AnswersError, match=r"steps 7 to 7 in .* do not come: no recorder has written there for 1 s"):
        reader(tmp_path, timeout=1).of_step(6, written(6)[CROPS])


def test_a_folder_without_answers_is_refused(tmp_path):
    with pytest.raises(AnswersError, match=r"there is no answers\.json; record them first"):
        open_answers(str(tmp_path))
