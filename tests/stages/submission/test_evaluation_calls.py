"""From evaluation to training data: real calls are followed, the rest is unknown."""

import pytest

from stages.submission.static_code import inspect_program

HEAD = """import glob
import numpy as np
from torch import nn

train_files = "data/fineweb_train_*.bin"


class Loader:
    def __init__(self, pattern):
        self.files = glob.glob(pattern)


class TrainLoader:
    def __init__(self, h):
        super().__init__()
        self.files = glob.glob(h.train_files)

    def step(self):
        return np.fromfile("fineweb_train_0.bin")
"""


def judged(source: str) -> str:
    found = inspect_program((HEAD + source).encode())
    assert not found.parsed, found.parsed
    assert found.evaluation
    return "fail" if found.training_data else "unknown" if found.training_possible else "pass"


@pytest.mark.parametrize(
    "source",
    [
        "class Adapter(nn.Module):\n    def __init__(self, n):\n        super().__init__()\n        "
        "self.a = nn.Linear(n, n)\n"
        "def eval_val(model, n):\n    return Adapter(n)(model)",
        "class A(nn.Module):\n    def __init__(self):\n        super().__init__()\nclass B(A):\n    "
        "def __init__(self):\n"
        "        super(B, self).__init__()\nclass C(B):\n    def __init__(self):\n        B.__init__(self)\n"
        "def eval_val():\n    return C()",
        (
            "def eval_val(args: TrainLoader, model) -> TrainLoader:\n    x: TrainLoader = "
            "model(args.val_tokens)\n    return x"
        ),
        "class Hyperparameters:\n    train_files = 'fineweb_train_*.bin'\n    def __init__(self):\n "
        "       self.val = 1\n"
        "def eval_val(args: Hyperparameters):\n    return args.train_seq_len + Hyperparameters().val",
        "def eval_val(args):\n    print(f'trained on {args.train_files}')",
        (
            "def eval_val(args):\n    '''Not on fineweb_train_*.bin.'''\n    raise ValueError('no "
            "fineweb_train_*.bin here')"
        ),
        (
            "def eval_val(tokens):\n    train_data = tokens[:10]  # of the validation text, scored "
            "already\n    return sum(train_data)"
        ),
        "def eval_val(model):\n    return isinstance(model, TrainLoader)",
        "def eval_val(model, val_loader):\n    model.eval()\n    return model(val_loader.next_batch())",
        "def eval_val():\n    def unused():\n        return TrainLoader(1)\n    return 1",
        "from pathlib import Path\ndef validate_dataset(data_path, tokenizer_path):\n"
        "    return len(list(Path(data_path).glob('fineweb_train_*.bin')))\ndef eval_val():\n    return 1",
        "from typing import cast\ndef eval_val(x):\n    return cast(TrainLoader, x)",
        "def eval_val(x):\n    return list[Loader](x) if issubclass(x, TrainLoader) else 0",
        "def evaluate(files):\n    return Loader('fineweb_val_*.bin')",
    ],
)
def test_what_only_looks_like_a_way_passes(source: str) -> None:
    assert judged(source) == "pass"


@pytest.mark.parametrize(
    "source",
    [
        "def eval_val():\n    return Loader(train_files)",
        "def eval_val(h):\n    return TrainLoader(h)",
        "def lookup():\n    return open('fineweb_train_3.bin')\ndef eval_val():\n    return lookup()",
        "def eval_val(args):\n    return glob.glob(args.train_files)",
        (
            "class Hyperparameters:\n    train_files = 'x'\ndef eval_val():\n    return "
            "glob.glob(Hyperparameters.train_files)"
        ),
        (
            "class A(TrainLoader):\n    def __init__(self, h):\n        super().__init__(h)\ndef "
            "eval_val(h):\n    return A(h)"
        ),
        "class A(TrainLoader):\n    pass\ndef eval_val(h):\n    return A(h)",
        "def eval_val(h):\n    loader = TrainLoader(h)\n    return loader.step()",
        "class Run:\n    def evaluate(self):\n        return self.load()\n"
        "    def load(self):\n        return np.memmap('fineweb_train_0.bin')",
        (
            "def main():\n    train_loader = Loader(train_files)\n    def eval_val():\n        return "
            "train_loader.next_batch()"
        ),
        (
            "def eval_val():\n    def inner():\n        return "
            "np.fromfile(sorted(glob.glob('fineweb_train_*.bin'))[0])\n    return inner()"
        ),
        "async def validate():\n    return [np.fromfile(file) for file in glob.glob('data/train_*.bin')]",
    ],
)
def test_a_real_way_fails_with_its_line(source: str) -> None:
    assert judged(source) == "fail"
    assert "(line " in inspect_program((HEAD + source).encode()).training_data[0]


@pytest.mark.parametrize(
    "source",
    [
        "def eval_val(x):\n    return x.step()",  # of an unknown class; one has such a method
        (
            "def read():\n    return open('fineweb_train_0.bin')\ndef eval_val(pool):\n    return "
            "pool.map(read, [1])"
        ),
        "def eval_val(model, train_loader):\n    return model(train_loader)",
        "import torch\nclass Ngrams:\n    def score(self):\n        return torch.cat(self.train_tokens)\n"
        "def eval_val(x):\n    return Ngrams().score()",
        "def eval_val(args):\n    files = args.train_files\n    return files",
        "def eval_val(args):\n    return getattr(args, 'train_files')",
        "from pathlib import Path\ndef eval_val(args):\n    path = Path(args.train_files)\n    return path",
    ],
)
def test_what_may_lead_there_is_unknown(source: str) -> None:
    assert judged(source) == "unknown"
