"""Tar shards with chosen members."""

import io
import tarfile


def pack(path, members, format=tarfile.USTAR_FORMAT):
    """Writes a tar file of {name: bytes}; a value that is a str is a hard link to that name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=format) as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            if isinstance(content, str):
                info.type, info.linkname = tarfile.LNKTYPE, content
                archive.addfile(info)
            else:
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return path
