import pytest

from deit_jax.data.shards import find_shards
from deit_jax.data.sources import DataError, MissingDataError


def grow(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def numbered(form, count, first=0):
    return [form.format(number) for number in range(first, first + count)]


def found(path, name, **settings):
    return list(find_shards(str(path), name, ".tar", **settings).files)


def refusal(path, name="train", kind=DataError, extension=".tar", **settings):
    with pytest.raises(kind) as error:
        find_shards(str(path), name, extension, **settings)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("train", "evaluation"),
    [
        ("imagenet1k-train-{:04}.tar", "imagenet1k-validation-{:02}.tar"),
        ("train/{:05}.tar", "val/{:05}.tar"),
        ("train-{:05}-of-00004.tar", "Valid-{:05}-of-00004.tar"),
        ("Training_Set/a-{:03}.tar", "dev/b-{:03}.tar"),
        ("train_{}.tar", "val_{}.tar"),
        ("train-{:05}-of-00004-8b5f2c1a9d0e4f37.tar", "validation-{:05}-of-00004-0b5f2c1a9d0e4f37.tar"),
    ],
)
def test_splits_by_folder_and_by_name(tmp_path, train, evaluation):
    one, other = numbered(train, 4), numbered(evaluation, 4)
    grow(tmp_path, *one, *other, "README.md", ".train-0009.tar", "train.txt")
    assert found(tmp_path, "train") == one
    assert found(tmp_path, "validation") == other
    assert not find_shards(str(tmp_path), "train", ".tar").notes


def test_numbers_order_shards(tmp_path):
    grow(tmp_path, *numbered("train-{}.tar", 12))
    assert found(tmp_path, "train") == numbered("train-{}.tar", 12)


def test_shards_without_a_split_are_for_training(tmp_path):
    grow(tmp_path, *numbered("{:05}.tar", 3))
    assert found(tmp_path, "train") == found(tmp_path, "") == numbered("{:05}.tar", 3)
    message = refusal(tmp_path, "validation", MissingDataError, flags="--config.data.")
    assert "no shards of the split 'validation'" in message
    assert message.endswith("--config.data.train_split='train[:90%]' --config.data.eval_split='train[90%:]'")


def test_literal_names(tmp_path):
    grow(tmp_path, "a-train-0.tar", "b-train-0.tar", "extra/0.tar")
    assert found(tmp_path, "extra") == ["extra/0.tar"]
    assert found(tmp_path, "b-train") == ["b-train-0.tar"]
    assert refusal(tmp_path).endswith("specify one, e.g. --config.data.train_split=a-train")


def test_several_folders_of_a_split(tmp_path):
    grow(tmp_path, "val/0.tar", "valid/0.tar")
    assert "the shards val and valid could each be 'validation'" in refusal(tmp_path, "validation")
    assert found(tmp_path, "valid") == ["valid/0.tar"]


def test_test_split_in_place_of_validation(tmp_path):
    grow(tmp_path, "train-0.tar", "test-0.tar")
    shards = find_shards(str(tmp_path), "validation", ".tar", or_test=True)
    assert shards.files == ("test-0.tar",) and "since there are no shards of `validation`" in shards.notes[0]
    assert "(there are: test, train)" in refusal(tmp_path, "validation", MissingDataError)


def test_patterns(tmp_path):
    grow(
        tmp_path, *numbered("x-train-{:03}.tar", 12), *numbered("x-val-{:03}.tar", 3), *numbered("more/train-{}.tar", 2)
    )
    whole = f"{tmp_path}/x-*.tar"
    assert found(whole, "train") == numbered("x-train-{:03}.tar", 12)
    assert found(whole, "validation") == numbered("x-val-{:03}.tar", 3)
    assert found(f"{tmp_path}/x-train-{{002..004}}.tar", "train") == numbered("x-train-{:03}.tar", 3, first=2)
    assert found(f"{tmp_path}/x-train-{{001,005,00{{7..8}}}}.tar", "train") == [
        f"x-train-00{i}.tar" for i in (1, 5, 7, 8)
    ]
    assert found(f"{tmp_path}/x-{{train,val}}-00[12].tar", "validation") == ["x-val-001.tar", "x-val-002.tar"]
    assert found(f"{tmp_path}/*/train-?.tar", "train") == ["more/train-0.tar", "more/train-1.tar"]
    assert found(tmp_path / "x-train-005.tar", "train") == ["x-train-005.tar"]
    assert "x-train-012.tar: no such file, named by the pattern" in refusal(f"{tmp_path}/x-train-{{010..012}}.tar")
    assert "no file has such a name" in refusal(f"{tmp_path}/y-*.tar", kind=MissingDataError)


def test_a_name_with_braces_is_literal_if_it_exists(tmp_path):
    grow(tmp_path, "a{1..2}/train-0.tar")
    assert found(tmp_path / "a{1..2}", "train") == ["train-0.tar"]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([f"train-{i:02}.tar" for i in (0, 1, 3, 5)], "2 of 6 shards are missing, the first is train-02.tar"),
        ([f"train/{i:02}.tar" for i in (3, 4)], "3 of 5 shards are missing, the first is train/00.tar"),
        (
            [f"train-{i:05}-of-00004.tar" for i in (0, 1, 2)],
            "1 of 4 shards are missing, the first is train-00003-of-00004.tar",
        ),
        (["train-00001-of-00002-0123456789abcdef.tar"], "the first is train-00000-of-00002-*.tar"),
        (["train-0-of-1.tar", "train-0-of-2.tar", "train-1-of-2.tar"], "have one number"),
        (["train-0-of-2.tar", "train-1-of-3.tar"], "of sets of "),
        (["train-01.tar", "train-1.tar"], "train-01.tar and train-1.tar have one number; remove one"),
    ],
)
def test_missing_and_extra_shards(tmp_path, names, message):
    grow(tmp_path, *names)
    assert message in refusal(tmp_path)


def test_sets_that_begin_at_one_or_have_no_numbers(tmp_path):
    grow(tmp_path, *numbered("train-{}.tar", 3, first=1), "test/cifar-10.tar", "val/a.tar", "val/b.tar")
    assert found(tmp_path, "train") == numbered("train-{}.tar", 3, first=1)
    assert found(tmp_path, "test") == ["test/cifar-10.tar"] and found(tmp_path, "validation") == [
        "val/a.tar",
        "val/b.tar",
    ]


def test_a_pattern_may_select_a_part_but_no_gap(tmp_path):
    grow(tmp_path, *numbered("train-{:05}-of-00009.tar", 9))
    assert len(found(f"{tmp_path}/train-0000[2-5]*.tar", "train")) == 4
    (tmp_path / "train-00004-of-00009.tar").unlink()
    assert "1 of 4 shards are missing" in refusal(f"{tmp_path}/train-0000[2-5]*.tar")
    assert len(found(f"{tmp_path}/train-0000{{2,3,5}}-of-00009.tar", "train")) == 3


def test_places_without_shards(tmp_path):
    grow(tmp_path, "hub/data/train/0.tar", "empty/a.txt")
    assert refusal(tmp_path / "hub", kind=MissingDataError, flags="--config.data.").endswith(
        f"has no .tar files: set --config.data.path={tmp_path}/hub/data"
    )
    assert "empty has no .tar files" in refusal(tmp_path / "empty", kind=MissingDataError)
    assert "none: no such file or folder; set path to" in refusal(tmp_path / "none", kind=MissingDataError)
