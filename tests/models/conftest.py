import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def two_threads():
    """The golden numbers hold for any number; two keep a small machine usable."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)
