"""A miniature of ImageNet's three files in their layout."""

import io
import tarfile

import numpy as np
from scipy.io import savemat

from deit_jax.data.imagenet_tars import KIT, TRAIN, VALIDATION
from tests.data.tars import pack

# By ILSVRC2012_ID, which is not the order of the WordNet ids. The last is a class above the others, as in the kit.
SYNSETS = ("n02119789", "n01440764", "n02100735", "n00001740")


def write_files(root, images, validation):
    """Writes `images`, {WNID/NAME: bytes}, and `validation`, a list of (WNID, bytes), and the kit."""
    inner = {}
    for wnid in SYNSETS[:3]:
        members = {name.partition("/")[2]: content for name, content in images.items() if name.startswith(wnid)}
        inner[f"{wnid}.tar"] = pack(root / "inner" / f"{wnid}.tar", members).read_bytes()
    pack(root / TRAIN, inner)
    pack(root / VALIDATION, {f"ILSVRC2012_val_{i:08}.JPEG": content for i, (_, content) in enumerate(validation, 1)})
    synsets = np.zeros((len(SYNSETS), 1), [("ILSVRC2012_ID", object), ("WNID", object), ("words", object)])
    for number, wnid in enumerate(SYNSETS):
        synsets[number, 0] = (float(number + 1), wnid, f"the words of {wnid}")
    meta = io.BytesIO()
    savemat(meta, {"synsets": synsets})
    truth = "".join(f"{SYNSETS.index(wnid) + 1}\n" for wnid, _ in validation)
    folder = "ILSVRC2012_devkit_t12"
    with tarfile.open(root / KIT, "w:gz") as archive:
        for name, content in (
            (f"{folder}/readme.txt", b"about"),
            (f"{folder}/data/meta.mat", meta.getvalue()),
            (f"{folder}/data/ILSVRC2012_validation_ground_truth.txt", truth.encode()),
        ):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return root
