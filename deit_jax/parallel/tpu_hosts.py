"""Whether this TPU host is one of several: on Compute Engine no environment variable says so, its metadata server does."""

from __future__ import annotations

import os
import re
import urllib.request
from collections.abc import Mapping

_SERVER = "metadata.google.internal"
_SECONDS = 5  # it answers at once where it is


def one_of_several(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether the machine belongs to a TPU slice of several hosts, or to one of several slices. To be asked on a TPU host.

    A machine without such a server is on its own. TPU_SKIP_MDS_QUERY, which libtpu and JAX heed too, forbids to ask;
    GCE_METADATA_IP is another server than Compute Engine's.
    """
    if "TPU_SKIP_MDS_QUERY" in environment:
        return False
    server = environment.get("GCE_METADATA_IP", _SERVER)
    if "," in _attribute(server, "worker-network-endpoints"):
        return True
    slices = re.search(r"^\s*MEGASCALE_NUM_SLICES\s*:\s*'?(\d+)", _attribute(server, "tpu-env"), re.MULTILINE)
    return slices is not None and int(slices[1]) > 1


def _attribute(server: str, name: str) -> str:
    """An attribute of the machine; "" where there is none, or nobody to ask."""
    request = urllib.request.Request(
        f"http://{server}/computeMetadata/v1/instance/attributes/{name}", headers={"Metadata-Flavor": "Google"}
    )
    try:
        # Not through a proxy: the server answers this machine alone.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request, timeout=_SECONDS) as answer:
            return answer.read().decode()
    except OSError:
        return ""
