"""The importances are usable without the rest of clbench."""

from __future__ import annotations

import subprocess
import sys

NOT_NEEDED = (
    "hydra", "omegaconf", "lightning", "pytorch_lightning", "torchmetrics", "pandas", "transformers", "timm", "peft",
)  # fmt: skip


def test_importances_do_not_import_the_rest_of_clbench() -> None:
    """Neither Lightning, Hydra and pandas nor the packages of models, not even when they measure."""
    program = (
        "import sys, torch\n"
        "from clbench.importance import fisher, mas, mas_local\n"
        "net, x = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.ReLU(), torch.nn.Linear(2, 2)), torch.ones(4, 3)\n"
        "fisher(net, [x]), mas(net, [x]), mas_local(net, [x])\n"
        f"print('IMPORTED', [name for name in {NOT_NEEDED!r} if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True)
    assert "IMPORTED []" in result.stdout
