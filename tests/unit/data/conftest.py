import json
from pathlib import Path

import pytest


@pytest.fixture
def write(tmp_path):
    """Write text, bytes, or rows as JSON Lines, and return the path."""

    def write(name: str, content) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, list):
            content = "".join(json.dumps(row) + "\n" for row in content)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write
