"""The examples of docs/inference.md, which tests run."""

import re
from pathlib import Path

_DOCS = Path(__file__).parents[2] / "docs" / "inference.md"


def example(name):
    """The code block that begins with the comment `# NAME.py`."""
    [code] = re.findall(rf"```python\n(# {name}\.py.*?)```", _DOCS.read_text(), re.DOTALL)
    return code
