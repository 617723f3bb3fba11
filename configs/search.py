"""The grid of the authors' search for learning rate and weight decay (section 6).

    python run.py --config=configs/search.py:3e-4,0.04 --workdir=WORKDIR

Argument: 5e-4 | 3e-4 | 5e-5, the rate for 512 images; 0.03 | 0.04 | 0.05, the decay; then any of
    tiny | small   instead of base
    runlocal       the same modules and recipe on the embedded images, for two steps

The authors chose 5e-4 and 0.05 (Table 9; 81.8); the other results are not published. The paper does not say on which data they
chose. Here it is ImageNet's validation images; use --config.data.train_split=train[:99%] --config.data.eval_split=train[99%:] to
spare them. Hardware as for configs/deit.py. Not yet run on ImageNet.
"""

from ml_collections import ConfigDict

from deit_jax.paper.rows import publish
from deit_jax.recipes.files import pick
from deit_jax.recipes.imagenet import SIZES, deit, run_locally

RATES = {"5e-4": 5e-4, "3e-4": 3e-4, "5e-5": 5e-5}
DECAYS = {"0.03": 0.03, "0.04": 0.04, "0.05": 0.05}


def get_config(argument: str = "5e-4,0.05") -> ConfigDict:
    words = pick("search.py", argument, rate=tuple(RATES), decay=tuple(DECAYS), size=SIZES, where=("runlocal",))
    config = deit(words["size"] or "base")
    config.schedule.base_learning_rate = RATES[words["rate"] or "5e-4"]
    config.optimizer.weight_decay = DECAYS[words["decay"] or "0.05"]
    publish(config, "search", argument)
    if words["where"] == "runlocal":
        run_locally(config)
    return config
