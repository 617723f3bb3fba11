"""Folders of tiny images."""

import io

from PIL import Image


def png(shade=0):
    file = io.BytesIO()
    Image.new("RGB", (3, 2), (shade,) * 3).save(file, "PNG")
    return file.getvalue()


def grow(root, *names):
    """Creates files with these relative paths in `root`, all small images; a name that ends in / is a folder."""
    for name in names:
        path = root / name
        if name.endswith("/"):
            path.mkdir(parents=True, exist_ok=True)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(png())
    return root


def files_of(source, root):
    """The images' paths, relative to `root`."""
    return [source.path(i).removeprefix(f"{root}/") for i in range(len(source))]
