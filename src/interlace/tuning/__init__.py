"""Fine-tuning: training data and its checks, and what a run will cost."""

from interlace.tuning.check import check
from interlace.tuning.data import read_examples
from interlace.tuning.examples import Example, Examples, Message, Problem
from interlace.tuning.split import split

__all__ = ["Example", "Examples", "Message", "Problem", "check", "read_examples", "split"]
