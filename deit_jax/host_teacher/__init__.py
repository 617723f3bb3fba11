"""Teachers of other frameworks: a function on the host from images to logits, or a model of timm or transformers by name.

--mode=record --teacher=SPEC takes one of

    my_module:function  a callable; the module is imported like a plugin (docs/extending.md)
    timm:NAME           timm.create_model(NAME, pretrained=True); NAME may be a local folder
    hf:NAME             transformers' AutoModelForImageClassification; NAME is OWNER/NAME on the hub or a local folder

docs/distillation.md describes the input and output of the callable.
"""

from deit_jax.host_teacher.identity import changed_field
from deit_jax.host_teacher.teacher import HostTeacher

__all__ = ["HostTeacher", "changed_field"]
