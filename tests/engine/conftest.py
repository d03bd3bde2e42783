import pytest
import torch


@pytest.fixture
def one_thread():
    """For comparisons to the bit with a forked process, which has one thread: two threads round sums differently."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
