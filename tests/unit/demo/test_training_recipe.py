"""The recipe that made the bundled model still runs, from drawing pictures to a loadable folder."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


@pytest.mark.prove
def test_a_quick_training_run_ends_in_a_checkpoint():
    subprocess.run([sys.executable, "scripts/train_demo.py", "--quick"], cwd=ROOT, check=True, timeout=110)
    assert (ROOT / "build/demo-quick/llava-demo/model.safetensors").exists()
