"""Classifies the names in a data folder: which are images, and which are skipped and why."""

from __future__ import annotations

import os
from collections.abc import Mapping

from deit_jax.printable import printable

# torchvision.datasets.folder.IMG_EXTENSIONS, so that a folder has the same files as there; then other extensions of JPEG, which
# browsers write, and AVIF.
IMAGE_EXTENSIONS = (
    ".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp",
    ".jfif", ".jpe", ".avif",
)  # fmt: skip
ARCHIVE_EXTENSIONS = (".zip", ".tar", ".tgz", ".gz", ".bz2", ".xz", ".zst", ".7z", ".rar")

INDEX_PREFIX = "deit_jax_index"  # the index files' (folder_index.py); earlier versions hid them in the folder itself

# Folders created by operating systems, storage devices and Python, in lower case. Some hold thumbnails of the images.
_SYSTEM_FOLDERS = (
    "__macosx", "@eadir", "@recycle", "@recently-snapshot", "#recycle", "#snapshot", "$recycle.bin", "recycler",
    "system volume information", "lost+found", "found.000", "network trash folder", "temporary items", "__pycache__",
)  # fmt: skip
_SYSTEM_FILES = ("thumbs.db", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini", "icon\r")
# Backups of editors, incomplete downloads, and the marker that Windows adds to a downloaded file.
_LEFTOVER_EXTENSIONS = (
    "~", ".bak", ".old", ".orig", ".swp", ".swo", ".tmp", ".temp", ".part", ".partial", ".crdownload", ".download", ".filepart",
    ".aria2", ":zone.identifier",
)  # fmt: skip

HIDDEN, LEFTOVER, NO_EXTENSION = "hidden", "left by a system, an editor or a download", "without an extension"
BROKEN_LINK, NOT_A_FILE = "broken link", "neither file nor folder"
HIDDEN_FOLDER, SYSTEM_FOLDER = "hidden folder", "folder of an operating system"
LINK_ABOVE, LINK_AGAIN = "link to a folder above", "link to a folder that is listed already"
_FOLDER_KINDS = (HIDDEN_FOLDER, SYSTEM_FOLDER, LINK_ABOVE, LINK_AGAIN)
_PLURALS = {
    BROKEN_LINK: "broken links",
    HIDDEN_FOLDER: "hidden folders",
    SYSTEM_FOLDER: "folders of an operating system",
    LINK_ABOVE: "links to a folder above",
    LINK_AGAIN: "links to a folder that is listed already",
}
_KINDS_SHOWN = 6


def _hints() -> dict[str, str]:
    """Returns, by extension, what to do with files that hold images but are not read."""
    hints = {
        "convert them to JPEG: Pillow reads them only with the plugin pillow-heif": ".heic .heif .hif",
        "convert them to PNG or JPEG": ".gif .apng .jp2 .j2k .jpf .jpx .jxl .tga .psd .ico .exr .hdr .dds .pcx .xcf .dcm .pnm",
        "camera raw: develop them to JPEG": ".raw .dng .cr2 .cr3 .crw .nef .nrw .arw .srf .sr2 .raf .orf .rw2 .pef .srw .3fr",
        "render them to PNG": ".svg .svgz .eps .ps .ai .pdf",
        "save their frames as JPEG": ".mp4 .m4v .mov .avi .mkv .webm .mpg .mpeg",
        "unpack them": " ".join(ARCHIVE_EXTENSIONS),
        "arrays: data.source=npz reads a .npz file": ".npy .npz",
    }
    return {extension: hint for hint, extensions in hints.items() for extension in extensions.split()}


_HINTS = _hints()

# Listings made with other rules are not used.
RULES = repr((IMAGE_EXTENSIONS, _SYSTEM_FOLDERS, _SYSTEM_FILES, _LEFTOVER_EXTENSIONS))


def is_image(name: str) -> bool:
    """Whether a file is listed as an image: by its extension, in any case, unless the file is hidden."""
    return name.lower().endswith(IMAGE_EXTENSIONS) and not name.startswith((".", "~$"))


def skipped_file(name: str) -> str | None:
    """Returns why a file is not listed: its extension in lower case, or one of the kinds above; None for an image."""
    if is_image(name):
        return None
    lower = name.lower()
    if lower in _SYSTEM_FILES or lower.endswith(_LEFTOVER_EXTENSIONS) or name.startswith("~$"):
        return LEFTOVER
    if name.startswith("."):
        return HIDDEN
    extension = os.path.splitext(lower)[1]
    return printable(extension) if 1 < len(extension) <= 12 else NO_EXTENSION


def skipped_folder(name: str) -> str | None:
    """Returns why a folder is neither a class nor searched, HIDDEN_FOLDER or SYSTEM_FOLDER; else None."""
    if name.startswith("."):
        return HIDDEN_FOLDER
    return SYSTEM_FOLDER if name.lower() in _SYSTEM_FOLDERS else None


def is_index(name: str) -> bool:
    """Whether a file is an index written by this project, which is not counted as skipped."""
    return name.removeprefix(".").startswith(INDEX_PREFIX) and name.endswith(".npz")


def is_archive(name: str) -> bool:
    """Whether a file's extension is that of an archive."""
    return name.lower().endswith(ARCHIVE_EXTENSIONS)


def describe_skipped(skipped: Mapping[str, int]) -> str:
    """Describes skipped entries by kind, most frequent first: "11 .heic (convert them to JPEG: ...), 2 .txt, 1 hidden"."""
    ranked = sorted(skipped.items(), key=lambda item: (item[0] not in _HINTS, -item[1], item[0]))
    parts = [
        f"{count:,} {kind if count == 1 else _PLURALS.get(kind, kind)}"
        + (f" ({_HINTS[kind]})" if kind in _HINTS else "")
        for kind, count in ranked
    ]
    if len(parts) > _KINDS_SHOWN:
        parts = [*parts[:_KINDS_SHOWN], f"{sum(count for _, count in ranked[_KINDS_SHOWN:]):,} others"]
    return ", ".join(parts)


def skipped_note(where: str, skipped: Mapping[str, int]) -> str:
    """Returns one line with the numbers of files and folders skipped in a folder, and why; "" if there are none."""
    files = {kind: count for kind, count in skipped.items() if kind not in _FOLDER_KINDS}
    folders = {kind: count for kind, count in skipped.items() if kind in _FOLDER_KINDS}
    parts = []
    if files:
        number = sum(files.values())
        parts.append(f"{number:,} {'file' if number == 1 else 'files'}: {describe_skipped(files)}")
    if folders:
        parts.append(describe_skipped(folders))
    return f"skipped in {printable(where)}: {'; '.join(parts)}" if parts else ""
