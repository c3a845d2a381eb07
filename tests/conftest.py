"""What tests share: the third-party model and corpus, where they are, and a steady machine."""

from pathlib import Path

import pytest
import torch

SHARED = Path(__file__).parents[2] / "shared"


@pytest.fixture(autouse=True, scope="session")
def _one_thread_per_worker():
    """Workers run side by side: more threads than cores would only wait for each other."""
    torch.set_num_threads(1)


def _there(path: Path) -> Path:
    if not path.exists():
        pytest.skip(f"{path.name} (../shared/{path.relative_to(SHARED).parent}) is not here")
    return path


@pytest.fixture(scope="session")
def stories() -> Path:
    """A Llama trained by others on TinyStories, with its tokenizer."""
    return _there(SHARED / "models" / "stories260K")


@pytest.fixture(scope="session")
def stories_corpus() -> Path:
    """Stories sampled from that model."""
    return _there(SHARED / "data" / "stories.jsonl")
